"""Image files in memory or on disk, checked by their headers and brought to one size by ADM's centre crop."""

import contextlib
import dataclasses
import io
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from score_flow.config.limits import Limits
from score_flow.runs.files import regular_file
from score_flow.types import UserError, one_line

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # a closed list: PIL also knows formats that start other programs (EPS)
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
SECTION = "config.data.source"
TAIL = 1 << 16  # bytes in which the end of a file is looked for: some cameras write more behind it
ENDS = {"PNG": b"IEND", "JPEG": b"\xff\xd9", "GIF": b";"}
IN_FLIGHT = 64_000_000  # pixels decoded at once by all threads: 4 bytes each; one larger image is decoded alone

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is lower, and refuses


class Blob(NamedTuple):
    """The bytes of an image file that lies in another; `name` is what errors call it."""

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name


File = Path | Blob


class Budget:
    """So many units at once among threads; who takes more than all of them waits to be alone."""

    def __init__(self, limit: int):
        self._limit, self._taken, self._changed = limit, 0, threading.Condition()

    @contextlib.contextmanager
    def take(self, n: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + n <= self._limit)
            self._taken += n
        try:
            yield
        finally:
            with self._changed:
                self._taken -= n
                self._changed.notify_all()


_BUDGET = Budget(IN_FLIGHT)
Image.core.set_block_size(1 << 26)  # PIL's memory in parts so large that the system gets each back when it is freed


@dataclasses.dataclass(frozen=True)
class ImageReader:
    """An image file -> uint8 (image_size, image_size, channels); raises UserError naming the file.

    Its fields are arguments of every source of image files (encoded.takes_reader).
    """

    image_size: Annotated[int, Limits(least=1)] = 32
    channels: Literal[1, 3] = 3
    max_pixels: Annotated[int, Limits(least=1, most=Image.MAX_IMAGE_PIXELS)] = 64_000_000  # at most PIL's own limit

    def __post_init__(self):
        if self.image_size**2 > self.max_pixels:
            allowed = f"1 to {math.isqrt(self.max_pixels)} ({SECTION}.max_pixels = {self.max_pixels})"
            raise UserError(f"{SECTION}.image_size: got {self.image_size}; allowed: {allowed}")

    def check(self, file: File) -> str | None:
        """Say why the header of the file is refused, or None."""
        return _refusal(lambda: self._look(file))

    def check_pixels(self, file: File) -> str | None:
        """Say why the file is refused, its pixels included, or None."""
        return _refusal(lambda: self.decode(file))

    def check_end(self, file: File) -> str | None:
        """Say why the header or the end of the file is refused, or None: what can be known without decoding it."""
        return _refusal(lambda: self._look(file, to_the_end=True))

    def decode(self, file: File) -> UInt8[np.ndarray, "h w c"]:
        with self._open(file) as image, _BUDGET.take(image.width * image.height + self._resized(image)):
            try:
                pixels = self._pixels(image)
            finally:
                image.close()  # lets go of its memory before others may take as much
            return pixels.reshape(self.image_size, self.image_size, self.channels)

    def _pixels(self, image: Image.Image) -> UInt8[np.ndarray, "..."]:
        image.info.pop("transparency", None)  # dropped either way; PIL would warn
        mode = "L" if self.channels == 1 else "RGB"
        converted = image if image.mode == mode else image.convert(mode)  # a copy costs as much as the image
        return np.array(centre_crop(converted, self.image_size))

    def _look(self, file: File, to_the_end: bool = False) -> None:
        with self._open(file) as image:
            if to_the_end and not _is_whole(file, image.format):
                raise UserError(f"{file}: cut off, it does not end as {image.format} does")

    @contextlib.contextmanager
    def _open(self, file: File) -> Iterator[Image.Image]:
        try:
            with _stream(file) as stream, Image.open(stream, formats=FORMATS) as image:  # reads the header only
                self._check_header(file, image)
                yield image
        except UserError:
            raise
        except UnidentifiedImageError as error:
            raise UserError(f"{file}: not an image of a known format; allowed: {', '.join(FORMATS)}") from error
        except Exception as error:  # hostile bytes raise almost anything
            raise UserError(f"{file}: cannot be read as an image ({one_line(error)})") from error

    def _check_header(self, file: File, image: Image.Image) -> None:
        width, height = image.size
        limit = f"{SECTION}.max_pixels = {self.max_pixels}"
        if image.mode not in EIGHT_BIT_MODES:  # PIL would saturate 16 bits: a nearly white image
            raise UserError(f"{file}: mode {image.mode} is not 8 bits a channel; allowed: {', '.join(EIGHT_BIT_MODES)}")
        if width * height > self.max_pixels:
            raise UserError(f"{file}: {width}x{height} pixels; allowed: {limit}")
        if min(width, height) < 1 or self._resized(image) > self.max_pixels:
            raise UserError(f"{file}: {width}x{height} is too long to resize ({limit})")

    def _resized(self, image: Image.Image) -> int:
        """Pixels of the image once its short side is image_size, before the crop."""
        return self.image_size**2 * max(image.size) // max(min(image.size), 1)


def _stream(file: File) -> io.BufferedIOBase:
    return io.BytesIO(file.content) if isinstance(file, Blob) else open(regular_file(file, "image"), "rb")


def _refusal(look: Callable[[], object]) -> str | None:
    try:
        look()
    except UserError as error:
        return str(error)
    return None


def _is_whole(file: File, kind: str) -> bool:
    """Say whether a file ends as its format does, or is as long as its header says."""
    with _stream(file) as stream:
        head, size = stream.read(8), stream.seek(0, os.SEEK_END)
        stream.seek(-min(size, TAIL), os.SEEK_END)
        tail = stream.read(TAIL)
    if kind in ENDS:
        return ENDS[kind] in tail
    claimed = int.from_bytes(head[4:8], "little") + 8 if kind == "WEBP" else int.from_bytes(head[2:6], "little")
    return size >= claimed


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's square crop: box-halve while both sides stay >= size, bicubic until the short side = size, cut the middle.

    Dhariwal and Nichol 2021 (arXiv:2105.05233), image_datasets.center_crop_arr.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
