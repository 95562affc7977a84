"""Image files in memory or on disk, checked by their headers and brought to one size: their pixels."""

import contextlib
import dataclasses
import io
import math
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Shaped, UInt8
from PIL import ExifTags, Image, ImageColor, UnidentifiedImageError

from score_flow.config.hints import ValueRange, check_fields, refuse_empty_range
from score_flow.config.limits import Limits
from score_flow.data import fitting
from score_flow.errors import UserError, one_line
from score_flow.runs.files import regular_file

# A closed list: PIL also knows formats that start other programs (EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
DEEP_MODES = ("I;16", "I;16B", "I;16L", "I", "F")  # grey of more bits, for a declared range
SECTION = "config.data.source"
Depth = Literal["header", "end", "pixels"]
TURNS = {  # EXIF's number of an orientation -> what makes it upright; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
TAIL = 1 << 16  # bytes in which the end of a file is looked for: some cameras write more behind it
ENDS = {"PNG": b"IEND", "JPEG": b"\xff\xd9", "GIF": b";"}
MOST_PIXELS = 2**30 // 4 // 3  # PIL's own limit, Image.MAX_IMAGE_PIXELS
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


class Header(NamedTuple):
    """What is known of a file without its pixels: why it is refused ("": it is not), and which options touch it."""

    refused: str = ""
    alpha: bool = False
    turned: bool = False


@dataclasses.dataclass(frozen=True)
class ImageReader:
    """An image file -> (h, w, channels), uint8 or, with a `range`, float32; raises UserError naming the file.

    Its fields are arguments of every source of image files (encoded.takes_reader). `background` is the colour behind
    transparent pixels and around what is padded; "drop" ignores alpha, as ADM does, and pads with black. `upright`
    turns a file as its EXIF data say. `range` declares the lowest and the highest value of real-valued or 16-bit grey
    images, which then are numbers, not levels.
    """

    image_size: fitting.Size = 32
    channels: Literal[1, 3] = 3
    max_pixels: Annotated[int, Limits(least=1, most=MOST_PIXELS)] = 64_000_000
    fit: fitting.Fit = "crop"
    pad_to: fitting.PadTo = 0
    background: str = "white"
    upright: bool = True
    range: ValueRange = ()

    def __post_init__(self):
        check_fields(self, SECTION)
        refuse_empty_range(f"{SECTION}.range", self.range)
        (h, w), (height, width) = fitting.sides(self.image_size), self.shape[:2]
        limit = f"{SECTION}.max_pixels = {self.max_pixels}"
        if h * w > self.max_pixels:
            allowed = f"1 to {math.isqrt(self.max_pixels)} ({limit})"
            raise UserError(f"{SECTION}.image_size: got {self.image_size}; allowed: {allowed}")
        if height < h or width < w or height * width > self.max_pixels:
            raise UserError(f"{SECTION}.pad_to: got {self.pad_to}; allowed: from {h} x {w} on ({limit})")
        self._fill()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, channels) of what is read."""
        return *fitting.sides(self.pad_to or self.image_size), self.channels

    def check(self, file: File, depth: Depth = "header") -> Header:
        """Look at the header of a file, at its end too (what can be known without decoding it), or at its pixels."""
        try:
            with self._open(file) as image:
                header = Header("", _is_transparent(image), _orientation(image) in TURNS)
                if depth == "end" and not _is_whole(file, image.format):
                    raise UserError(f"{file}: cut off, it does not end as {image.format} does")
            if depth == "pixels":
                self.decode(file)
            return header
        except UserError as error:
            return Header(str(error))

    def decode(self, file: File) -> Shaped[np.ndarray, "h w c"]:
        with self._open(file) as image, _BUDGET.take(self._held(image)):
            try:
                pixels = self._values(file, image) if self.range else self._levels(image)
            finally:
                image.close()  # lets go of its memory before others may take as much
            return pixels.reshape(self.shape)

    def _levels(self, image: Image.Image) -> UInt8[np.ndarray, "..."]:
        return np.array(self._brought(self._prepared(image), self._fill()))

    def _values(self, file: File, image: Image.Image) -> Float32[np.ndarray, "h w c"]:
        """Each band alone, as float32; bicubic filters overshoot the range, to which they are clipped."""
        low, high = self.range
        bands, found = [band.convert("F") for band in self._prepared(image).split()], []
        for band, fill in zip(bands, np.atleast_1d(self._fill()), strict=False):
            values = np.asarray(band)
            if not (np.isfinite(values).all() and low <= values.min() and values.max() <= high):
                got = f"values from {values.min():g} to {values.max():g}"
                raise UserError(f"{file}: {got}; allowed, by {SECTION}.range: {low:g} to {high:g}")
            brought = self._brought(band, float(low + (high - low) * (fill / 255)))
            found.append(np.clip(np.asarray(brought), np.float32(low), np.float32(high)))
        return np.stack(found * (self.channels // len(found)), axis=-1)

    def _prepared(self, image: Image.Image) -> Image.Image:
        """The image at its own size: upright, on its background, in the mode that the channels need."""
        turn = TURNS.get(_orientation(image)) if self.upright else None
        if _is_transparent(image) and self.background != "drop":
            behind = Image.new("RGB", image.size, ImageColor.getcolor(self.background, "RGB"))
            front = image.convert("RGBA")
            behind.paste(front, mask=front.getchannel("A"))
            image = behind
        image.info.pop("transparency", None)  # dropped either way; PIL would warn
        mode = "F" if image.mode in DEEP_MODES else self._mode
        image = image if image.mode == mode else image.convert(mode)  # a copy costs as much as the image
        return image if turn is None else image.transpose(turn)

    def _brought(self, image: Image.Image, fill: Any) -> Image.Image:
        h, w = fitting.sides(self.image_size)
        image = fitting.bring_to(image, (w, h), self.fit, fill)
        return fitting.centred(image, self.shape[1::-1], fill) if self.pad_to else image

    @property
    def _mode(self) -> str:
        return "L" if self.channels == 1 else "RGB"

    def _fill(self) -> Any:
        """The colour of the background, in the mode of the channels."""
        try:
            return ImageColor.getcolor("black" if self.background == "drop" else self.background, self._mode)
        except ValueError as error:
            allowed = "drop, or a colour: its name, #rrggbb or rgb(r, g, b)"
            raise UserError(f"{SECTION}.background: got {self.background!r}; allowed: {allowed}") from error

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
        if image.mode not in EIGHT_BIT_MODES + (DEEP_MODES if self.range else ()):
            # PIL would saturate 16 bits: a nearly white image
            declared = f" (grey of more: {SECTION}.range=(lowest, highest))" if image.mode in DEEP_MODES else ""
            allowed = f"{', '.join(EIGHT_BIT_MODES)}{declared}"
            raise UserError(f"{file}: mode {image.mode} is not 8 bits a channel; allowed: {allowed}")
        if self.range and image.mode not in DEEP_MODES and ";16" in str(image.tile):
            raise UserError(f"{file}: colour of 16 bits, read as 8; allowed with a range: grey, or arrays")
        if width * height > self.max_pixels:
            raise UserError(f"{file}: {width}x{height} pixels; allowed: {limit}")
        if min(width, height) < 1 or self._resized(image) > self.max_pixels:
            raise UserError(f"{file}: {width}x{height} is too long to resize ({limit})")

    def _resized(self, image: Image.Image) -> int:
        """Pixels of the image once it is scaled, before it is cut."""
        h, w = fitting.sides(self.image_size)
        if self.fit != "crop":
            return h * w
        by = fitting.scale(image.size, (w, h), self.fit)
        return int(image.width * by) * int(image.height * by)

    def _held(self, image: Image.Image) -> int:
        """Pixels of 4 bytes that decoding holds at once."""
        copies = 3 if self.range or _is_transparent(image) else 1 + (_orientation(image) in TURNS)
        return image.width * image.height * copies + self._resized(image)


def _is_transparent(image: Image.Image) -> bool:
    return image.has_transparency_data and image.mode not in DEEP_MODES


def _orientation(image: Image.Image) -> int:
    """EXIF's in the header: PIL turns a TIFF itself, and would decode a PNG to look behind its pixels."""
    return 1 if image.format == "TIFF" else Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)


def _stream(file: File) -> io.BufferedIOBase:
    return io.BytesIO(file.content) if isinstance(file, Blob) else open(regular_file(file, "image"), "rb")


def _is_whole(file: File, kind: str) -> bool:
    """Say whether a file ends as its format does, or is as long as its header says."""
    with _stream(file) as stream:
        head, size = stream.read(8), stream.seek(0, os.SEEK_END)
        stream.seek(-min(size, TAIL), os.SEEK_END)
        tail = stream.read(TAIL)
    if kind in ENDS:
        return ENDS[kind] in tail
    if kind == "TIFF":  # its directory, which has been read, may lie anywhere
        return True
    claimed = int.from_bytes(head[4:8], "little") + 8 if kind == "WEBP" else int.from_bytes(head[2:6], "little")
    return size >= claimed
