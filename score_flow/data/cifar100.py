"""CIFAR-100 as its authors publish it, read in place: labels of 100 classes, or of 20."""

from typing import Literal

from score_flow.data.base import PATH, ArraySource
from score_flow.data.formats import cifar
from score_flow.data.splits import NAMES, Split
from score_flow.errors import check_choice
from score_flow.runs.files import existing_path


def build(split: Split = "train", path: str = "", labels: Literal["fine", "coarse"] = "fine") -> ArraySource:
    """CIFAR-100: its folder (cifar-100-python, cifar-100-binary), the .tar.gz of either, or the folder that one is in.

    Raises UserError.
    """
    check_choice("split", split, NAMES)
    found = cifar.read(existing_path(path, PATH), "CIFAR-100", split, labels, PATH)
    return ArraySource(
        f"CIFAR-100/{split}", found.image, found.label,
        num_classes=len(found.classes), classes=found.classes, notes=found.notes,
    )  # fmt: skip
