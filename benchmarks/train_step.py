"""The compiled train step against matrix products of the same FLOPs.

Ours is the program that main.py trains with: scaling, loss, gradient, optimiser and EMA of n_jitted_steps steps, the state
donated, one batch of the data set kept on the device, no wait for the loss between steps. The other is a chain of square
matrix products in the network's compute dtype on the same devices: what the hardware does when nothing is in its way.
FLOPs are the useful ones, three forward passes of the loss; what remat computes again is not useful. A remat that costs
time therefore shows. mfu is the share of the chip's published dense bf16 peak; goals for it: 35 % SiT-XL/2, 18 % NCSN++.

    python -m benchmarks.train_step --config=configs/digits.py --config.training.batch_size=256
    taskset -c 0 python -m benchmarks.train_step       one thread, the steadier number on a busy CPU
"""

import sys
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks.flops import flops
from benchmarks.measure import Contender, Row, clock, interleave, main, row
from score_flow.build import Experiment, example_condition, experiment
from score_flow.data.pipeline import Batches
from score_flow.sharding import batch_sharding, state_shardings
from score_flow.training import TrainState, init_state, make_train_steps
from score_flow.types import Batch

PEAK = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}  # dense bf16 FLOP/s, by device_kind
TRIAL = 0.25  # seconds: many steps a trial where steps are short, so that dispatching overlaps them as in training
MAX_SIDE, MAX_LINKS = 8192, 64  # of the matrices, and of their chain


def measure(config: ConfigDict, seconds: float) -> Iterable[Row]:
    """One row: steps/s, and the time of a step over that of as many FLOPs of matrix products."""
    run, size, k = experiment(config), config.training.batch_size, config.training.n_jitted_steps
    steps, state, batch = train_steps(run, config)
    one = jax.tree.map(lambda x: x[0], batch)
    useful = 3 * flops(lambda state, batch: loss(run, state, batch), state, one)
    executed = flops(steps, state, batch) / k
    dtype = getattr(run.model.network, "dtype", "float32")
    product, product_flops = products(run, k * useful, dtype)

    step = carry(steps, state, batch)
    step()
    n = int(np.clip(TRIAL / clock(step), 1, 100))
    timing = interleave(repeat(step, n), repeat(product, n), seconds)
    per_step, per_flop = timing.ours / (n * k), timing.other / (n * product_flops)
    rate = 1 / per_step
    peak = PEAK.get(jax.devices()[0].device_kind)
    yield row(
        "train_step", rate, "steps/s", per_step / (useful * per_flop), f"{dtype} matrix products of the same FLOPs", None,
        images_per_second=round(float(np.median(rate)) * size, 1), flops=useful, executed_flops=executed,
        matmul_flops_per_second=float(f"{1 / np.median(per_flop):.4g}"), peak_flops_per_second=peak,
        mfu=peak and round(float(np.median(rate)) * useful / (peak * jax.device_count()), 4),
        network=type(run.model.network).__name__, batch_size=size, n_jitted_steps=k,
    )  # fmt: skip


def train_steps(run: Experiment, config: ConfigDict) -> tuple[Callable, TrainState, Batch]:
    """The program of score_flow.train, a fresh state, and a batch (k, b, ...) of the data set on the devices."""
    n_ema, options = len(config.model.ema_rate), config.training

    def init():
        condition = example_condition(1, run.labelled)
        return init_state(run.objective, run.optimiser, n_ema, jax.random.key(run.seed), (1, *run.image_shape), condition)

    shardings = state_shardings(run.mesh, jax.eval_shape(init))
    steps = make_train_steps(
        run.objective, run.optimiser, config.model.ema_rate, config.model.ema_warmup, run.preprocess, run.seed, run.mesh, shardings
    )
    batches = Batches(run.train_source, options.batch_size, run.seed, batch_sharding(run.mesh, leading=1))
    batch = batches(0, options.n_jitted_steps)
    batches.close()
    return steps, jax.jit(init, out_shardings=shardings)(), batch


def loss(run: Experiment, state: TrainState, batch: Batch) -> jax.Array:
    """The forward pass of a step."""
    key = jax.random.key(0)
    return run.objective(state.params, state.time_state, key, *run.preprocess(key, batch))[0]


def carry(steps: Callable, state: TrainState, batch: Batch) -> Contender:
    """Each call goes on from the state of the last."""

    def step():
        nonlocal state
        state, metrics = steps(state, batch)
        return metrics

    return step


def products(run: Experiment, total: int, dtype: str) -> tuple[Contender, int]:
    """A chain of square matrix products of about `total` FLOPs, shared out among the devices, and its exact FLOPs."""
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
    def repeated():
        for _ in range(n):
            out = f()
        return out

    return repeated


if __name__ == "__main__":
    sys.exit(main(measure))
