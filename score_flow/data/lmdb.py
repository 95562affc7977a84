"""LSUN as published: LMDB environments of encoded images, read in place by the package lmdb (Yu et al. 2015)."""

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from score_flow.data import splits
from score_flow.data.base import PATH, Source
from score_flow.data.blobs import open_blobs
from score_flow.data.encoded import EncodedSource, OnError, takes_reader
from score_flow.data.formats import index
from score_flow.data.images import SECTION, Blob, File, ImageReader
from score_flow.errors import UserError, check_choice, one_line, printable
from score_flow.runs.files import existing_path

DATA = "data.mdb"
PUBLISHED = re.compile(r"^(?P<category>.+)_(?P<split>train|val|test)_lmdb$")


@takes_reader
def build(
    split: splits.Split = "train",
    path: str = "",
    *,
    reader: ImageReader,
    on_error: OnError = "stop",
    test_share: splits.TestShare = 0.1,
) -> Source:
    """The images in an LMDB environment, or in those of a folder: bedroom_train_lmdb, bedroom_val_lmdb, and so on.

    `path` is an environment (a folder with data.mdb in it), or a folder of LSUN's, of which each category is a class if
    there are several. Without a test split, `test_share` of the images is held out. Images are in the order of their
    keys. Needs lmdb (the extra `lmdb`). Raises UserError.
    """
    check_choice("split", split, splits.NAMES)
    place = existing_path(path, PATH)
    train, test = _find(place)
    classes = tuple(sorted(train)) if len(train) > 1 else ()
    stem = Path(os.path.abspath(path)).name
    if test and split == "test":
        return _open(f"{stem}/test", test, classes, reader, on_error)
    whole = _open(f"{stem}/train", train, classes, reader, on_error)
    return whole if test else splits.share_out(whole, split, test_share, stem)


def _find(place: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return the environments of the categories of both splits."""
    if (place / DATA).is_file():
        return {place.name: place}, {}
    there = [folder for folder in sorted(place.iterdir()) if (folder / DATA).is_file()] if place.is_dir() else []
    found = [(match["category"], match["split"], folder) for folder in there if (match := PUBLISHED.match(folder.name))]
    train = {category: folder for category, split, folder in found if split == "train"}
    test = {
        name: {category: folder for category, split, folder in found if split == name} for name in splits.NAMES["test"]
    }
    if not train:
        beside = ", ".join(printable(folder.name) for folder in there[:5]) or "none"
        raise UserError(f"{PATH}: {place} has no {DATA}, and no NAME_train_lmdb with one in it; environments: {beside}")
    return train, next((environments for environments in test.values() if environments), {})


@dataclasses.dataclass(frozen=True, eq=False)
class Values(Sequence[File]):
    """The values of some environments; `keys` are those of one after another, joined."""

    folders: Sequence[Path]
    number: np.ndarray
    ends: np.ndarray
    keys: bytes

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> File:
        folder = self.folders[self.number[i]]
        key = self.keys[int(self.ends[i - 1]) if i else 0 : int(self.ends[i])]
        return Blob(
            f"{folder}: {printable(key.decode('ascii', 'replace'))}", _guarded(folder, lambda: self._value(folder, key))
        )

    def kept(self, kind: str, scan: Callable[[], index.Arrays]) -> index.Arrays:
        """Return scan(), or what it returned before of these environments."""
        return index.kept([folder / DATA for folder in self.folders], kind, scan)

    def _value(self, folder: Path, key: bytes) -> bytes:
        with _environment(folder.resolve()).begin() as transaction:
            return transaction.get(key) or b""


@functools.lru_cache(maxsize=256)
def _environment(folder: Path) -> Any:
    """Open an environment, which a process may do once at a time; raises UserError for one that is cut off."""
    try:
        import lmdb
    except ImportError as error:
        raise UserError(f"{SECTION} (name = lmdb): package missing; run: pip install lmdb") from error
    found = lmdb.open(str(folder), readonly=True, lock=False, readahead=False, create=False)
    needed, there = (found.info()["last_pgno"] + 1) * found.stat()["psize"], (folder / DATA).stat().st_size
    if there < needed:  # to read behind the end of a mapped file ends the process
        found.close()
        raise UserError(f"{folder / DATA}: has {there} bytes of {needed}; cut off?")
    return found


def _guarded(folder: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except UserError:
        raise
    except Exception as error:  # damaged files raise lmdb's own
        raise UserError(f"{folder}: no readable LMDB environment; cut off or damaged? ({one_line(error)})") from error


def _open(
    name: str, folders: dict[str, Path], classes: tuple[str, ...], reader: ImageReader, on_error: OnError
) -> EncodedSource:
    """Open environments by category; of several, the categories are the classes."""
    places = [folders[category] for category in sorted(folders)]
    found = index.kept([folder / DATA for folder in places], "lmdb", lambda: _scan(places))
    values = Values(places, found["number"], found["ends"], found["keys"].tobytes())
    strange = sorted(set(folders) - set(classes)) if classes else []
    label = None
    if classes and not strange:
        label = np.array([classes.index(category) for category in sorted(folders)], np.int32)[found["number"]]
    return open_blobs(
        name, values, reader, on_error, size=int(found["size"].sum()), label=label,
        classes=classes if label is not None else (),
        unlabelled=f"{places[0].parent}: no training images of {', '.join(strange)}" if strange else "",
    )  # fmt: skip


def _scan(folders: Sequence[Path]) -> index.Arrays:
    """Return the keys of all values, joined, where each ends, the bytes of the value, and the number of its folder."""
    keys, sizes, number = [], [], []
    for k, folder in enumerate(folders):
        for key, size in _guarded(folder, lambda folder=folder: _items(folder.resolve())):
            keys.append(key)
            sizes.append(size)
            number.append(k)
    if not keys:
        raise UserError(f"{folders[0]}: an environment of no images")
    ends = np.cumsum([len(key) for key in keys], dtype=np.int64)
    joined = np.frombuffer(b"".join(keys), np.uint8)
    return {"keys": joined, "ends": ends, "size": np.array(sizes, np.int64), "number": np.array(number, np.int32)}


def _items(folder: Path) -> list[tuple[bytes, int]]:
    with _environment(folder).begin(buffers=True) as transaction:  # sizes of values, which are not copied
        return [(bytes(key), len(value)) for key, value in transaction.cursor()]
