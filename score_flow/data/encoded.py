"""Sources of image files, wherever they lie: checked when they are opened, decoded when they are read."""

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from jaxtyping import Int, Int32
from PIL import Image
from tqdm import tqdm

from score_flow.data.base import Examples, Source
from score_flow.data.images import SECTION, File, ImageReader
from score_flow.types import UserError

OnError = Literal["stop", "skip"]
DECODED = 20_000  # files that on_error = "skip" decodes at the start; of more it looks at the ends

_POOL = ThreadPoolExecutor(max_workers=8, thread_name_prefix="image")  # PIL decodes outside the interpreter lock
Image.core.set_block_size(1 << 26)  # PIL's memory in parts so large that the system gets each back when it is freed


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedSource:
    """Image files, decoded when they are read; `skipped` counts the files left out.

    `files` may be any sequence whose items are read when they are asked for, by several threads at once.
    """

    name: str
    files: Sequence[File]
    label: Int32[np.ndarray, "n"] | None
    classes: Sequence[str]
    reader: ImageReader
    skipped: int = 0
    levels: int = 256
    unlabelled: str = ""
    notes: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.reader.image_size, self.reader.image_size, self.reader.channels

    @property
    def num_classes(self) -> int:
        return 0 if self.label is None else len(self.classes)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: Int[np.ndarray, "b"]) -> Examples:
        images = list(_POOL.map(lambda i: self.reader.decode(self.files[i]), indices.tolist()))
        examples = {"image": np.stack(images) if images else np.empty((0, *self.image_shape), np.uint8)}
        return examples if self.label is None else examples | {"label": self.label[indices]}


@dataclasses.dataclass(frozen=True)
class Chosen(Sequence[File]):
    """Some items of a sequence, each read when it is asked for."""

    whole: Sequence[File]
    kept: Int[np.ndarray, "kept"]

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, i: int) -> File:
        return self.whole[int(self.kept[i])]


def takes_reader(build: Callable[..., Source]) -> Callable[..., Source]:
    """Decorate a source's build: in place of its parameter `reader` it takes the fields of an ImageReader."""
    fields = inspect.signature(ImageReader).parameters
    own = [parameter for parameter in inspect.signature(build).parameters.values() if parameter.name != "reader"]
    needed = [parameter for parameter in own if parameter.name in ("split", "path")]

    @functools.wraps(build)
    def entire(*args, **kwargs) -> Source:
        given = entire.__signature__.bind(*args, **kwargs).arguments
        reader = ImageReader(**{name: given.pop(name) for name in fields if name in given})
        return build(**given, reader=reader)

    rest = [parameter for parameter in own if parameter not in needed]
    entire.__signature__ = inspect.Signature([*needed, *fields.values(), *rest])
    return entire


def open_files(
    name: str,
    files: Sequence[File],
    reader: ImageReader,
    on_error: OnError,
    *,
    label: Int32[np.ndarray, "n"] | None = None,
    classes: Sequence[str] = (),
    unlabelled: str = "",
    notes: tuple[str, ...] = (),
) -> EncodedSource:
    """Make a source of the files that can be used; every file is looked at now. Raises UserError."""
    kept = usable(files, reader, on_error)
    return EncodedSource(
        name=name,
        files=files if len(kept) == len(files) else Chosen(files, kept),
        label=None if label is None else label[kept],
        classes=() if label is None else classes,
        reader=reader,
        skipped=len(files) - len(kept),
        unlabelled=unlabelled,
        notes=notes,
    )


def usable(files: Sequence[File], reader: ImageReader, on_error: OnError) -> Int[np.ndarray, "kept"]:
    """Return the indices of the files that pass; all of them, unless on_error is "skip"."""
    look, refused, n = reader.check, {}, len(files)
    if on_error == "skip":
        look = reader.check_pixels if n <= DECODED else reader.check_end
    with tqdm(total=n, unit=" files", desc="data: checking", delay=3, leave=False, disable=None) as bar:
        for start in range(0, n, 4096):  # in parts: each queued file costs memory
            part = range(start, min(start + 4096, n))
            for i, reason in zip(part, _POOL.map(lambda i: look(files[i]), part), strict=True):
                bar.update()
                if reason and on_error == "stop":
                    raise UserError(f'{reason} ({SECTION}.on_error="skip" leaves such files out)')
                if reason:
                    refused[i] = reason
    if len(refused) == n:
        raise UserError(f"none of {n} files is a usable image; the first: {refused[0]}")
    if refused:
        first = next(iter(refused.values()))
        print(f"data: skipped {len(refused)} of {n} files; the first: {first}", file=sys.stderr)
    return np.array([i for i in range(n) if i not in refused])
