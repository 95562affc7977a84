"""Samples: exactly num_samples of them, each made once, and how far their features are from the data's."""

import numpy as np

from evaluation.context import Context
from evaluation.drawing import drawer, joined, refuse_failed
from evaluation.features import Judge
from evaluation.fold import Fold, write_arrays
from evaluation.pictures import beside, save_grid
from score_flow.sharding import is_main


def build(context: Context) -> Fold:
    """Draw, keep as uint8 (one file a round, samples.npz in the end), and compare with the test images."""
    run = context.run
    n, b = context.n_samples, context.batch_size

    draw = drawer(run, context.sampler)
    (context.directory / "rounds").mkdir(parents=True, exist_ok=True)

    def init():
        return {"calls": np.zeros(context.rounds_of(n), np.int64)}

    def step(state, round_number):
        indices = round_number * b + np.arange(b)
        arrays, calls, ok = draw(context.params, context.guide, context.control, indices)
        wanted = indices < n
        refuse_failed(indices[wanted], ok[wanted])
        write_arrays(_file(context, round_number), **{name: array[wanted] for name, array in arrays.items()})
        calls_by_round = state["calls"].copy()
        calls_by_round[round_number] = calls
        return {"calls": calls_by_round}

    def finish(state):
        result = {"n_samples": n, "network_calls_per_batch": float(state["calls"].mean()), "levels": run.scaling.levels}
        if not is_main():
            return result
        arrays = joined([_file(context, r) for r in range(context.rounds_of(n))])
        write_arrays(context.directory / "samples.npz", **arrays)
        save_grid(context.directory / "samples.png", arrays["image"][:100], run.scaling.levels)
        if context.control:
            shown = [np.asarray(run.pixels(picture)) for picture in context.control.pictures]
            sheet, columns = beside(shown, arrays["image"][:100])
            save_grid(context.directory / "control.png", sheet, run.scaling.levels, columns)
        if context.judged and not run.latent:
            result |= Judge(run.train_source, run.test_source)(arrays["image"], arrays.get("label"))
        return result

    return Fold(context.rounds_of(n), init, step, finish)


def _file(context: Context, round_number: int):
    return context.directory / "rounds" / f"{round_number:06d}.npz"
