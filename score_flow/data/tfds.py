"""A TFDS data set that is already prepared on disk as array_record; read without TensorFlow, never downloaded."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from score_flow.data.base import Examples
from score_flow.data.splits import Split
from score_flow.runs.places import place_of
from score_flow.types import UserError, one_line


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


def build(split: Split = "train", dataset: str = "cifar10", data_dir: str | None = None) -> TfdsSource:
    """The data set `dataset` (tfds syntax, `name/config:version`) of `data_dir`, split in tfds syntax (`train[:90%]`).

    Needs uint8 images of one size. Raises UserError when the package or the prepared files are missing.
    """
    try:
        import tensorflow_datasets  # heavy, and only this source needs it
    except ImportError as error:
        need = "tensorflow-datasets array-record"
        raise UserError(f"config.data.source (name = tfds): package missing; run: pip install {need}") from error
    data_dir = data_dir and str(place_of(data_dir))
    try:
        records = tensorflow_datasets.data_source(dataset, split=split, data_dir=data_dir, download=False)
    except Exception as error:  # tfds raises many kinds, most of them with pages of advice
        folder = f" --data_dir={data_dir}" if data_dir else ""
        command = f"tfds build {dataset} --file_format=array_record{folder}"
        reason = f"cannot open {dataset} {split} ({one_line(error)})"
        raise UserError(f"config.data.source: {reason}; to prepare it: {command}") from error
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
