"""A batch of ImageNet at 32 or 64 pixels as its authors pickle it, train_data_batch_1: read, never unpickled.

It is a dict of `data`, uint8 (n, 3 s s), `labels`, a list from 1 to 1000, and `mean`, which nothing here looks at.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int32, UInt8

from score_flow.data.formats.cifar import ArrayMachine, value_of
from score_flow.errors import UserError, one_line
from score_flow.runs.files import regular_file
from score_flow.runs.pickles import SHOWN, Function

ORDERED = ("u1", "f4", "f8")  # of the images, and of the mean
PICKLE = b"\x80"  # what those of protocol 2 and later begin with


def _dtype(code: Any) -> np.dtype:
    if code not in ORDERED:
        raise UserError(f"holds an array of {str(code)[:SHOWN]!r}; allowed: {', '.join(ORDERED)}")
    return np.dtype(code)


class RealMachine(ArrayMachine):
    """CIFAR's, with arrays of real numbers."""

    named: ClassVar[Mapping[str, Any]] = ArrayMachine.named | {"numpy.dtype": Function(lambda code, *_: _dtype(code))}

    def set_state(self, target: Any, state: Any) -> None:
        if isinstance(target, np.dtype) and type(state) is tuple and state[1:2] == (">",):
            raise UserError("holds an array of big-endian numbers; allowed: little-endian")
        super().set_state(target, state)


def is_one(file: Path) -> bool:
    """Whether a file begins as a pickle does."""
    with open(regular_file(file, "image"), "rb") as stream:
        return stream.read(1) == PICKLE


def read(file: Path, most: int, allowed: str) -> tuple[UInt8[np.ndarray, "n d"], Int32[np.ndarray, "m"]]:
    """Read images and labels of a batch; raises UserError, naming the file, for other contents or more than `most`."""
    size = regular_file(file, "image").stat().st_size
    if size > most:
        raise UserError(f"{file}: {size} bytes; allowed: {allowed} {most}")
    try:
        batch = RealMachine(2 * size).run(file.read_bytes())
        image, labels = value_of(batch["data"]), batch["labels"]
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except Exception as error:  # hostile bytes raise almost anything
        raise UserError(f"{file}: no readable batch; cut off or damaged? ({one_line(error)})") from error
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 2:
        raise UserError(f"{file}: holds no images: uint8 of shape (n, 3 s s)")
    if type(labels) is not list or not all(type(label) is int and 0 <= label < 2**31 for label in labels):
        raise UserError(f"{file}: holds no labels: a list of whole numbers")
    return image, np.array(labels, np.int32)
