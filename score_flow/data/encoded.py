"""Sources of image files, wherever they lie: checked when they are opened, decoded when they are read."""

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, Int32
from PIL import Image
from tqdm import tqdm

from score_flow.config.hints import ValueRange, takes_fields
from score_flow.data.base import Examples
from score_flow.data.formats import index
from score_flow.data.images import SECTION, File, ImageReader
from score_flow.errors import UserError

OnError = Literal["stop", "skip"]
DECODED = 20_000  # files that on_error = "skip" decodes at the start; of more it looks at the ends

# PIL decodes outside the interpreter lock; a few threads more than two cores have wait for disks.
_POOL = ThreadPoolExecutor(max_workers=max(4, os.cpu_count() or 1), thread_name_prefix="image")
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
    unlabelled: str = ""
    notes: tuple[str, ...] = ()
    decoding: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # what was decided where files differ by it

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.reader.shape

    @property
    def levels(self) -> int:
        return 0 if self.reader.range else 256

    @property
    def range(self) -> ValueRange:
        return self.reader.range

    @property
    def num_classes(self) -> int:
        return 0 if self.label is None else len(self.classes)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: Int[np.ndarray, "b"]) -> Examples:
        images = list(_POOL.map(lambda i: self.reader.decode(self.files[i]), indices.tolist()))
        dtype = np.float32 if self.range else np.uint8
        examples = {"image": np.stack(images) if images else np.empty((0, *self.image_shape), dtype)}
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


takes_reader = takes_fields("reader", ImageReader)


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
    headers = look_at(files, reader, on_error)
    kept, decoding, said = usable(headers), *decided(headers, reader)
    return EncodedSource(
        name=name,
        files=files if len(kept) == len(files) else Chosen(files, kept),
        label=None if label is None else label[kept],
        classes=() if label is None else classes,
        reader=reader,
        skipped=len(files) - len(kept),
        unlabelled=unlabelled,
        notes=(*notes, *said),
        decoding=decoding,
    )


def look_at(files: Sequence[File], reader: ImageReader, on_error: OnError) -> index.Arrays:
    """Look at every file as far as on_error asks for: {"refused", "alpha", "turned": (n,) bool, "reasons": text}.

    What was found of many files of a folder is kept. Raises UserError at the first that is refused, with "stop".
    """
    n, headers = len(files), []
    depth = "header" if on_error == "stop" else "pixels" if n <= DECODED else "end"

    def scan() -> index.Arrays:
        with tqdm(total=n, unit=" files", desc="data: checking", delay=3, leave=False, disable=None) as bar:
            for start in range(0, n, 4096):  # in parts: each queued file costs memory
                for header in _POOL.map(lambda i: reader.check(files[i], depth), range(start, min(start + 4096, n))):
                    bar.update()
                    if header.refused and on_error == "stop":
                        raise UserError(f'{header.refused} ({SECTION}.on_error="skip" leaves such files out)')
                    headers.append(header)
        refused, alpha, turned = zip(*headers, strict=True)
        found = {"refused": list(map(bool, refused)), "alpha": alpha, "turned": turned}
        reasons = index.packed([text for text in refused if text])
        return {name: np.array(each, bool) for name, each in found.items()} | {"reasons": reasons}

    # What is decided of alpha and turns changes nothing that is looked at.
    about = repr((depth, dataclasses.replace(reader, background="white", upright=True)))
    return files.kept(about, scan) if hasattr(files, "kept") else scan()


def usable(headers: index.Arrays) -> Int[np.ndarray, "kept"]:
    """Return the indices of the files that pass; says how many do not. Raises UserError where none does."""
    n, refused = len(headers["refused"]), int(headers["refused"].sum())
    first = index.unpacked(headers["reasons"])[:1]
    if refused == n:
        raise UserError(f"none of {n} files is a usable image; the first: {first[0]}")
    if refused:
        print(f"data: skipped {refused} of {n} files; the first: {first[0]}", file=sys.stderr)
    return np.flatnonzero(~headers["refused"])


def decided(headers: index.Arrays, reader: ImageReader) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return what the reader does with files that have alpha, or a turn, if any has, and how a person is told of it."""
    alpha, turned = (int(headers[name].sum()) for name in ("alpha", "turned"))
    of, decoding, notes = f"of {len(headers['refused'])} images have", {}, ()
    if alpha:
        decoding["background"] = reader.background
        done = "which is ignored" if reader.background == "drop" else f"what is transparent is {reader.background}"
        notes = (f"{alpha} {of} an alpha channel: {done} ({SECTION}.background)",)
    if turned:
        decoding["upright"] = reader.upright
        done = "are turned upright" if reader.upright else "which is ignored"
        notes += (f"{turned} {of} an EXIF turn: {done} ({SECTION}.upright)",)
    return decoding, notes
