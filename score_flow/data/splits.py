"""Which part of a data set is its test split: a folder or a file of its own, or a fixed share that is held out."""

import dataclasses
import functools
import weakref
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Int, Int32

from score_flow.config.hints import Given, ValueRange
from score_flow.config.limits import Limits
from score_flow.data.base import PATH, Examples, Source, shuffled
from score_flow.errors import UserError

# What a split may be called, in any case of letters, the better name first.
NAMES = {"train": ("train",), "test": ("test", "val", "valid", "validation")}
SHARE = "config.data.source.test_share"

Split = Annotated[str, Given("train or test, by what the data are for")]
TestShare = Annotated[float, Limits(least=0, below=1)]  # of images held out where there is no test split


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Some examples of a source that has no test split of its own; `test_share` is the share that is held out."""

    name: str
    whole: Source
    chosen: Int[np.ndarray, "n"]
    test_share: float
    notes: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.whole.image_shape

    @property
    def levels(self) -> int:
        return self.whole.levels

    @property
    def num_classes(self) -> int:
        return self.whole.num_classes

    @property
    def range(self) -> ValueRange:
        return getattr(self.whole, "range", ())

    @property
    def decoding(self) -> Mapping[str, Any]:
        return getattr(self.whole, "decoding", {})

    @property
    def classes(self) -> tuple[str, ...]:
        return getattr(self.whole, "classes", ())

    @property
    def unlabelled(self) -> str:
        return getattr(self.whole, "unlabelled", "")

    @functools.cached_property
    def label(self) -> Int32[np.ndarray, "n"] | None:
        label = getattr(self.whole, "label", None)
        return None if label is None else label[self.chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    def read(self, indices: Int[np.ndarray, "b"]) -> Examples:
        return self.whole.read(self.chosen[indices])


def share_out(whole: Source, split: str, share: float, stem: str) -> Part:
    """Make the training or the test part of a source without a test split, by a permutation that depends on n alone.

    The test part is `share` of the images, at least one; a share of 0, and a single image, leave none to hold out: the
    test part is then the training images, and its name says so. `stem` begins the name of what is held out.
    """
    n, notes = len(whole), getattr(whole, "notes", ())
    n_test = n_held_out(n, share)
    if not n_test:
        name = whole.name if split == "train" else f"{whole.name} (training images)"
        said = f"no test split: what is said of it is of training images ({SHARE} = {share:g}, {n} images)"
        return Part(name, whole, np.arange(n), share, (*notes, said))
    test = np.zeros(n, bool)
    test[shuffled(n)[:n_test]] = True
    said = f"no test split: {n_test} of {n} images are held out as one ({SHARE} = {share:g}; 0: train on all)"
    name = whole.name if split == "train" else f"{stem}/test (held out: {100 * share:g} % of {n} images)"
    return Part(name, whole, np.flatnonzero(test == (split == "test")), share, (*notes, said))


def n_held_out(n: int, share: float) -> int:
    """Count those of n images that are held out: their share, at least one, but never all."""
    return min(max(round(share * n), 1), n - 1) if share > 0 else 0


def find(folder: Path, split: str, suffix: str = "") -> Path | None:
    """Find the sub-folder of a split, or with a suffix its file; raises UserError where two could be meant."""
    there = [entry for entry in sorted(folder.iterdir()) if (entry.is_file() if suffix else entry.is_dir())]
    for name in NAMES[split]:
        found = [entry for entry in there if entry.name.lower() == name + suffix]
        if len(found) > 1:
            raise UserError(f"{PATH}: {folder} has {' and '.join(f.name for f in found)}; allowed: one of them")
        if found:
            return found[0]
    return None


def both(train: Path | None, test: Path | None) -> tuple[Path | None, Path | None]:
    """Return the two splits; a test split that is the training split by another name (a link) is none."""
    return train, None if train and test and train.samefile(test) else test


_open_now: "weakref.WeakValueDictionary[Hashable, Any]" = weakref.WeakValueDictionary()


def shared(key: Hashable, make: Callable[[], Any]) -> Any:
    """make(), or what it made for this key if that is still in use: both parts of a source see one reading of it."""
    found = _open_now.get(key)
    if found is None:
        found = _open_now[key] = make()
    return found
