"""Image arrays in `.npz` files, read whole into memory and never unpickled."""

from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import Int32, Shaped

from score_flow.config.hints import ValueRange, refuse_empty_range
from score_flow.config.limits import Limits
from score_flow.data import batches, splits
from score_flow.data.base import MAX_CLASSES, PATH, ArraySource, Source
from score_flow.runs import files
from score_flow.types import UserError, check_choice

IMAGE_NAMES = ("image", "images", "x", "arr_0")
LABEL_NAMES = ("label", "labels", "y")
KERAS = ("x_train", "y_train", "x_test", "y_test")
LIMIT = "config.data.source.max_bytes ="


def build(
    split: splits.Split = "train",
    path: str = "",
    levels: Annotated[int, Limits(least=2, most=256)] = 256,
    max_bytes: Annotated[int, Limits(least=1)] = 16 << 30,
    test_share: splits.TestShare = 0.1,
    range: ValueRange = (),
) -> Source:
    """Images uint8 (n, h, w[, c]) named image, images, x or arr_0; labels (n,) named label, labels or y, if any.

    With a `range`, (lowest, highest), images are numbers of any kind within it, not levels: float32, 16 bit.

    `path` is one file, a folder of train.npz and test.npz (or val, valid, validation; in any case of letters), or a
    name containing "{split}"; a file of keras, with x_train, y_train, x_test and y_test; or the folder of ImageNet's
    batches at 32 or 64 pixels, train_data_batch_1.npz and so on. Without a test file, `test_share` of the training
    images is held out as one.

    The number of classes is the largest label of the train and test files + 1, for the splits to agree. Labels that
    are none leave the images unlabelled, which says why. A file with an entry that unpacks to more than `max_bytes`,
    or is packed more tightly than images are, is refused before it is read. Raises UserError.
    """
    check_choice("split", split, splits.NAMES)
    refuse_empty_range("config.data.source.range", range)
    if found := _batches(path, split, max_bytes):
        if range:
            raise UserError(
                f"config.data.source.range: got {range}; allowed for ImageNet's batches: none, they are levels"
            )
        whole, has_test = found
        return whole if has_test else splits.share_out(whole, split, test_share, whole.name)
    train, test = _files(path)
    if train and not test and KERAS[0] in files.names_in(train, max_bytes, LIMIT):
        return _keras(train, split, max_bytes, levels, range)
    if test and split == "test":
        return read(test, levels, max_bytes, _num_classes((train, test), max_bytes), range)
    if train is None:
        raise UserError(_missing(path))
    if test:
        return read(train, levels, max_bytes, _num_classes((train, test), max_bytes), range)
    about = train.stat()
    key = "arrays", train.resolve(), about.st_size, about.st_mtime_ns, levels, max_bytes, range
    whole = splits.shared(key, lambda: read(train, levels, max_bytes, range=range))
    return splits.share_out(whole, split, test_share, whole.name)


def read(
    file: str | Path, levels: int = 256, max_bytes: int = 16 << 30, num_classes: int = 0, range: ValueRange = ()
) -> ArraySource:
    """Read all images of one file; of at least so many classes. Raises UserError."""
    file = files.regular_file(file, PATH)
    with files.opened_arrays(file, max_bytes, LIMIT) as archive:
        image = _images(file, archive, levels, range)
        label, reason = _labels(archive, len(image))
    rest = dict(levels=0 if range else levels, range=range)
    if label is None:
        return ArraySource(file.name, image, **rest, unlabelled=reason and f"{file}: {reason}")
    return ArraySource(file.name, image, label, **rest, num_classes=max(num_classes, int(label.max()) + 1))


def _batches(path: str, split: str, max_bytes: int) -> tuple[Source, bool] | None:
    """Return the split of ImageNet's batches, and whether there are test images; None for other files."""
    place = Path(path).expanduser()
    if place.is_dir():
        train, test = batches.find(place)
    elif place.is_file() and {"data", "labels"} <= set(files.names_in(place, max_bytes, LIMIT)):
        train, test = [place], []
    else:
        return None
    if not train:
        return None
    chosen, others = (test, train) if test and split == "test" else (train, test)
    name = f"{place.resolve().name}/{'test' if chosen is test else 'train'}"
    return batches.read(name, chosen, others, train, max_bytes, LIMIT), bool(test)


def _keras(file: Path, split: str, max_bytes: int, levels: int, range: ValueRange) -> ArraySource:
    """Read a split of a file as keras keeps them: both in one."""
    with files.opened_arrays(file, max_bytes, LIMIT) as archive:
        lacking = [name for name in KERAS if name not in archive.files]
        if lacking:
            raise UserError(f"{file}: no {', '.join(lacking)} in it; got {files.named(archive)}")
        image = _images(file, archive, levels, range, (f"x_{split}",))
        label, reason = _labels(archive, len(image), (f"y_{split}",))
        other, _ = _labels(archive, None, ("y_train" if split == "test" else "y_test",))
    name, rest = f"{file.name}/{split}", dict(levels=0 if range else levels, range=range)
    if label is None or other is None:
        return ArraySource(name, image, **rest, unlabelled=f"{file}: {reason or 'labels of one split alone'}")
    return ArraySource(name, image, label, **rest, num_classes=int(max(label.max(), other.max(initial=0))) + 1)


def _files(path: str) -> tuple[Path | None, Path | None]:
    """Return the training and the test file, as far as there are any."""
    if "{split}" in path:
        return splits.both(*(_by_pattern(path, split) for split in splits.NAMES))
    found = files.existing_path(path, PATH)
    if not found.is_dir():
        return files.regular_file(found, PATH), None
    return splits.both(*(splits.find(found, split, ".npz") for split in splits.NAMES))


def _by_pattern(path: str, split: str) -> Path | None:
    names = [spelt for name in splits.NAMES[split] for spelt in (name, name.capitalize(), name.upper())]
    possible = [Path(path.replace("{split}", name)).expanduser() for name in names]
    return next((file for file in possible if file.is_file()), None)


def _missing(path: str) -> str:
    file = Path(path.replace("{split}", "train") if "{split}" in path else f"{path}/train.npz").expanduser()
    there = sorted(found.name for found in file.parent.glob("*.npz"))
    return f"{PATH}: no such file: {file}; .npz files beside it: {', '.join(there[:10]) or 'none'}"


def _num_classes(both: tuple[Path | None, ...], max_bytes: int) -> int:
    """Return the largest label of several files + 1."""
    largest = -1
    for file in filter(None, both):
        with files.opened_arrays(file, max_bytes, LIMIT) as archive:
            label, _ = _labels(archive)
        largest = max(largest, -1 if label is None else int(label.max(initial=-1)))
    return largest + 1


def _pick(file: Path, archive: files.NpzFile, names: tuple[str, ...]) -> np.ndarray | None:
    found = [name for name in names if name in archive.files]
    if len(found) > 1:
        raise UserError(f"{file}: got {' and '.join(found)}; allowed: only one of {', '.join(names)}")
    return np.asarray(archive[found[0]]) if found else None


def _images(
    file: Path, archive: files.NpzFile, levels: int, range: ValueRange, names: tuple[str, ...] = IMAGE_NAMES
) -> Shaped[np.ndarray, "n h w c"]:
    image = _pick(file, archive, names)
    if image is None:
        raise UserError(f"{file}: no images in it; got {files.named(archive)}; allowed names: {', '.join(names)}")
    if image.dtype != np.uint8 and not range:
        numbers = ", or numbers with config.data.source.range=(lowest, highest)" if image.dtype.kind in "fiu" else ""
        raise UserError(f"{file}: images are {image.dtype}; allowed: uint8{numbers}")
    if image.dtype.kind not in "fiu":
        raise UserError(f"{file}: images are {image.dtype}; allowed: numbers")
    shape = image.shape
    image = image[..., None] if image.ndim == 3 else image
    if image.ndim != 4 or not 1 <= image.shape[3] <= 4:
        raise UserError(f"{file}: images have shape {shape}; allowed: (n, h, w) or (n, h, w, c) with c = 1 to 4, last")
    if image.size == 0:
        raise UserError(f"{file}: images have shape {shape}; allowed: at least one image of at least one pixel")
    if range:
        if not range[0] <= image.min() <= image.max() <= range[1]:  # nor is it with a value that is no number
            got = f"numbers from {image.min():g} to {image.max():g}"
            raise UserError(f"{file}: {got}; allowed with config.data.source.range = {range}: those in it")
        return image.astype(np.float32, copy=False)
    if image.max() >= levels:
        raise UserError(
            f"{file}: pixel values reach {image.max()}; allowed with config.data.source.levels = {levels}: "
            f"0 to {levels - 1}"
        )
    return image


def _labels(
    archive: files.NpzFile, n: int | None = None, names: tuple[str, ...] = LABEL_NAMES
) -> tuple[Int32[np.ndarray, "n"] | None, str]:
    """Return the labels (of n images), or None and why what is called so is none: only who needs labels has to mind."""
    found = [name for name in names if name in archive.files]
    if len(found) != 1:
        return None, f"got {' and '.join(found)}; allowed: only one of {', '.join(names)}" if found else ""
    label = np.asarray(archive[found[0]])
    label = label[:, 0] if label.ndim == 2 and label.shape[1] == 1 else label  # keras has a column of them
    if label.ndim != 1 or label.dtype.kind not in "iu":
        return None, f"labels are {label.dtype} of shape {label.shape}; allowed: integers of shape (n,)"
    if n is not None and len(label) != n:
        return None, f"got {len(label)} labels for {n} images; allowed: one each"
    if label.size and not 0 <= label.min() <= label.max() < MAX_CLASSES:
        return None, f"labels run from {label.min()} to {label.max()}; allowed: 0 to num_classes - 1 < {MAX_CLASSES}"
    return label.astype(np.int32), ""
