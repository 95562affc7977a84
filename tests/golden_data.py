"""Where the reference numbers are, and how to read them."""

import json
import os
from pathlib import Path

import numpy as np


def golden_dir() -> Path:
    """GOLDEN_DIR, else the whole set beside the repository when it is there, else the committed subset."""
    here = Path(__file__).resolve().parent
    shared = here.parent.parent / "shared" / "golden"
    default = shared if shared.is_dir() else here / "golden"
    return Path(os.environ.get("GOLDEN_DIR", default))


def load(case: str) -> tuple[dict, dict[str, np.ndarray]]:
    """(description, arrays) of one golden file, named by its path without an ending."""
    path = golden_dir() / case
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
        return json.loads(path.with_suffix(".json").read_text()), dict(arrays)
