"""Where the reference numbers are, and how to read them."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

COMMITTED = Path(__file__).resolve().parent / "golden"


def golden_dir() -> Path:
    """GOLDEN_DIR, else the whole set beside the repository when it is there, else the committed subset."""
    shared = COMMITTED.parents[2] / "shared" / "golden"
    return Path(os.environ.get("GOLDEN_DIR", shared if shared.is_dir() else COMMITTED))


def some(cases: Iterable[str | Path], every: int) -> list:
    """Cases of a test, paths in golden_dir(): the committed run always, of the others the last of each `every`.

    What is left runs with `make test-all`; an ending may be left out.
    """
    others, kept = 0, []
    for case in cases:
        place = COMMITTED / (golden_dir() / case).relative_to(golden_dir())
        committed = any(place.parent.glob(f"{place.name}*"))
        others += not committed
        kept.append(pytest.param(case, marks=() if committed or others % every == 0 else pytest.mark.slow))
    return kept


def load(case: str) -> tuple[dict, dict[str, np.ndarray]]:
    """(description, arrays) of one golden file, named by its path without an ending."""
    path = golden_dir() / case
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
        return json.loads(path.with_suffix(".json").read_text()), dict(arrays)
