"""A folder of image files, read in place and brought to one size by ADM's centre crop."""

import contextlib
import dataclasses
import math
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Int, Int32, UInt8
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from score_flow.config.limits import Limits
from score_flow.data import splits
from score_flow.data.base import PATH, Examples, Source
from score_flow.data.listing import Listing, list_images, split_folders
from score_flow.runs.files import existing_path, regular_file
from score_flow.types import UserError, check_choice, one_line

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # a closed list: PIL also knows formats that start other programs (EPS)
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
SECTION = "config.data.source"
DECODED = 20_000  # files that on_error = "skip" decodes at the start; of more it looks at the ends
TAIL = 1 << 16  # bytes in which the end of a file is looked for: some cameras write more behind it
ENDS = {"PNG": b"IEND", "JPEG": b"\xff\xd9", "GIF": b";"}
IN_FLIGHT = 64_000_000  # pixels decoded at once by all threads: 4 bytes each; one larger image is decoded alone

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is lower, and refuses
_POOL = ThreadPoolExecutor(max_workers=8, thread_name_prefix="image")  # PIL decodes outside the interpreter lock


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
    """An image file -> uint8 (image_size, image_size, channels); raises UserError naming the file."""

    image_size: int
    channels: int
    max_pixels: int

    def check(self, file: Path) -> str | None:
        """Say why the header of the file is refused, or None."""
        return _refusal(lambda: self._look(file))

    def check_pixels(self, file: Path) -> str | None:
        """Say why the file is refused, its pixels included, or None."""
        return _refusal(lambda: self.decode(file))

    def check_end(self, file: Path) -> str | None:
        """Say why the header or the end of the file is refused, or None: what can be known without decoding it."""
        return _refusal(lambda: self._look(file, to_the_end=True))

    def decode(self, file: Path) -> UInt8[np.ndarray, "h w c"]:
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

    def _look(self, file: Path, to_the_end: bool = False) -> None:
        with self._open(file) as image:
            if to_the_end and not _is_whole(file, image.format):
                raise UserError(f"{file}: cut off, it does not end as {image.format} does")

    @contextlib.contextmanager
    def _open(self, file: Path) -> Iterator[Image.Image]:
        try:
            with Image.open(regular_file(file, "image"), formats=FORMATS) as image:  # reads the header only
                self._check_header(file, image)
                yield image
        except UserError:
            raise
        except UnidentifiedImageError as error:
            raise UserError(f"{file}: not an image of a known format; allowed: {', '.join(FORMATS)}") from error
        except Exception as error:  # hostile bytes raise almost anything
            raise UserError(f"{file}: cannot be read as an image ({one_line(error)})") from error

    def _check_header(self, file: Path, image: Image.Image) -> None:
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


def _refusal(look: Callable[[], object]) -> str | None:
    try:
        look()
    except UserError as error:
        return str(error)
    return None


def _is_whole(file: Path, kind: str) -> bool:
    """Say whether a file ends as its format does, or is as long as its header says."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        head = stream.read(8)
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


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSource:
    """Image files, decoded when they are read; `skipped` counts the files left out."""

    name: str
    files: Sequence[Path]
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
        images = list(_POOL.map(self.reader.decode, [self.files[i] for i in indices]))
        examples = {"image": np.stack(images) if images else np.empty((0, *self.image_shape), np.uint8)}
        return examples if self.label is None else examples | {"label": self.label[indices]}


def build(
    split: splits.Split = "train",
    path: str = "",
    image_size: Annotated[int, Limits(least=1)] = 32,
    channels: Literal[1, 3] = 3,
    max_pixels: Annotated[int, Limits(least=1, most=Image.MAX_IMAGE_PIXELS)] = 64_000_000,  # at most PIL's own limit
    on_error: Literal["stop", "skip"] = "stop",
    test_share: splits.TestShare = 0.1,
) -> Source:
    """The png, jpg, jpeg, webp, bmp and gif files under a folder of `path` for the split, else `path`, by name.

    The folders are train and test (or val, valid, validation), in any case of letters; without a test folder,
    `test_share` of the training images is held out. Links to folders are followed, each folder once; hidden files are
    left out. Classes are the sub-folders, sorted; without sub-folders, what precedes the first "_" of the file names,
    if any name has one (improved-diffusion's rule); or what EDM's dataset.json says. The training images name the
    classes of every split. Images both in and beside sub-folders have no classes.

    The header of every file is checked here: the format, 8 bits a channel, and at most `max_pixels` before and after
    resizing, so that nothing larger is ever decoded. With on_error = "stop" a file that fails stops the run, now or
    when its pixels are read. With "skip" every file is decoded once now (of more than DECODED files only the ends are
    looked at), and those that fail are left out, counted and reported in one line, so that which images a run has does
    not depend on when it was interrupted; one that breaks later still stops the run.
    Alpha is dropped, EXIF rotation ignored and animation reduced to its first frame, as in ADM. Raises UserError.
    """
    check_choice("split", split, splits.NAMES)
    if image_size**2 > max_pixels:
        allowed = f"1 to {math.isqrt(max_pixels)} ({SECTION}.max_pixels = {max_pixels})"
        raise UserError(f"{SECTION}.image_size: got {image_size}; allowed: {allowed}")
    base = existing_path(path, PATH)
    if not base.is_dir():
        raise UserError(f"{PATH}: {base} is not a folder")
    stem, reader = Path(os.path.abspath(base)).name, ImageReader(image_size, channels, max_pixels)
    train, test, beside = split_folders(base)
    listed = list_images(train)
    if test and split == "test":
        return _open(f"{stem}/{test.name}", list_images(test), listed.classes, reader, on_error)
    name = f"{stem}/{'train' if train is base else train.name}"
    if test:
        return _open(name, listed, listed.classes, reader, on_error, beside)
    key = "folder", train.resolve(), listed, reader, on_error
    whole = splits.shared(key, lambda: _open(name, listed, listed.classes, reader, on_error))
    return splits.share_out(whole, split, test_share, stem)


def _open(
    name: str,
    listed: Listing,
    classes: tuple[str, ...],
    reader: ImageReader,
    on_error: str,
    beside: tuple[str, ...] = (),
) -> FolderSource:
    """Return the files that can be used, labelled by the classes if they have them."""
    files = [listed.root / file for file in listed.files]
    kept, label = _usable(files, reader, on_error), listed.labels(classes)
    return FolderSource(
        name=name,
        files=[files[i] for i in kept],
        label=None if label is None else label[kept],
        classes=() if label is None else classes,
        reader=reader,
        skipped=len(files) - len(kept),
        unlabelled=listed.strange(classes) if label is None else "",
        notes=(*beside, *listed.notes),
    )


def _usable(files: list[Path], reader: ImageReader, on_error: str) -> Int[np.ndarray, "kept"]:
    """Return the indices of the files that pass; all of them, unless on_error is "skip"."""
    look, refused = reader.check, {}
    if on_error == "skip":
        look = reader.check_pixels if len(files) <= DECODED else reader.check_end
    with tqdm(total=len(files), unit=" files", desc="data: checking", delay=3, leave=False, disable=None) as bar:
        for start in range(0, len(files), 4096):  # in parts: each queued file costs memory
            for i, reason in enumerate(_POOL.map(look, files[start : start + 4096]), start):
                bar.update()
                if reason and on_error == "stop":
                    raise UserError(f'{reason} ({SECTION}.on_error="skip" leaves such files out)')
                if reason:
                    refused[i] = reason
    if len(refused) == len(files):
        raise UserError(f"none of {len(files)} files is a usable image; the first: {refused[0]}")
    if refused:
        first = next(iter(refused.values()))
        print(f"data: skipped {len(refused)} of {len(files)} files; the first: {first}", file=sys.stderr)
    return np.array([i for i in range(len(files)) if i not in refused])
