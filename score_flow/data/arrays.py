"""Image arrays in `.npz` files, read whole into memory and never unpickled."""

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from score_flow.data.base import ArraySource, existing_path, one_line
from score_flow.types import UserError

IMAGE_NAMES = ("image", "images", "x", "arr_0")
LABEL_NAMES = ("label", "labels", "y")
SPLITS = ("train", "test")


def build(split: str = "train", path: str = "", levels: int = 256, max_bytes: int = 32 << 30) -> ArraySource:
    """Images uint8 (n, h, w[, c]) named image, images, x or arr_0; labels (n,) named label, labels or y, if any.

    `path` is one file (then every split reads it), a folder of `<split>.npz`, or a name containing "{split}". The
    number of classes is the largest label of the train and test files + 1, for the splits to agree. A file with an
    entry that unpacks to more than `max_bytes` is refused before it is read. Raises UserError.
    """
    if not 2 <= levels <= 256:
        raise UserError(f"data.levels: got {levels}; allowed: 2 to 256")
    file = _split_file(path, split)
    if not file.is_file():
        there = sorted(found.name for found in file.parent.glob("*.npz"))
        raise UserError(f"data.path: no such file: {file}; .npz files beside it: {', '.join(there) or 'none'}")
    with _opened(file, max_bytes) as archive:
        image, label = _images(file, archive, levels), _labels(file, archive)
    if label is None:
        return ArraySource(file.name, image, levels=levels)
    if len(label) != len(image):
        raise UserError(f"{file}: got {len(label)} labels for {len(image)} images; allowed: one each")
    return ArraySource(file.name, image, label, levels, num_classes=_num_classes(path, max_bytes))


def _split_file(path: str, split: str) -> Path:
    if "{split}" in path:
        return Path(path.replace("{split}", split)).expanduser()
    found = existing_path(path)
    return found / f"{split}.npz" if found.is_dir() else found


def _num_classes(path: str, max_bytes: int) -> int:
    largest = -1
    for file in {_split_file(path, split) for split in SPLITS}:
        if file.is_file():
            with _opened(file, max_bytes) as archive:
                label = _labels(file, archive)
            largest = max(largest, -1 if label is None else int(label.max(initial=-1)))
    return largest + 1


@contextlib.contextmanager
def _opened(file: Path, max_bytes: int) -> Iterator[np.lib.npyio.NpzFile]:
    """The archive, its table of entries checked; whatever goes wrong while it is read becomes one line."""
    try:
        with zipfile.ZipFile(file) as archive:
            largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        if largest.file_size > max_bytes:
            got = f"{largest.filename} unpacks to {largest.file_size} bytes"
            raise UserError(f"{file}: {got}; allowed: data.max_bytes = {max_bytes}")
        with np.load(file, allow_pickle=False) as archive:
            if len(set(archive.files)) < len(archive.files):
                raise UserError(f"{file}: two arrays of one name; got {', '.join(archive.files)}")
            yield archive
    except UserError:
        raise
    except Exception as error:  # hostile bytes raise almost anything: zip, zlib, header, memory and value errors
        raise UserError(f"{file}: not a readable .npz of plain arrays ({one_line(error)})") from error


def _pick(file: Path, archive: np.lib.npyio.NpzFile, names: tuple[str, ...]) -> np.ndarray | None:
    found = [name for name in names if name in archive.files]
    if len(found) > 1:
        raise UserError(f"{file}: got {' and '.join(found)}; allowed: only one of {', '.join(names)}")
    return np.asarray(archive[found[0]]) if found else None


def _images(file: Path, archive: np.lib.npyio.NpzFile, levels: int) -> UInt8[np.ndarray, "n h w c"]:
    image = _pick(file, archive, IMAGE_NAMES)
    if image is None:
        got = ", ".join(archive.files[:10]) or "nothing"
        raise UserError(f"{file}: no images in it; got {got}; allowed names: {', '.join(IMAGE_NAMES)}")
    if image.dtype != np.uint8:
        raise UserError(f"{file}: images are {image.dtype}; allowed: uint8")
    shape = image.shape
    image = image[..., None] if image.ndim == 3 else image
    if image.ndim != 4 or not 1 <= image.shape[3] <= 4:
        raise UserError(f"{file}: images have shape {shape}; allowed: (n, h, w) or (n, h, w, c) with c = 1 to 4, last")
    if image.size == 0:
        raise UserError(f"{file}: images have shape {shape}; allowed: at least one image of at least one pixel")
    if image.max() >= levels:
        raise UserError(
            f"{file}: pixel values reach {image.max()}; allowed with data.levels = {levels}: 0 to {levels - 1}"
        )
    return image


def _labels(file: Path, archive: np.lib.npyio.NpzFile) -> Int32[np.ndarray, "n"] | None:
    label = _pick(file, archive, LABEL_NAMES)
    if label is None:
        return None
    if label.ndim != 1 or label.dtype.kind not in "iu":
        raise UserError(f"{file}: labels are {label.dtype} of shape {label.shape}; allowed: integers of shape (n,)")
    if label.size and not 0 <= label.min() <= label.max() < np.iinfo(np.int32).max:
        raise UserError(f"{file}: labels run from {label.min()} to {label.max()}; allowed: 0 to num_classes - 1")
    return label.astype(np.int32)
