"""A sheet of samples while a run trains."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from evaluation.context import Guidance
from evaluation.drawing import drawer
from evaluation.pictures import save_grid
from sampling.base import Sampler
from score_flow.build import Experiment
from score_flow.sharding import is_main, multiple
from score_flow.types import Params

STREAM = 4  # of example keys


def sheet(
    run: Experiment, sampler: Sampler, guide: Guidance, directory: Path, n: int = 36
) -> Callable[[int, Params], None]:
    """(step, parameters) -> directory/<step>.png: the same noise at every step, so that progress shows."""
    n = multiple(run.mesh, n)

    draw = drawer(run, sampler, STREAM)

    def save(step: int, params: Params) -> None:
        images = draw(params, guide, None, np.arange(n))[0]["image"]
        if is_main():
            directory.mkdir(parents=True, exist_ok=True)
            save_grid(directory / f"{step:08d}.png", images, run.scaling.levels)

    return save
