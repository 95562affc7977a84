"""The 1797 handwritten digits that scikit-learn carries (8x8, 17 grey levels, 10 classes): real data, no download."""

import numpy as np

from score_flow.data.base import ArraySource, shuffled
from score_flow.data.splits import Split
from score_flow.types import check_choice

N_TRAIN = 1500


def build(split: Split = "train") -> ArraySource:
    """1500 training or 297 test digits, divided by one fixed permutation; raises UserError for any other split."""
    from sklearn.datasets import load_digits  # a second, which --help need not wait for

    check_choice("split", split, ("train", "test"))
    digits = load_digits()
    order = shuffled(len(digits.target))
    chosen = order[:N_TRAIN] if split == "train" else order[N_TRAIN:]
    image = digits.images[chosen, :, :, None].astype(np.uint8)
    label = digits.target[chosen].astype(np.int32)
    return ArraySource(name=f"digits/{split}", image=image, label=label, levels=17, num_classes=10)
