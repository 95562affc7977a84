"""Samples: exactly num_samples of them, each made once, and how far their features are from the data's."""

import jax
import numpy as np

from evaluation.context import Context
from evaluation.features import compare
from evaluation.fold import Fold, write_arrays
from evaluation.pictures import save_grid
from sampling.base import example_keys
from score_flow.sharding import batch_sharding, is_main, place, to_host
from score_flow.types import NonFinite

STREAM = 3  # of example keys


def build(context: Context) -> Fold:
    """Draw, keep as uint8 (one file a round, samples.npz in the end), and compare with the test images."""
    run, options = context.run, context.options
    n, b = options.num_samples, context.batch_size

    def draw(params, seeds):
        condition = run.conditioning.in_turn(seeds)
        keys, denoiser = example_keys(run.seed, seeds, STREAM), context.guide(run.model.bind(params, condition))
        samples = context.sampler(keys, denoiser, run.image_shape)
        arrays = {"image": run.scaling.quantise(samples.x, run.dequantised)} | (condition or {})
        return arrays, samples.n_evaluations, samples.ok

    compiled = jax.jit(draw, in_shardings=(None, batch_sharding(run.mesh)))
    (context.directory / "rounds").mkdir(parents=True, exist_ok=True)

    def init():
        return {"calls": np.zeros(context.rounds_of(n), np.int64)}

    def step(state, round_number):
        indices = round_number * b + np.arange(b)
        arrays, calls, ok = to_host(compiled(context.params, place(run.mesh, indices.astype(np.uint32))))
        wanted = indices < n
        if not ok[wanted].all():
            raise NonFinite(
                f"samples {indices[wanted & ~ok][:8].tolist()} are not finite or did not arrive: "
                "use more steps or looser tolerances."
            )
        write_arrays(_file(context, round_number), **{name: array[wanted] for name, array in arrays.items()})
        calls_by_round = state["calls"].copy()
        calls_by_round[round_number] = calls
        return {"calls": calls_by_round}

    def finish(state):
        result = {"n_samples": n, "network_calls_per_batch": float(state["calls"].mean()), "levels": run.scaling.levels}
        if not is_main():
            return result
        parts = [np.load(_file(context, r), allow_pickle=False) for r in range(context.rounds_of(n))]
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0].files}
        write_arrays(context.directory / "samples.npz", **arrays)
        save_grid(context.directory / "samples.png", arrays["image"][:100], run.scaling.levels)
        return result | (compare(arrays["image"], run.train_source, run.test_source) if context.judged else {})

    return Fold(context.rounds_of(n), init, step, finish)


def _file(context: Context, round_number: int):
    return context.directory / "rounds" / f"{round_number:06d}.npz"
