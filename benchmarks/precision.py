"""The loss of training in bfloat16 against float32: the same recipe, data, times, noise and first weights.

Each trial is the mean loss of WINDOW steps in a row and of SEEDS seeds, and the ratio is taken window by window; the
goal is that none is further than 1 % from float32's (`largest_deviation`), over the steps that config.training.n_iters
says. Training enlarges any difference, so that one run tells little: `one_seed` is the largest deviation of a single
seed, and the two `of_rounded_start` are the same of float32 whose first weights alone were rounded to bfloat16, hence
chance. `mean_ratio` is of all steps. A CPU emulates bfloat16: its steps tell nothing of speed.

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

WINDOW, SEEDS, GOAL = 50, 4, 0.01
Curves = Float[np.ndarray, "seeds n"]


def measure(config: Config, options: Options) -> Iterable[Row]:
    """One row: the mean loss of each window in bfloat16, and its ratio to float32's."""
    n, k = config.training.n_iters, config.training.n_jitted_steps
    if n % WINDOW or n % k:
        raise UserError(f"config.training.n_iters is {n}; it must be a multiple of {WINDOW} and of n_jitted_steps.")
    seeds = [dataclasses.replace(config, seed=config.seed + i) for i in range(SEEDS)]
    short, exact = (np.array([losses(each, kind) for each in seeds]) for kind in ("bfloat16", "float32"))
    control = np.array([losses(each, "float32", rounded=True) for each in seeds])
    mine, chance, mean_ratio = (
        significant(np.array(found), 3)
        for found in (farthest(short, exact), farthest(control, exact), [short.mean() / exact.mean()])
    )
    yield row(
        "precision", short.mean(axis=0), f"loss of {WINDOW} steps in bfloat16", short.mean(axis=0) / exact.mean(axis=0),
        "float32", None, allowed=GOAL, mean_ratio=mean_ratio[0], largest_deviation=mine[0], one_seed=mine[1],
        of_rounded_start=chance[0], one_seed_of_rounded_start=chance[1], steps=n, seeds=SEEDS,
        batch_size=config.training.batch_size, data=config.data.source.name, network=config.network.to_dict(),
        curves={name: significant(of.mean(axis=0), 4) for name, of in (("bfloat16", short), ("float32", exact))},
    )  # fmt: skip


def farthest(curves: Curves, others: Curves) -> tuple[float, float]:
    """Return the largest relative deviation of curves from others: of their means over seeds, and of one seed."""
    of_means, of_one = curves.mean(axis=0) / others.mean(axis=0), curves / others
    return np.abs(of_means - 1).max(), np.abs(of_one - 1).max()


def losses(config: Config, precision: str, rounded: bool = False) -> Float[np.ndarray, "n"]:
    """Train from the start, or from those weights rounded to bfloat16; return the mean loss of each window of steps."""
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, precision=precision))
    run, k = experiment(config), config.training.n_jitted_steps
    steps, state, _ = train_steps(run, config)
    if rounded:
        state = state.replace(params=jax.tree.map(lambda w: w.astype(jnp.bfloat16).astype(w.dtype), state.params))
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
