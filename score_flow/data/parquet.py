"""Parquet files with a column of encoded images, as Hugging Face's datasets are stored; read in place by pyarrow."""

import collections
import json
import os
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from score_flow.data import shards, splits
from score_flow.data.base import MAX_CLASSES, PATH, Source
from score_flow.data.blobs import open_blobs
from score_flow.data.encoded import OnError, takes_reader
from score_flow.data.formats import index
from score_flow.data.images import SECTION, Blob, File, ImageReader
from score_flow.errors import UserError, check_choice, one_line, printable
from score_flow.runs.files import regular_file, said

FILES = shards.Kind(re.compile(r"\.parquet$"), "parquet file")
IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture")
LABELS = ("label", "labels", "fine_label", "class", "cls", "target")
HELD = 2 << 30  # bytes of unpacked row groups that are held
LARGEST = 4 << 30  # bytes that a row group may unpack to


@takes_reader
def build(
    split: splits.Split = "train",
    path: str = "",
    *,
    reader: ImageReader,
    image_column: str = "",
    label_column: str = "",
    on_error: OnError = "stop",
    test_share: splits.TestShare = 0.1,
) -> Source:
    """The images in a column of parquet files: bytes, or Hugging Face's {bytes, path}; labels and their names if any.

    `path` is a file, a folder, or a pattern; the splits are files, or folders, called so; without a test split,
    `test_share` of the images is held out. The columns are those that the file says are images and classes, else are
    found by their usual names. A row group is unpacked whole to read an image of it, and the last ones are held: of a
    data set that is larger than memory, --mode=pack makes one that is read faster. Needs pyarrow (the extra `parquet`).
    Raises UserError.
    """
    check_choice("split", split, splits.NAMES)
    train, test, notes = shards.find(path, FILES)
    stem = Path(os.path.abspath(path)).name
    columns = image_column, label_column
    opened, tested = _Table(train, *columns), _Table(test, *columns) if test else None
    classes = opened.classes or tuple(map(str, range(max(table.classes_seen for table in (opened, tested) if table))))

    def source(name: str, table: _Table, notes: tuple[str, ...]) -> Source:
        label, why = table.labels(classes)
        return open_blobs(
            name, table, reader, on_error, size=table.size, label=label, classes=classes if label is not None else (),
            unlabelled=why, notes=(*notes, *table.notes),
        )  # fmt: skip

    if tested and split == "test":
        return source(f"{stem}/test", tested, ())
    whole = source(f"{stem}/train", opened, notes)
    return whole if tested else splits.share_out(whole, split, test_share, stem)


class _Table(Sequence[File]):
    """The rows of some files: each item is the bytes of the image of one."""

    def __init__(self, files: Sequence[Path], image: str, label: str):
        self._files, self._lock = files, threading.Lock()
        self._held: collections.OrderedDict[tuple[int, int], Any] = collections.OrderedDict()
        about = [_guarded(file, lambda file: _pyarrow().read_metadata(regular_file(file, PATH))) for file in files]
        schema = _guarded(files[0], lambda file: about[0].schema.to_arrow_schema())
        self._features = _features(schema)
        self._image = image or _choose(files[0], schema, self._features, "Image", IMAGES, "image_column")
        self._label = label or _choose(files[0], schema, self._features, "ClassLabel", LABELS, "")
        for name in filter(None, (self._image, self._label)):
            check_choice(f"{SECTION}: a column of {files[0].name}", name, schema.names)
        groups = [(f, g, md.row_group(g)) for f, md in enumerate(about) for g in range(md.num_row_groups)]
        for f, _, group in groups:
            if group.total_byte_size > LARGEST:
                raise UserError(f"{files[f]}: a row group of {said(group.total_byte_size)}; allowed: {said(LARGEST)}")
        self._groups = [(f, g) for f, g, _ in groups]
        self._ends = np.cumsum([group.num_rows for *_, group in groups], dtype=np.int64)
        self.size = sum(group.total_byte_size for *_, group in groups)
        if not len(self):
            raise UserError(f"{files[0]}: holds no rows")
        large = f"{said(self.size)}, of which {said(HELD)} are held: --mode=pack makes a data set that is read faster"
        self.notes = (large,) if self.size > HELD else ()
        self._raw = self._read_labels()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, i: int) -> File:
        k = int(np.searchsorted(self._ends, i, side="right"))
        row = i - int(self._ends[k - 1] if k else 0)
        column = self._group(*self._groups[k])
        content = _guarded(self._files[self._groups[k][0]], lambda _: _bytes(column[row]))
        place = f"{self._files[self._groups[k][0]]}: row {i}"
        if not isinstance(content, bytes):  # which the reader refuses, as any other that is no image
            return Blob(f"{place}, without bytes in {printable(self._image)}", b"")
        return Blob(place, content)

    def kept(self, kind: str, scan: Callable[[], index.Arrays]) -> index.Arrays:
        """Return scan(), or what it returned before of this column."""
        return index.kept(self._files, f"{kind} {self._image}", scan)

    def _group(self, file: int, group: int) -> Any:
        """Return the column of images of a row group."""
        with self._lock:
            found = self._held.pop((file, group), None)
            if found is None:
                found = _guarded(self._files[file], lambda path: _column(path, group, self._image))
            self._held[file, group] = found  # the newest last
            while len(self._held) > 1 and sum(column.nbytes for column in self._held.values()) > HELD:
                self._held.popitem(last=False)
            return found

    # ---- labels

    def _read_labels(self) -> np.ndarray | None:
        """Return the column of labels of all files, numbers or text."""
        if not self._label:
            return None
        read = [_guarded(file, lambda path: _column(path, None, self._label).to_pylist()) for file in self._files]
        return np.array([value for values in read for value in values])

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes: those that the file has, or the different texts of a column of text."""
        names = self._features.get(self._label, {}).get("names")
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return tuple(map(printable, names))
        return tuple(np.unique(self._raw).tolist()) if self._raw is not None and self._raw.dtype.kind == "U" else ()

    @property
    def classes_seen(self) -> int:
        """The largest label + 1."""
        numbers = self._raw is not None and self._raw.dtype.kind in "iu"
        return min(max(int(self._raw.max()) + 1, 0), MAX_CLASSES) if numbers else 0

    def labels(self, classes: tuple[str, ...]) -> tuple[Int32[np.ndarray, "n"] | None, str]:
        """Return the labels of all rows among the classes; or None and why, where there seem to be some."""
        raw, place = self._raw, f"{self._files[0]}: {self._label}"
        if raw is None:
            return None, ""
        if raw.dtype.kind == "U":
            number = {name: i for i, name in enumerate(classes)}
            strange = sorted(set(raw.tolist()) - set(number))
            if strange:
                return None, f"{place} has {printable(strange[0])}; allowed, from the training images: {classes[:10]}"
            return np.array([number[name] for name in raw.tolist()], np.int32), ""
        if raw.ndim != 1 or raw.dtype.kind not in "iu":
            return None, f"{place} holds {raw.dtype}; allowed: one whole number a row, or text"
        if raw.min() < 0 or raw.max() >= min(len(classes), MAX_CLASSES):
            return None, f"{place} has labels from {raw.min()} to {raw.max()}; allowed: 0 to {len(classes) - 1}"
        return raw.astype(np.int32), ""


# ---- pyarrow


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{SECTION} (name = parquet): package missing; run: pip install pyarrow") from error
    return pyarrow.parquet


def _guarded(file: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(file)
    except UserError:
        raise
    except Exception as error:  # hostile bytes raise almost anything
        raise UserError(f"{file}: no readable parquet file; cut off or damaged? ({one_line(error)})") from error


def _column(file: Path, group: int | None, name: str) -> Any:
    with _pyarrow().ParquetFile(file, page_checksum_verification=True) as opened:
        table = opened.read(columns=[name]) if group is None else opened.read_row_group(group, columns=[name])
    return table.column(name)


def _bytes(value: Any) -> Any:
    """Return the value of a scalar, or of its member `bytes`."""
    if hasattr(value, "keys"):  # a struct
        return value["bytes"].as_py() if value.is_valid and "bytes" in list(value.keys()) else None
    return value.as_py()


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Return what Hugging Face's metadata say of each column, if they say anything that can be read."""
    try:
        found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {name: about for name, about in found.items() if isinstance(about, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _choose(
    file: Path, schema: Any, features: dict[str, dict[str, Any]], kind: str, names: Sequence[str], needed: str
) -> str:
    """Return the column of a kind: by the metadata, then by its usual names; "" for none that is not needed."""
    said_so = [name for name in schema.names if features.get(name, {}).get("_type") == kind]
    usual = [name for name in names if name in (said_so or schema.names)]
    if found := (usual or said_so):
        return found[0]
    if needed:
        got = ", ".join(map(printable, schema.names[:10])) or "none"
        raise UserError(f"{file}: no column of images; got the columns {got}; name it: {SECTION}.{needed}")
    return ""
