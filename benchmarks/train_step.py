"""The compiled train step against matrix products of the same FLOPs.

Ours is the program that main.py trains with: scaling, loss, gradient, optimiser and EMA of n_jitted_steps steps, the
state donated, one batch of the data set kept on the device, no wait between steps. The other is a chain of square
matrix products in the network's compute dtype on the same devices: what the hardware does when nothing is in its way.

FLOPs are the useful ones, three forward passes of the loss; recomputation is not useful, so a remat that costs time
shows. mfu is their share of the published dense bf16 peak of the chip, where it is known: its goals are 0.35 for
SiT-XL/2 and 0.18 for NCSN++ on one H100 in bfloat16. On a CPU only the ratio means something, and has no goal.

    python -m benchmarks.train_step --config=configs/digits.py --config.training.batch_size=256
    taskset -c 0 python -m benchmarks.train_step       one thread: the steadier number on a busy CPU
"""

import sys
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import Contender, Options, Row, clock, interleave, main, row, significant
from evaluation.plan.chips import chip_of
from evaluation.plan.flops import flops
from score_flow.build import experiment
from score_flow.config.options import Config
from score_flow.data.pipeline import Batches
from score_flow.experiment import Experiment
from score_flow.runs.sharding import batch_sharding, state_shardings
from score_flow.training.flat import tree_of
from score_flow.training.run import fresh_state, holding, program_of
from score_flow.training.steps import TrainState
from score_flow.types import Batch

TRIALS = 25  # about; short steps share a trial, so that their dispatch overlaps as it does in training
MAX_SIDE, MAX_LINKS = 8192, 64  # of the square matrices, and of their chain


def measure(config: Config, options: Options) -> Iterable[Row]:
    """One row: steps/s, and the time of a step over that of as many FLOPs of matrix products."""
    run, size, k = experiment(config), config.training.batch_size, config.training.n_jitted_steps
    steps, state, batch = train_steps(run, config)
    useful = 3 * flops(lambda state, batch: loss(run, state, batch), state, jax.tree.map(lambda x: x[0], batch))
    executed = flops(steps, state, batch) // k
    dtype = getattr(run.model.network, "dtype", "float32")
    product, product_flops = products(run, k * useful, dtype)

    step = carry(steps, state, batch)
    jax.block_until_ready(step())
    n = int(np.clip(options.seconds / (2 * TRIALS * clock(step)), 1, 100))
    timing = interleave(repeat(step, n), repeat(product, n), options.seconds)
    per_step, per_flop = timing.ours / (n * k), timing.other / (n * product_flops)
    rate, chip = np.median(1 / per_step), chip_of(jax.devices()[0].device_kind)
    peak = chip and chip.peak
    images_per_second, matmul = significant(np.array([rate * size, np.median(1 / per_flop)]), 4)
    yield row(
        "train_step", 1 / per_step, "steps/s", per_step / (useful * per_flop), f"{dtype} matrix products", None,
        run.mesh.size, images_per_second=images_per_second, flops=useful, executed_flops=executed,
        matmul_flops_per_second=matmul, peak_flops_per_second=peak,
        mfu=peak and float(round(rate * useful / (peak * run.mesh.size), 4)),
        network=type(run.model.network).__name__, dtype=dtype, batch_size=size, n_jitted_steps=k,
    )  # fmt: skip


def train_steps(run: Experiment, config: Config) -> tuple[Callable, TrainState, Batch]:
    """The program of score_flow.training.run, a fresh state, and a batch (k, b, ...) of the data set on the devices."""
    options = config.training
    fresh, shapes, _ = fresh_state(run, config)
    hold = holding(run, config, shapes)
    steps = program_of(run, config, state_shardings(run.mesh, jax.eval_shape(hold, shapes)))
    batches = Batches(run.train_source, options.batch_size, seed=run.seed, sharding=batch_sharding(run.mesh, leading=1))
    batch = batches(0, options.n_jitted_steps)
    batches.close()
    return steps, hold(fresh()), batch


def loss(run: Experiment, state: TrainState, batch: Batch) -> jax.Array:
    """The forward pass of a step."""
    return run.loss(tree_of(state.params), state.time_state, jax.random.key(0), batch)[0]


def carry(steps: Callable, state: TrainState, batch: Batch) -> Contender:
    """A call for a program of steps; each goes on from the state of the last."""

    def step():
        nonlocal state
        state, metrics = steps(state, batch)
        return metrics

    return step


def products(run: Experiment, total: int, dtype: str) -> tuple[Contender, int]:
    """A chain of square matrix products of about `total` FLOPs, shared among the devices, and its exact FLOPs."""
    share = total / run.mesh.size
    side = int(np.clip(2 ** np.floor(np.log2(share / 2) / 3), 128, MAX_SIDE))
    links = int(np.clip(round(share / (2 * side**3)), 1, MAX_LINKS))
    shape, layout = (run.mesh.size, side, side), batch_sharding(run.mesh)
    draw = jax.jit(lambda key: jax.random.normal(key, shape).astype(dtype), out_shardings=layout)
    y, w = draw(jax.random.key(0)), draw(jax.random.key(1)) / jnp.asarray(np.sqrt(side), dtype)  # y keeps its size

    @jax.jit
    def chain(y, w):
        for _ in range(links):
            y = y @ w
        return y

    def product():
        nonlocal y
        y = chain(y, w)
        return y

    return product, flops(chain, y, w)


def repeat(f: Contender, n: int) -> Contender:
    """n calls in a row, each of which goes on from the last."""
    return lambda: [f() for _ in range(n)][-1]


if __name__ == "__main__":
    sys.exit(main(measure))
