"""TFRecord files without TensorFlow: what TFDS prepared, StyleGAN's, and Examples with encoded images in general."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int32

from score_flow.data import prepared, records, shards, splits
from score_flow.data.base import MAX_CLASSES, Source
from score_flow.data.encoded import takes_reader
from score_flow.data.fitting import sides
from score_flow.data.formats import index, tfds_folder, tfrecord
from score_flow.data.formats.spans import Spans
from score_flow.data.images import SECTION, ImageReader
from score_flow.errors import UserError, check_choice, one_line, printable
from score_flow.runs.files import array_of

FILES = shards.Kind(re.compile(r"\.tfrecords?(-\d+-of-\d+)?$|-\d+-of-\d+$"), "TFRecord files (.tfrecord, .tfrecords)")
RESOLUTION = re.compile(r"-r(\d\d)\.tfrecords$")  # StyleGAN's: 2^r pixels a side
STYLEGAN, TF_SLIM = "data", "image/class/label"
IMAGES = ("image", "image/encoded", "image_raw", "img", "jpg", "jpeg", "png", STYLEGAN)
LABELS = ("label", TF_SLIM, "labels", "class", "cls")


@takes_reader
def build(
    split: splits.Split = "train",
    path: str = "",
    *,
    reader: ImageReader,
    image_feature: str = "",
    label_feature: str = "",
    test_share: splits.TestShare = 0.1,
) -> Source:
    """Images in the Examples of TFRecord files: png, jpg and the like, or StyleGAN's `shape` and `data`.

    `path` is a file, a folder, or a pattern ("train-*-of-01024"); or a folder that TFDS prepared. The splits are files
    called so; without a test split, `test_share` of the images is held out. The features are found by their usual names
    unless they are given. Of StyleGAN's folder the file of `image_size` is read, and the labels beside it. Every length
    and record is checked by its crc32c. Raises UserError.
    """
    check_choice("split", split, splits.NAMES)
    place = Path(path).expanduser()
    if path and place.is_dir():
        folder = place if (place / tfds_folder.INFO).is_file() else tfds_folder.locate(place.name, str(place.parent))
        if folder and (found := tfds_folder.read(folder)):
            return prepared.open_split(found, split, test_share, reader)
    train, test, notes = shards.find(path, FILES)
    stem = Path(os.path.abspath(path)).name
    train, test = (_of_resolution(files, reader) for files in (train, test))
    if split == "test" and test:
        return _open(f"{stem}/test", test, reader, image_feature, label_feature, like=train)
    whole = _open(f"{stem}/train", train, reader, image_feature, label_feature, notes=notes, like=test)
    return whole if test else splits.share_out(whole, split, test_share, stem)


def _of_resolution(files: list[Path], reader: ImageReader) -> list[Path]:
    """Return the file of StyleGAN's that has images of the size; other files as they are."""
    found = {2 ** int(match[1]): file for file in files if (match := RESOLUTION.search(file.name))}
    if len(found) < 2:
        return files
    size = sides(reader.image_size)[0]
    check_choice(f"{SECTION}.image_size", size, found)
    return [found[size]]


def _open(
    name: str,
    files: Sequence[Path],
    reader: ImageReader,
    image: str,
    label: str,
    *,
    like: Sequence[Path],
    notes: tuple[str, ...] = (),
) -> records.RecordSource:
    """Open the files of a split; `like`: those of the other one, which may have more classes."""
    spans = tfrecord.open_files(files)
    if not len(spans):
        raise UserError(f"{files[0]}: holds no records")
    first, place = tfrecord.read(spans, 0), f"{spans.place(0)}: record 0"
    image = image or records.first_of(IMAGES, first) or ""
    if image not in first:
        got = ", ".join(map(printable, sorted(first)[:10])) or "nothing"
        raise UserError(f"{place} has no image {image}; got the features {got}; name it: {SECTION}.image_feature")
    planes = image == STYLEGAN and "shape" in first
    picture = records.of_planes(image, reader.shape) if planes else records.fitted(image, reader)
    if planes and len(first["shape"]) == 3 and (at := (*first["shape"][1:], first["shape"][0])) != reader.shape:
        raise UserError(
            f"{place} is {at}, as (h, w, c); allowed: {reader.shape}, as {SECTION}.image_size and channels say"
        )
    if planes and reader.range:
        raise UserError(f"{SECTION}.range: got {reader.range}; allowed for StyleGAN's records: none, they are levels")
    picture(first, place)
    labels, classes, why = _labels(spans, label or records.first_of(LABELS, first) or "", like)
    return records.RecordSource(
        name, spans, picture, reader.shape, labels, num_classes=classes, unlabelled=why, notes=notes,
        **({} if planes else records.of_reader(reader)),
    )  # fmt: skip


def _labels(spans: Spans, name: str, like: Sequence[Path]) -> tuple[Int32[np.ndarray, "n"] | None, int, str]:
    """Return the labels and the number of classes, of both splits; or None, 0 and why, where there seem to be some."""
    beside = [Path(RESOLUTION.sub("-rxx.labels", str(file))) for file in spans.files if RESOLUTION.search(file.name)]
    if beside and beside[0].is_file():
        return _of_stylegan(beside[0], len(spans))
    if not name:
        return None, 0, ""
    try:
        found = _read_labels(spans, name)
        others = _read_labels(tfrecord.open_files(like), name) if like else found[:0]
    except UserError as error:
        return None, 0, str(error)
    both = np.concatenate([found, others])
    if name == TF_SLIM and both.min() == 1:  # 0 is its background, of which there are no images
        found, both = found - 1, both - 1
    if both.min() < 0 or both.max() >= MAX_CLASSES:
        return None, 0, f"labels {name} run from {both.min()} to {both.max()}; allowed: 0 to {MAX_CLASSES - 1}"
    return found.astype(np.int32), int(both.max()) + 1, ""


def _read_labels(spans: Spans, name: str) -> Int[np.ndarray, "n"]:
    """Read a feature of every record, once: it is kept in the index."""

    def scan() -> index.Arrays:
        rows = (
            records.label_of(tfrecord.read(spans, i), name, f"{spans.place(i)}: record {i}") for i in range(len(spans))
        )
        return {"label": np.fromiter(rows, np.int64, len(spans))}

    return index.kept(spans.files, f"labels of tfrecord {name}", scan)["label"]


def _of_stylegan(file: Path, n: int) -> tuple[Int32[np.ndarray, "n"] | None, int, str]:
    """Read the labels that StyleGAN keeps in an .npy beside: numbers, or a row of 0 and 1 an image."""
    try:
        label = array_of(file, "label")
    except UserError as error:
        return None, 0, one_line(error)
    if label.ndim == 2 and label.shape[1] and (label.sum(1) == 1).all() and np.isin(label, (0, 1)).all():
        label, classes = label.argmax(1), label.shape[1]
    elif label.ndim == 1 and label.size and (label == label.astype(np.int64)).all() and label.min() >= 0:
        classes = int(label.max()) + 1
    else:
        return None, 0, f"{file}: labels are {label.dtype} of shape {label.shape}; allowed: numbers, or one-hot rows"
    if len(label) != n or classes > MAX_CLASSES:
        return None, 0, f"{file}: got {len(label)} labels of {classes} classes for {n} images; allowed: one each"
    return label.astype(np.int32), classes, ""
