"""What a data set is to the rest of the program: numbered examples that can be read in any order."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float16, Int, Int32, Shaped

from score_flow.config.hints import ValueRange

FIRST = 256  # images by which a data set is told from another without reading it whole
MAX_CLASSES = 1_000_000
NAMED = 1000  # classes at most whose names and counts are kept beside every state; of more, their digest is
PATH = "config.data.source.path"

# {"image": uint8 (b, h, w, c)}, or float32 moments of latents (b, h, w, 2 c); when labelled, {"label": int32 (b,)}
Examples = dict[str, np.ndarray]


@runtime_checkable
class Source(Protocol):
    """Numbered examples with random access: what `read` returns depends on its argument alone.

    A source may also have `label` (n,) int32, `classes` (their names), `unlabelled` (why it has no labels, where it
    seems to have some), `notes` (what a person should know of it at the start), `test_share` (see splits.Part),
    `range` (lowest and highest value of real-valued images, whose levels are 0), `decoding` (see encoded.decided) and
    `features` (n, patches, channels) float16, which `read` does not give (see features.WithFeatures).
    """

    name: str
    image_shape: tuple[int, int, int]  # (h, w, c)
    levels: int  # pixel values are 0 .. levels - 1; 0 = they are float32 numbers
    num_classes: int  # labels are 0 .. num_classes - 1; 0 = unlabelled

    def __len__(self) -> int: ...

    def read(self, indices: Int[np.ndarray, "b"]) -> Examples: ...


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """A data set held in memory, or mapped into it."""

    name: str
    image: Shaped[np.ndarray, "n h w c"]  # uint8, or float32 with a range
    label: Int32[np.ndarray, "n"] | None = None
    levels: int = 256
    num_classes: int = 0
    unlabelled: str = ""
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    range: ValueRange = ()
    test_share: float | None = None
    decoding: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    features: Float16[np.ndarray, "n p d"] | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.image.shape[1:]

    def __len__(self) -> int:
        return len(self.image)

    def read(self, indices: Int[np.ndarray, "b"]) -> Examples:
        examples = {"image": self.image[indices]}
        return examples if self.label is None else examples | {"label": self.label[indices]}


def checksum(source: Source, limit: int | None = None, chunk: int = 1024) -> str:
    """Name the content: sha256 over shape, levels, pixels and labels of the first `limit` examples (all).

    The chunk size bounds the memory and does not enter the result.
    """
    return _sums(source, limit, chunk)[0]


def _sums(source: Source, limit: int | None, chunk: int) -> tuple[str, str]:
    """Return the checksum of the content, and one of its pixels alone."""
    n = len(source) if limit is None else min(limit, len(source))
    image, label = hashlib.sha256(), hashlib.sha256()
    for start in range(0, n, chunk):
        examples = source.read(np.arange(start, min(start + chunk, n)))
        image.update(examples["image"].tobytes())
        label.update(examples.get("label", np.empty(0)).astype("<i4").tobytes())
    header = repr((len(source), n, *source.image_shape, source.levels, source.num_classes)).encode()
    return hashlib.sha256(header + image.digest() + label.digest()).hexdigest()[:16], image.hexdigest()[:16]


def facts(source: Source) -> dict[str, Any]:
    """Return what tells a data set from another, ready for JSON; it depends on the content and not on where that lies.

    `classes` and `counts` are None where nobody knows them, or there are too many to keep; `labels` is a digest of all
    names and labels. `first` is the checksum of the first FIRST examples, `pixels` of their images alone.
    """
    label, names = getattr(source, "label", None), list(getattr(source, "classes", ()))
    first, pixels = _sums(source, FIRST, FIRST)
    few = source.num_classes <= NAMED
    return {
        "name": source.name,
        "n": len(source),
        "image_shape": [int(size) for size in source.image_shape],
        "levels": int(source.levels),
        "range": [float(value) for value in getattr(source, "range", ())] or None,
        "num_classes": int(source.num_classes),
        "classes": names if names and few else None,
        "counts": counts(source) if few else None,
        "labels": None if label is None else _digest_of_labels(names, label),
        "first": first,
        "pixels": pixels,
        "test_share": getattr(source, "test_share", None),
        "decoding": dict(getattr(source, "decoding", ())),
    }


def counts(source: Source) -> list[int] | None:
    """Count the images of each class; None where that would take reading them all."""
    label = getattr(source, "label", None)
    return None if label is None else np.bincount(label, minlength=source.num_classes).tolist()


def _digest_of_labels(names: list[str], label: Int32[np.ndarray, "n"]) -> str:
    digest = hashlib.sha256(repr(names).encode())
    digest.update(np.ascontiguousarray(label, "<i4").tobytes())
    return digest.hexdigest()[:16]


def shuffled(n: int) -> Int[np.ndarray, "n"]:
    """Return the order in which examples are taken where not all are: always the same."""
    return np.random.RandomState(0).permutation(n)  # legacy generator: its stream is frozen for ever
