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


def some(cases: Iterable[str], every: int) -> list:
    """Cases of a test, paths without an ending: the committed run always, of the others the first of each `every`.

    What is left runs with `make test-all`.
    """
    others, kept = 0, []
    for case in cases:
        committed = any((COMMITTED / case).parent.glob(f"{Path(case).name}*"))
        kept.append(pytest.param(case, marks=() if committed or others % every == 0 else pytest.mark.slow))
        others += not committed
    return kept


def load(case: str) -> tuple[dict, dict[str, np.ndarray]]:
    """(description, arrays) of one golden file, named by its path without an ending."""
    path = golden_dir() / case
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
        return json.loads(path.with_suffix(".json").read_text()), dict(arrays)
