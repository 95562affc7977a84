"""The chain that jobs of its bound look at: what they need, what they read, and which it is."""

import dataclasses

import numpy as np

from score_flow.config.options import EvalOptions
from score_flow.errors import UserError
from score_flow.experiment import Experiment
from score_flow.process.bound import VariationalBound

NEEDS = frozenset({"denoiser", "pixels", "levels", "objective", "split"})
READS = ("largest_time", "vlb_steps", "vlb_variance", "vlb_clip")


def chain(run: Experiment, options: EvalOptions) -> VariationalBound:
    """Make the bound on eval.vlb_steps even times, or on those of training; its variance is what was trained.

    Raises UserError where there is no chain.
    """
    times, n, trained = run.loss.times.times, options.vlb_steps, getattr(run.loss, "variational", None)
    if n:
        times = tuple((options.largest_time * np.arange(1, n + 1) / n).tolist())
    elif not times:
        raise UserError(
            "eval.vlb_steps = 0 asks for the chain that training drew its times from, but this model was trained on "
            "an interval: give --config.eval.vlb_steps=1000."
        )
    if trained:
        return dataclasses.replace(trained, times=times)
    scaling = run.scaling
    return VariationalBound(
        run.model.path, times, options.vlb_variance, "exact", scaling.low, scaling.high, scaling.levels
    )
