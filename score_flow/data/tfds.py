"""A TFDS data set that is already prepared on disk; read without TensorFlow, never downloaded."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from score_flow.data import prepared, splits
from score_flow.data.base import Examples, Source
from score_flow.data.formats import tfds_folder
from score_flow.errors import UserError, one_line
from score_flow.runs.places import place_of

# What the files of their authors are read by.
AUTHORS = {"cifar10": "cifar10", "cifar100": "cifar100", "mnist": "mnist", "fashion_mnist": "mnist", "lsun": "lmdb"}


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource:
    """The "image" and, if there is one, the "label" of the records of a TFDS data set."""

    name: str
    records: Sequence[Any]
    image_shape: tuple[int, int, int]
    num_classes: int
    levels: int = 256
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def read(self, indices: Int[np.ndarray, "b"]) -> Examples:
        records = self.records.__getitems__([int(i) for i in indices])
        examples = {"image": np.stack([record["image"] for record in records])}
        if self.num_classes == 0:
            return examples
        return examples | {"label": np.array([record["label"] for record in records], np.int32)}


def build(
    split: splits.Split = "train",
    dataset: str = "cifar10",
    data_dir: str | None = None,
    test_share: splits.TestShare = 0.1,
) -> Source:
    """The data set `dataset` (tfds syntax, `name/config:version`) in `data_dir` (else TFDS's own), of either format.

    What was prepared as tfrecord, as TFDS does by itself, is read as it lies; array_record by the package. Needs uint8
    images of one size. The test split is test, else validation, else `test_share` of the images is held out. Raises
    UserError when the package or the prepared files are missing.
    """
    data_dir = data_dir and str(place_of(data_dir))
    folder = tfds_folder.locate(dataset, data_dir)
    if folder and (found := tfds_folder.read(folder)):
        return prepared.open_split(found, split, test_share)
    names = tfds_folder.names_of_splits(folder) if folder else ("train", "test")  # else it says that there is none
    train, test = (next((name for name in splits.NAMES[each] if name in names), None) for each in splits.NAMES)
    if test or not train:
        return _of_array_record((test if split == "test" else train) or split, dataset, data_dir)
    whole = _of_array_record(train, dataset, data_dir)
    return splits.share_out(whole, split, test_share, whole.name.removesuffix(f"/{train}"))


def _of_array_record(split: str, dataset: str, data_dir: str | None) -> TfdsSource:
    try:
        import tensorflow_datasets  # heavy, and only this source needs it
    except ImportError as error:
        need = "tensorflow-datasets array-record"
        raise UserError(f"config.data.source (name = tfds): package missing; run: pip install {need}") from error
    try:
        records = tensorflow_datasets.data_source(dataset, split=split, data_dir=data_dir, download=False)
    except Exception as error:  # tfds raises many kinds, most of them with pages of advice
        folder = f" --data_dir={data_dir}" if data_dir else ""
        command = f"tfds build {dataset}{folder}"
        reason = f"cannot open {dataset} {split} ({one_line(error)})"
        own = AUTHORS.get(dataset.partition(":")[0].partition("/")[0])
        other = f"; or, of its authors' own files: --config.data.source.name={own} and .path" if own else ""
        raise UserError(
            f"config.data.source: {reason}; to prepare it, where TensorFlow is: {command}{other}"
        ) from error
    features = dict(records.dataset_info.features.items())
    image, label = features.get("image"), features.get("label")
    if image is None or image.np_dtype != np.uint8 or len(image.shape) != 3 or None in image.shape:
        got = "no image" if image is None else f"{np.dtype(image.np_dtype)} of shape {image.shape}"
        allowed = "uint8 images of one size (else use a folder)"
        raise UserError(f"config.data.source.dataset: {dataset} has {got}; allowed: {allowed}")
    return TfdsSource(
        name=f"{records.dataset_info.full_name}/{split}",
        records=records,
        image_shape=tuple(image.shape),
        num_classes=getattr(label, "num_classes", 0) or 0,
        classes=tuple(getattr(label, "names", None) or ()),
    )
