"""Images in records of TFRecord files: which feature they are, whether encoded or not, and their labels."""

import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, UInt8
from PIL import Image

from score_flow.config.hints import ValueRange
from score_flow.data.base import Examples
from score_flow.data.formats import tfrecord
from score_flow.data.formats.spans import Spans
from score_flow.data.images import FORMATS, Blob, ImageReader
from score_flow.errors import UserError, one_line

Record = dict[str, tfrecord.Feature]
Shape = tuple[int, int, int]

_POOL = ThreadPoolExecutor(thread_name_prefix="record")


@dataclasses.dataclass(frozen=True, eq=False)
class RecordSource:
    """Images in TFRecord files, found by an index of offsets and decoded when they are read.

    picture: (record, its name for errors) -> uint8 (h, w, c). label: those of all records, if they were read; else each
    is in its record, as the feature `label_name`.
    """

    name: str
    spans: Spans
    picture: Callable[[Record, str], np.ndarray]
    image_shape: Shape
    label: Int32[np.ndarray, "n"] | None = None
    label_name: str = ""
    num_classes: int = 0
    classes: tuple[str, ...] = ()
    range: ValueRange = ()
    decoding: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unlabelled: str = ""
    notes: tuple[str, ...] = ()

    @property
    def levels(self) -> int:
        return 0 if self.range else 256

    def __len__(self) -> int:
        return len(self.spans)

    def read(self, indices: Int[np.ndarray, "b"]) -> Examples:
        rows = list(_POOL.map(self._row, indices.tolist()))
        images = [image for image, _ in rows]
        examples = {"image": np.stack(images) if images else np.empty((0, *self.image_shape), np.uint8)}
        if not self.num_classes:
            return examples
        label = self.label[indices] if self.label is not None else np.array([label for _, label in rows], np.int32)
        return examples | {"label": label}

    def _row(self, i: int) -> tuple[np.ndarray, int]:
        record, place = tfrecord.read(self.spans, i), f"{self.spans.place(i)}: record {i}"
        image = self.picture(record, place)
        if not self.num_classes or self.label is not None:
            return image, 0
        label = label_of(record, self.label_name, place)
        if not 0 <= label < self.num_classes:
            raise UserError(f"{place} has label {label}; allowed: 0 to {self.num_classes - 1}")
        return image, label


def label_of(record: Record, name: str, place: str) -> int:
    """Return the whole number of a feature; raises UserError where it is none."""
    values = record.get(name, ())
    if len(values) != 1 or type(values[0]) is not int:
        raise UserError(f"{place} has no {name} that is one whole number")
    return values[0]


def encoded(record: Record, name: str, place: str) -> bytes:
    """Return the bytes of a feature; raises UserError where it has none."""
    values = record.get(name, ())
    if len(values) != 1 or not isinstance(values[0], bytes):
        raise UserError(f"{place} has no image {name}; got {', '.join(sorted(record)[:10]) or 'nothing'}")
    return values[0]


def of_one_size(name: str, shape: Shape) -> Callable[[Record, str], UInt8[np.ndarray, "h w c"]]:
    """Decode images of one size as they are: encoded ones, or the bytes of their pixels, row by row."""
    reader = ImageReader(image_size=shape[:2], channels=shape[2], background="drop", upright=False)

    def picture(record: Record, place: str) -> np.ndarray:
        content = encoded(record, name, place)
        if size_of(content) is None and len(content) == np.prod(shape):
            return np.frombuffer(content, np.uint8).reshape(shape)
        if (size := size_of(content)) not in (None, shape[:2]):
            raise UserError(f"{place} is of {size[0]}x{size[1]} pixels; allowed: {shape[0]}x{shape[1]}, as the others")
        return reader.decode(Blob(place, content))

    return picture


def of_planes(name: str, shape: Shape) -> Callable[[Record, str], UInt8[np.ndarray, "h w c"]]:
    """Take the pixels as StyleGAN's tfrecords have them: `shape` (c, h, w), and their bytes."""
    planes = shape[2], *shape[:2]

    def picture(record: Record, place: str) -> np.ndarray:
        content, found = encoded(record, name, place), tuple(record.get("shape", ()))
        if found != planes or len(content) != np.prod(planes):
            raise UserError(f"{place} has shape {found} and {len(content)} bytes; allowed: {planes}, as the others")
        return np.frombuffer(content, np.uint8).reshape(planes).transpose(1, 2, 0)

    return picture


def of_reader(reader: ImageReader) -> dict[str, Any]:
    """Return the fields of a source whose images a reader decodes: it looks at no header before, so it decided all."""
    return {"range": reader.range, "decoding": {"background": reader.background, "upright": reader.upright}}


def fitted(name: str, reader: ImageReader) -> Callable[[Record, str], np.ndarray]:
    """Decode images of any size by a reader, which makes them one size."""
    return lambda record, place: reader.decode(Blob(place, encoded(record, name, place)))


def size_of(content: bytes) -> tuple[int, int] | None:
    """Return (h, w) of an encoded image by its header; None for other bytes."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return image.height, image.width
    except Exception:  # hostile bytes raise almost anything
        return None


def channels_of(content: bytes, place: str) -> int:
    """Return 1 for a grey image, else 3; raises UserError for what is no image."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return 1 if image.mode in ("1", "L", "LA") else 3
    except Exception as error:  # hostile bytes raise almost anything
        raise UserError(f"{place} has no image of a known format ({one_line(error)})") from error


def first_of(names: Sequence[str], record: Record) -> str | None:
    """Return the first of some names that a record has."""
    return next((name for name in names if name in record), None)
