"""Losses of arrays: a batch is given as it is, its other entries are the condition."""

from score_flow.losses.base import Noising
from score_flow.losses.hybrid import Hybrid
from score_flow.losses.simple import Denoising
from score_flow.losses.vlb import ChainBound
from score_flow.losses.weightings import WEIGHTINGS


def as_given(key, batch):
    """(x0, condition) of a batch of x0."""
    return batch["image"], {name: array for name, array in batch.items() if name != "image"} or None


def denoising(model, times, weighting, reduce="mean", **fields):
    return Denoising(model, Noising(as_given, times, **fields), WEIGHTINGS[weighting], reduce)


def of_chain(kind, model, times, bound, weighting="simple", reduce="mean", weight=1e-3):
    """The loss that training.objective = kind names, on a chain."""
    simple = denoising(model, times, weighting, reduce)
    chain = ChainBound(model, simple.noising, bound, reduce)
    return {"simple": simple, "vlb": chain, "hybrid": Hybrid(simple, chain, weight)}[kind]
