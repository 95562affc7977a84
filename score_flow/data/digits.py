"""The 1797 handwritten digits that scikit-learn carries (8x8, 17 grey levels, 10 classes): real data, no download."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import Float

from score_flow.data.base import ArraySource, shuffled
from score_flow.data.splits import Split
from score_flow.errors import check_choice

N_TRAIN = 1500


def build(split: Split = "train") -> ArraySource:
    """1500 training or 297 test digits, divided by one fixed permutation; raises UserError for any other split."""
    check_choice("split", split, ("train", "test"))
    rows = table()
    order = shuffled(len(rows))
    chosen = rows[order[:N_TRAIN] if split == "train" else order[N_TRAIN:]]
    image = chosen[:, :-1].reshape(-1, 8, 8, 1).astype(np.uint8)
    label = chosen[:, -1].astype(np.int32)
    return ArraySource(name=f"digits/{split}", image=image, label=label, levels=17, num_classes=10)


def table() -> Float[np.ndarray, "1797 65"]:
    """The pixels of each digit and its class, from scikit-learn's file: to load the library would take a second."""
    folder = Path(find_spec("sklearn").submodule_search_locations[0])
    return np.loadtxt(folder / "datasets" / "data" / "digits.csv.gz", delimiter=",")
