"""The loss of training in bfloat16 against float32: the same recipe, data, times, noise and first weights.

Each trial is the mean loss of WINDOW steps in a row, its ratio to float32's taken seed by seed; the goal is that the
mean ratio of no window is further than 1 % from 1 (`largest_deviation`, with its standard error over SEEDS seeds), over
the steps that config.training.n_iters says. Training enlarges any difference, so that one run tells little
(`one_seed`: the largest of a single seed); `of_rounded_start` says all this of float32 whose first weights alone were
rounded to bfloat16, hence of chance. A CPU emulates bfloat16: its steps tell nothing of speed.

    python -m benchmarks.precision --config.training.n_iters=1000
"""

import dataclasses
import sys
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from benchmarks.measure import Options, Row, main, row, significant
from benchmarks.train_step import train_steps
from score_flow.build import experiment
from score_flow.config.options import Config
from score_flow.data.pipeline import Batches
from score_flow.errors import UserError
from score_flow.experiment import Experiment
from score_flow.runs.sharding import batch_sharding
from score_flow.training.steps import TrainState, reseeded

WINDOW, SEEDS, GOAL = 50, 4, 0.01
Curves = Float[np.ndarray, "seeds n"]


def measure(config: Config, options: Options) -> Iterable[Row]:
    """One row: the mean loss of each window in bfloat16, and its ratio to float32's."""
    n, k = config.training.n_iters, config.training.n_jitted_steps
    if n % WINDOW or n % k:
        raise UserError(f"config.training.n_iters is {n}; it must be a multiple of {WINDOW} and of n_jitted_steps.")
    short, chance, exact = curves(config)
    yield row(
        "precision", short.mean(axis=0), f"loss of {WINDOW} steps in bfloat16", (short / exact).mean(axis=0),
        "float32", None, allowed=GOAL, **deviation(short, exact), of_rounded_start=deviation(chance, exact),
        steps=n, seeds=SEEDS, batch_size=config.training.batch_size, data=config.data.source.name,
        network=config.network.to_dict(),
        curves={name: significant(of.mean(axis=0), 4) for name, of in (("bfloat16", short), ("float32", exact))},
    )  # fmt: skip


def deviation(curves: Curves, others: Curves) -> dict[str, float]:
    """How far curves are from others: over all steps, of the window that is farthest in the mean, and of one seed."""
    ratios = curves / others
    of_means, farthest = ratios.mean(axis=0) - 1, np.argmax(np.abs(ratios.mean(axis=0) - 1))
    error = lambda of: np.std(of, axis=0, ddof=1) / np.sqrt(len(of))  # noqa: E731
    found = {
        "mean_deviation": ratios.mean() - 1, "mean_error": error(ratios.mean(axis=1)),
        "largest_deviation": of_means[farthest], "largest_error": error(ratios[:, farthest]),
        "one_seed": np.abs(ratios - 1).max(),
    }  # fmt: skip
    return dict(zip(found, significant(np.array([*found.values()]), 3), strict=True))


def curves(config: Config) -> tuple[Curves, Curves, Curves]:
    """The losses in bfloat16, in float32 from weights rounded to bfloat16, and in float32."""
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, non_finite="rollback"))
    programs = {}  # of all seeds, which those of rollbacks have as an argument
    for precision in ("bfloat16", "float32"):
        own = dataclasses.replace(config, model=dataclasses.replace(config.model, precision=precision))
        programs[precision] = train_steps(experiment(own), own)[0]
    found = []
    for seed in range(config.seed, config.seed + SEEDS):
        own = dataclasses.replace(config, seed=seed)
        run = experiment(own)
        state = train_steps(run, own)[1]
        rounded = jax.tree.map(lambda w: w.astype(jnp.bfloat16).astype(w.dtype), state.params)
        arms = ("bfloat16", state), ("float32", state.replace(params=rounded)), ("float32", state)
        found.append([losses(run, own, reseeded(programs[which], seed), begin) for which, begin in arms])
    return tuple(np.moveaxis(np.array(found), 1, 0))


def losses(run: Experiment, config: Config, steps: Callable, state: TrainState) -> Float[np.ndarray, "n"]:
    """Train from a state, which is not consumed; return the mean loss of each window of steps."""
    state, k = jax.tree.map(jnp.copy, state), config.training.n_jitted_steps
    sharding = batch_sharding(run.mesh, leading=1)
    batches = Batches(run.train_source, config.training.batch_size, seed=run.seed, sharding=sharding)
    found = []
    for step in range(0, config.training.n_iters, k):
        state, metrics = steps(state, batches(step, k))
        found.append(np.asarray(metrics.loss, float))
    batches.close()
    return np.ravel(found).reshape(-1, WINDOW).mean(axis=1)


if __name__ == "__main__":
    sys.exit(main(measure))
