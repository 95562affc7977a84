"""The loss of training in bfloat16 against float32: the same recipe, data, times, noise and first weights.

Each trial is the mean loss of WINDOW steps in a row, and the ratio is taken window by window; the goal is that none is
further than 1 % from float32's (`largest_deviation`), over the steps that config.training.n_iters says. Training
enlarges any difference, so the row has the same of another run in float32, whose first weights alone were rounded to
bfloat16 (`of_rounded_start`): what no precision after it could better. `mean_ratio` is of all steps. A CPU emulates
bfloat16: its steps tell nothing of speed.

    python -m benchmarks.precision --config.training.n_iters=1000
"""

import dataclasses
import sys
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from benchmarks.measure import Options, Row, main, row, significant
from benchmarks.train_step import train_steps
from score_flow.build import experiment
from score_flow.config.options import Config
from score_flow.data.pipeline import Batches
from score_flow.runs.sharding import batch_sharding
from score_flow.types import UserError

WINDOW, GOAL = 50, 0.01


def measure(config: Config, options: Options) -> Iterable[Row]:
    """One row: the mean loss of each window in bfloat16, and its ratio to float32's."""
    n, k = config.training.n_iters, config.training.n_jitted_steps
    if n % WINDOW or n % k:
        raise UserError(f"config.training.n_iters is {n}; it must be a multiple of {WINDOW} and of n_jitted_steps.")
    short, exact = (losses(in_precision(config, precision)) for precision in ("bfloat16", "float32"))
    control = losses(in_precision(config, "float32"), rounded=True)
    mean_ratio, largest, of_control = significant(
        np.array([short.mean() / exact.mean(), farthest(short, exact), farthest(control, exact)]), 4
    )
    yield row(
        "precision", short, f"mean loss of {WINDOW} steps in bfloat16", short / exact, "float32", None,
        mean_ratio=mean_ratio, largest_deviation=largest, of_rounded_start=of_control, allowed=GOAL, steps=n,
        batch_size=config.training.batch_size, data=config.data.source.name, network=config.network.to_dict(),
        curves={name: significant(curve, 4) for name, curve in (("bfloat16", short), ("float32", exact))},
    )  # fmt: skip


def in_precision(config: Config, precision: str) -> Config:
    """Return the config with a network that computes so."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, precision=precision))


def farthest(curve: Float[np.ndarray, "n"], other: Float[np.ndarray, "n"]) -> float:
    """Return the largest relative deviation of a curve from another."""
    return np.abs(curve / other - 1).max()


def losses(config: Config, rounded: bool = False) -> Float[np.ndarray, "n"]:
    """Train from the start, or from those weights rounded to bfloat16; return the mean loss of each window of steps."""
    run, k = experiment(config), config.training.n_jitted_steps
    steps, state, _ = train_steps(run, config)
    if rounded:
        state = state.replace(params=jax.tree.map(lambda w: w.astype(jnp.bfloat16).astype(w.dtype), state.params))
    sharding = batch_sharding(run.mesh, leading=1)
    batches = Batches(run.train_source, config.training.batch_size, seed=run.seed, sharding=sharding)
    found = []
    for step in range(0, config.training.n_iters, k):
        state, metrics = steps(state, batches(step, k))
        found.append(metrics.loss)
    batches.close()
    return np.ravel(jax.device_get(found)).astype(float).reshape(-1, WINDOW).mean(axis=1)


if __name__ == "__main__":
    sys.exit(main(measure))
