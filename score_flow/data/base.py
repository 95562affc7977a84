"""What a data set is to the rest of the program: numbered examples that can be read in any order."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32, UInt8

from score_flow.types import UserError

FIRST = 256  # images by which a data set is told from another without reading it whole

# {"image": uint8 (b, h, w, c)}, or float32 moments of latents (b, h, w, 2 c); when labelled, {"label": int32 (b,)}
Examples = dict[str, np.ndarray]


@runtime_checkable
class Source(Protocol):
    """Numbered examples with random access: what `read` returns depends on its argument alone."""

    name: str
    image_shape: tuple[int, int, int]  # (h, w, c)
    levels: int  # pixel values are 0 .. levels - 1
    num_classes: int  # labels are 0 .. num_classes - 1; 0 = unlabelled

    def __len__(self) -> int: ...

    def read(self, indices: Int[np.ndarray, "b"]) -> Examples: ...


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """A data set held in memory."""

    name: str
    image: UInt8[np.ndarray, "n h w c"]
    label: Int32[np.ndarray, "n"] | None = None
    levels: int = 256
    num_classes: int = 0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.image.shape[1:]

    def __len__(self) -> int:
        return len(self.image)

    def read(self, indices: Int[np.ndarray, "b"]) -> Examples:
        examples = {"image": self.image[indices]}
        return examples if self.label is None else examples | {"label": self.label[indices]}


def checksum(source: Source, limit: int | None = None, chunk: int = 1024) -> str:
    """A short name for the content: sha256 over shape, levels, pixels and labels of the first `limit` examples (all).

    The chunk size bounds the memory and does not enter the result.
    """
    n = len(source) if limit is None else min(limit, len(source))
    image, label = hashlib.sha256(), hashlib.sha256()
    for start in range(0, n, chunk):
        examples = source.read(np.arange(start, min(start + chunk, n)))
        image.update(examples["image"].tobytes())
        label.update(examples.get("label", np.empty(0)).astype("<i4").tobytes())
    header = repr((len(source), n, *source.image_shape, source.levels, source.num_classes)).encode()
    return hashlib.sha256(header + image.digest() + label.digest()).hexdigest()[:16]


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def shuffled(n: int) -> Int[np.ndarray, "n"]:
    """The order in which examples are taken where not all are: always the same."""
    return np.random.RandomState(0).permutation(n)  # legacy generator: its stream is frozen for ever


def existing_path(path: str) -> Path:
    """`path` with ~ expanded; raises UserError when nothing is there."""
    if not path:
        raise UserError("data.path: got nothing; give the file or the folder of the data set")
    found = Path(path).expanduser()
    if not found.exists():
        raise UserError(f"data.path: no such file or folder: {path}")
    return found


def one_line(error: Exception) -> str:
    """The kind and the first line of an error that a library raised, for use inside a UserError."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
