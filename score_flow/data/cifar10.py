"""CIFAR-10 as its authors publish it, read in place."""

from score_flow.data.base import PATH, ArraySource
from score_flow.data.formats import cifar
from score_flow.data.splits import NAMES, Split
from score_flow.errors import check_choice
from score_flow.runs.files import existing_path


def build(split: Split = "train", path: str = "") -> ArraySource:
    """CIFAR-10: its folder (cifar-10-batches-py or -bin), the .tar.gz of either, or the folder that one is in.

    Raises UserError.
    """
    check_choice("split", split, NAMES)
    found = cifar.read(existing_path(path, PATH), "CIFAR-10", split, "", PATH)
    return ArraySource(
        f"CIFAR-10/{split}", found.image, found.label,
        num_classes=len(found.classes), classes=found.classes, notes=found.notes,
    )  # fmt: skip
