"""Samples that the job samples has drawn, for a job that would draw the same."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from evaluation.context import Context
from evaluation.fold import Arrays, agreeing
from score_flow.runs import files
from score_flow.runs.processes import decided

FOLDER, IMAGES, CALLS = "samples", "samples.npz", "calls.npz"  # what that job leaves, beside this one's folder


def samples(context: Context) -> Callable[[Int[np.ndarray, "b"]], Arrays] | None:
    """Return what reads them by their numbers; None where they are not done, or not those that would be drawn."""
    folder = context.directory.parent / FOLDER

    def are_there() -> bool:
        theirs = (files.json_at(folder / "result.json") or {}).get("key", {})
        drawn = agreeing(context.key, theirs) and ("control" in context.key) == ("control" in theirs)
        return bool(theirs) and drawn and all((folder / name).is_file() for name in (IMAGES, CALLS))

    if not decided(f"samples in {folder}", are_there):
        return None
    arrays = files.arrays_of(folder / IMAGES) | files.arrays_of(folder / CALLS)
    return lambda indices: {name: array[indices] for name, array in arrays.items()}
