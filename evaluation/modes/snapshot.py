"""A sheet of samples while a run trains: few, by a cheap sampler, and interruptible."""

from collections.abc import Callable

import numpy as np

from evaluation.context import Guidance
from evaluation.drawing import drawer
from evaluation.report.pictures import save_grid
from sampling import multistep
from sampling.base import Sampler, Stream
from score_flow.config.components import Component
from score_flow.experiment import Experiment
from score_flow.runs.places import Place, make_folder
from score_flow.runs.preemption import Preemption
from score_flow.runs.processes import is_main
from score_flow.runs.progress import progress
from score_flow.runs.sharding import multiple
from score_flow.types import Params

N, CHUNK = 16, 4  # samples of a sheet; how many are drawn between two looks for a signal
N_STEPS = 20  # network calls of a sample


def cheap_sampler(sampling: Component) -> Sampler:
    """Make DPM-Solver++(2M) in 20 steps from where the configured sampler begins: it costs little on every path.

    The figures of --mode=eval are the configured sampler's.
    """
    times = {name: value for name, value in sampling.arguments.items() if name == "t_max"}
    return multistep.build(n_steps=N_STEPS, order=2, **times)


def sheet(
    run: Experiment, sampler: Sampler, guide: Guidance, directory: Place
) -> Callable[[int, Params], Place | None]:
    """Make (step, parameters) -> the file directory/<step>.png: the same noise at every step, so that progress shows.

    After SIGTERM or Ctrl-C the sheet is left out, and training, which sees the signal next, saves and ends.
    """
    draw, chunk = drawer(run, sampler, stream=Stream.SNAPSHOT), multiple(run.mesh, CHUNK)

    def save(step: int, params: Params) -> Place | None:
        parts = []
        with Preemption() as preemption, progress(N, 0, "sample", f"sheet of step {step}") as bar:
            for first in range(0, N, chunk):
                if preemption.agreed():
                    return None
                parts.append(draw(params, guide, None, first + np.arange(chunk))[0]["image"])
                bar.update(min(chunk, N - first))
        if not is_main():
            return None
        make_folder(directory)
        save_grid(file := directory / f"{step:08d}.png", np.concatenate(parts)[:N], run.scaling.levels)
        return file

    return save
