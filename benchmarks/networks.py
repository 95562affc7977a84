"""A train step of NCSN++ against one of DDPM++, per useful FLOP: what FIR resampling and pyramids cost beyond FLOPs.

Both are the CIFAR-10 recipes with everything that makes a step (loss, gradient, Adam, EMA) on random images of
32 x 32 x 3; on a CPU with an eighth of the width and one block a level. Goal: at most 1.15.

    python -m benchmarks.networks
"""

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np

from benchmarks.measure import Contender, Options, Row, interleave, main, row
from benchmarks.train_step import carry, loss, train_steps
from evaluation.plan.flops import flops
from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.config.options import Config

RECIPES = {"NCSN++": "configs/ve/cifar10_ncsnpp_continuous.py", "DDPM++": "configs/vp/cifar10_ddpmpp_continuous.py"}
REDUCED = {"network.width": 16, "network.num_res_blocks": 1}  # on a CPU
GOAL = 1.15


def measure(config: Config, options: Options) -> Iterable[Row]:
    """One row: seconds a FLOP of the one over the other's."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npz"
        rng = np.random.default_rng(0)
        np.savez(file, image=rng.integers(0, 256, (max(options.batch, 64), 32, 32, 3), np.uint8))
        steps, useful = {}, {}
        for name in RECIPES:
            steps[name], useful[name] = contender(name, file, options.batch)
    timing = interleave(steps["NCSN++"], steps["DDPM++"], options.seconds)
    per_flop = timing.ours / useful["NCSN++"], timing.other / useful["DDPM++"]
    yield row(
        "networks", 1 / timing.ours, "steps/s", per_flop[0] / per_flop[1], "DDPM++, per FLOP", GOAL,
        jax.device_count(), flops=useful["NCSN++"], other_flops=useful["DDPM++"], batch_size=options.batch,
    )  # fmt: skip


def contender(name: str, images: Path, batch: int) -> tuple[Contender, int]:
    """A call for one train step, and its useful FLOPs."""
    settings = {"data.source.name": "arrays", "data.source.path": str(images), "training.batch_size": batch}
    settings |= {"training.n_jitted_steps": 1} | (REDUCED if jax.default_backend() == "cpu" else {})
    config = load(RECIPES[name], [], settings)
    run = experiment(config)
    steps, state, batches = train_steps(run, config)
    forward = flops(lambda state, batch: loss(run, state, batch), state, jax.tree.map(lambda x: x[0], batches))
    return carry(steps, state, batches), 3 * forward


if __name__ == "__main__":
    sys.exit(main(measure))
