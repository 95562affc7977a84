"""ImageNet at 32 or 64 pixels as Chrabaszcz et al. 2017 (arXiv:1707.08819) publish it: batches of .npz, or pickles.

`data` is uint8 (n, 3 s s), the red, green and blue planes; `labels` run from 1 to 1000. The batches of a split are read
into one array.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from score_flow.data.base import MAX_CLASSES, ArraySource
from score_flow.data.formats import imagenet_pickle
from score_flow.data.releases import of_batches
from score_flow.errors import UserError
from score_flow.runs import files

TRAIN, TEST = re.compile(r"^train_data_batch_(\d+)(\.npz)?$"), re.compile(r"^val_data(\.npz)?$")  # or pickles


def find(folder: Path) -> tuple[list[Path], list[Path]]:
    """Find the batches in a folder, or in those in it, as they unpack; raises UserError where one is missing."""
    there = [
        *folder.iterdir(),
        *(file for inside in sorted(folder.iterdir()) if inside.is_dir() for file in inside.iterdir()),
    ]
    there.sort(key=lambda file: file.suffix)  # of a batch in both forms, the .npz
    train = {int(match[1]): file for file in there if (match := TRAIN.match(file.name))}
    if missing := sorted(set(range(1, max(train, default=0) + 1)) - set(train)):
        raise UserError(f"config.data.source.path: {folder} lacks train_data_batch_{missing[0]}.npz, or the pickle")
    return [train[k] for k in sorted(train)], [file for file in there if TEST.match(file.name)][-1:]


def read(
    name: str, chosen: Sequence[Path], others: Sequence[Path], train: Sequence[Path], max_bytes: int, limit: str
) -> ArraySource:
    """Read the batches of a split; `others`: those of the other one, which may have more classes.

    train: those of the training split, whose labels say whether they begin at 1, as published.
    """
    looked = {file: _look(file, max_bytes, limit) for file in dict.fromkeys((*chosen, *others, *train))}
    shapes = [looked[file][0] for file in chosen]
    n, width = sum(shape[0] for shape in shapes), shapes[0][1]
    if any(shape[1] != width for shape in shapes):
        raise UserError(
            f"{chosen[0].parent}: batches of {sorted({s[1] for s in shapes})} numbers an image; allowed: one size"
        )
    if n * width > max_bytes:
        raise UserError(f"{chosen[0].parent}: images of {n * width} bytes; allowed: {limit} {max_bytes}")
    labels = {file: label for file, (_, label) in looked.items()}
    first = min((int(labels[file].min()) for file in train or chosen), default=1)
    label = np.concatenate([labels[file] for file in chosen]) - (first > 0)
    largest = max(int(found.max()) for found in labels.values()) - (first > 0)
    if label.min() < 0 or largest >= MAX_CLASSES or len(label) != n:
        raise UserError(
            f"{chosen[0]}: {len(label)} labels from {label.min()} to {largest} for {n} images; allowed: from 1"
        )
    rows, at = np.empty((n, width), np.uint8), 0
    for file, shape in zip(chosen, shapes, strict=True):
        if imagenet_pickle.is_one(file):
            rows[at : at + shape[0]] = imagenet_pickle.read(file, max_bytes, limit)[0]
        else:
            with files.opened_arrays(file, max_bytes, limit) as archive:
                rows[at : at + shape[0]] = archive["data"]
        at += shape[0]
    side = math.isqrt(width // 3)
    image = rows.reshape(n, 3, side, side).transpose(0, 2, 3, 1)  # a view: it takes no memory of its own
    return ArraySource(of_batches(name, side), image, label.astype(np.int32), num_classes=largest + 1)


def _look(file: Path, max_bytes: int, limit: str) -> tuple[tuple[int, int], Int32[np.ndarray, "n"]]:
    """Return the shape of the images of a batch and its labels; raises UserError unless they are such.

    Of an .npz by the header of its images; a pickle has to be read to its end.
    """
    if imagenet_pickle.is_one(file):
        image, label = imagenet_pickle.read(file, max_bytes, limit)
        return _checked(file, image.shape, image.dtype), _checked_labels(file, label)
    with files.opened_arrays(file, max_bytes, limit) as archive:
        with archive.zip.open("data.npy") as stream:
            version = np.lib.format.read_magic(stream)
            old = version == (1, 0)
            read_header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
            shape, _, dtype = read_header(stream)
        return _checked(file, shape, dtype), _checked_labels(file, np.asarray(archive["labels"]))


def _checked(file: Path, shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, int]:
    if (
        dtype != np.uint8
        or len(shape) != 2
        or shape[1] < 3
        or 3 * math.isqrt(shape[1] // 3) ** 2 != shape[1]
        or not shape[0]
    ):
        raise UserError(f"{file}: data are {dtype} of shape {shape}; allowed: uint8 (n, 3 s s)")
    return shape


def _checked_labels(file: Path, label: np.ndarray) -> Int32[np.ndarray, "n"]:
    if (
        label.ndim != 1
        or label.dtype.kind not in "iu"
        or not label.size
        or label.min() < 0
        or label.max() > MAX_CLASSES
    ):
        raise UserError(
            f"{file}: labels are {label.dtype} of shape {label.shape}; allowed: whole numbers of shape (n,)"
        )
    return label.astype(np.int32)
