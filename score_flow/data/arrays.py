"""Image arrays in `.npz` files, read whole into memory and never unpickled."""

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import Int32, Shaped

from score_flow.config.hints import ValueRange, refuse_empty_range
from score_flow.config.limits import Limits
from score_flow.data import batches, fitting, splits
from score_flow.data.base import MAX_CLASSES, PATH, ArraySource, Source
from score_flow.data.formats import imagenet_pickle
from score_flow.errors import UserError, check_choice
from score_flow.runs import files, places

IMAGE_NAMES = ("image", "images", "x", "arr_0")
LABEL_NAMES = ("label", "labels", "y")
KERAS = ("x_train", "y_train", "x_test", "y_test")
SECTION = "config.data.source"
LIMIT = f"{SECTION}.max_bytes ="


def build(
    split: splits.Split = "train",
    path: str = "",
    levels: Annotated[int, Limits(least=2, most=256)] = 256,
    max_bytes: Annotated[int, Limits(least=1)] = 16 << 30,
    test_share: splits.TestShare = 0.1,
    range: ValueRange = (),
    pad_to: fitting.PadTo = 0,
) -> Source:
    """Images uint8 (n, h, w[, c]) named image, images, x or arr_0; labels (n,) named label, labels or y, if any.

    With `range`, the declared lowest and highest value, they are numbers of any kind, and have no levels. `pad_to`
    adds the lowest value around each, up to (h, w). There may be 1 to 16 channels.

    `path` is one file, a folder of train.npz and test.npz (or val, valid, validation; in any case of letters), or a
    name containing "{split}"; a file of keras, with x_train, y_train, x_test and y_test; or the folder of ImageNet's
    batches at 32 or 64 pixels, train_data_batch_1.npz and so on. Without a test file, `test_share` of the training
    images is held out as one.

    The number of classes is the largest label of the train and test files + 1, for the splits to agree. Labels that
    are none leave the images unlabelled, which says why. A file with an entry that unpacks to more than `max_bytes`,
    or is packed more tightly than images are, is refused before it is read. Raises UserError.
    """
    check_choice("split", split, splits.NAMES)
    refuse_empty_range(f"{SECTION}.range", range)
    form = Form(levels, tuple(range), pad_to)
    if found := _batches(path, split, max_bytes):
        if range or levels != 256:
            raise UserError(f"{SECTION}: ImageNet's batches have 256 levels; got levels = {levels}, range = {range}")
        whole, has_test = form.of(found[0]), found[1]
        return whole if has_test else splits.share_out(whole, split, test_share, whole.name)
    train, test = _files(path)
    if train and not test and KERAS[0] in files.names_in(train, max_bytes, LIMIT):
        return _keras(train, split, form, max_bytes)
    if test and split == "test":
        return read(test, form, max_bytes, _num_classes((train, test), max_bytes))
    if train is None:
        raise UserError(_missing(path))
    if test:
        return read(train, form, max_bytes, _num_classes((train, test), max_bytes))
    about = train.stat()
    key = "arrays", train.resolve(), about.st_size, about.st_mtime_ns, form, max_bytes
    whole = splits.shared(key, lambda: read(train, form, max_bytes))
    return splits.share_out(whole, split, test_share, whole.name)


@dataclasses.dataclass(frozen=True)
class Form:
    """What images of arrays are: levels, or numbers in a range; padded to a size."""

    levels: int = 256
    range: ValueRange = ()
    pad_to: int | tuple[int, int] = 0

    def values(self, file: Path, image: Shaped[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
        """Return images as uint8 levels, or with a range as float32; raises UserError, naming the file, for others."""
        if not self.range and image.dtype != np.uint8:
            allowed = f"uint8 (numbers of other kinds: {SECTION}.range=(lowest, highest))"
            raise UserError(f"{file}: images are {image.dtype}; allowed: {allowed}")
        if self.range and image.dtype.kind not in "uif":
            raise UserError(f"{file}: images are {image.dtype}; allowed: real numbers")
        (low, high), where = self.range or (0, self.levels - 1), "range" if self.range else f"levels = {self.levels}"
        least, most = (image.min(), image.max()) if image.size else (low, low)
        if not (low <= least and most <= high):
            reach = f"pixel values reach from {least:g} to {most:g}" if self.range else f"pixel values reach {most}"
            raise UserError(f"{file}: {reach}; allowed with {SECTION}.{where}: {low:g} to {high:g}")
        return image.astype(np.float32) if self.range else image

    def of(self, source: ArraySource) -> ArraySource:
        """Return a source of images with what is added around them, and its range."""
        fill = self.range[0] if self.range else 0
        source = dataclasses.replace(source, image=fitting.padded(source.image, self.pad_to, fill))
        return dataclasses.replace(source, levels=0, range=self.range) if self.range else source


def read(file: str | Path, form: Form = Form(), max_bytes: int = 16 << 30, num_classes: int = 0) -> ArraySource:
    """Read all images of one file; of at least so many classes. Raises UserError."""
    file = files.regular_file(file, PATH)
    with files.opened_arrays(file, max_bytes, LIMIT) as archive:
        image = _images(file, archive, form)
        label, reason = _labels(archive, len(image))
    if label is None:
        return form.of(ArraySource(file.name, image, levels=form.levels, unlabelled=reason and f"{file}: {reason}"))
    return form.of(ArraySource(file.name, image, label, form.levels, max(num_classes, int(label.max()) + 1)))


def _batches(path: str, split: str, max_bytes: int) -> tuple[Source, bool] | None:
    """Return the split of ImageNet's batches, and whether there are test images; None for other files."""
    place = Path(path).expanduser()
    if place.is_dir():
        train, test = batches.find(place)
    elif place.is_file() and (
        imagenet_pickle.is_one(place) or {"data", "labels"} <= set(files.names_in(place, max_bytes, LIMIT))
    ):
        train, test = [place], []
    else:
        return None
    if not train:
        return None
    chosen, others = (test, train) if test and split == "test" else (train, test)
    name = f"{place.resolve().name}/{'test' if chosen is test else 'train'}"
    return batches.read(name, chosen, others, train, max_bytes, LIMIT), bool(test)


def _keras(file: Path, split: str, form: Form, max_bytes: int) -> ArraySource:
    """Read a split of a file as keras keeps them: both in one."""
    with files.opened_arrays(file, max_bytes, LIMIT) as archive:
        lacking = [name for name in KERAS if name not in archive.files]
        if lacking:
            raise UserError(f"{file}: no {', '.join(lacking)} in it; got {files.named(archive)}")
        image = _images(file, archive, form, (f"x_{split}",))
        label, reason = _labels(archive, len(image), (f"y_{split}",))
        other, _ = _labels(archive, None, ("y_train" if split == "test" else "y_test",))
    name = f"{file.name}/{split}"
    if label is None or other is None:
        reason = reason or "labels of one split alone"
        return form.of(ArraySource(name, image, levels=form.levels, unlabelled=f"{file}: {reason}"))
    return form.of(ArraySource(name, image, label, form.levels, int(max(label.max(), other.max(initial=0))) + 1))


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
    possible = [places.place_of(path.replace("{split}", name)) for name in names]
    return next((places.local(file) for file in possible if file.is_file()), None)


def _missing(path: str) -> str:
    file = places.place_of(path.replace("{split}", "train") if "{split}" in path else f"{path}/train.npz")
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
    file: Path, archive: files.NpzFile, form: Form, names: tuple[str, ...] = IMAGE_NAMES
) -> Shaped[np.ndarray, "n h w c"]:
    image = _pick(file, archive, names)
    if image is None:
        raise UserError(f"{file}: no images in it; got {files.named(archive)}; allowed names: {', '.join(names)}")
    image = form.values(file, image)
    shape = image.shape
    image = image[..., None] if image.ndim == 3 else image
    if image.ndim != 4 or not 1 <= image.shape[3] <= 16:
        raise UserError(f"{file}: images have shape {shape}; allowed: (n, h, w) or (n, h, w, c) with c = 1 to 16, last")
    if image.size == 0:
        raise UserError(f"{file}: images have shape {shape}; allowed: at least one image of at least one pixel")
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
