"""A sheet of samples while a run trains."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from evaluation.pictures import save_grid
from sampling.base import Sampler, example_keys
from sampling.guidance import Guide
from score_flow.build import Experiment
from score_flow.sharding import is_main, place, to_host
from score_flow.types import Params

STREAM = 4  # of example keys


def sheet(
    run: Experiment, sampler: Sampler, guide: Guide, directory: Path, n: int = 36
) -> Callable[[int, Params], None]:
    """(step, parameters) -> directory/<step>.png: the same noise at every step, so that progress shows."""
    n = -(-n // run.mesh.size) * run.mesh.size

    @jax.jit
    def draw(params, seeds):
        denoiser = guide(run.model.bind(params, run.conditioning.in_turn(seeds)))
        samples = sampler(example_keys(run.seed, seeds, STREAM), denoiser, run.image_shape)
        return run.scaling.quantise(samples.x, run.dequantised)

    def save(step: int, params: Params) -> None:
        images = to_host(draw(params, place(run.mesh, np.arange(n, dtype=np.uint32))))
        if is_main():
            directory.mkdir(parents=True, exist_ok=True)
            save_grid(directory / f"{step:08d}.png", images, run.scaling.levels)

    return save
