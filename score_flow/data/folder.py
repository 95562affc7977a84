"""A folder of image files, read in place and brought to one size by ADM's centre crop."""

import contextlib
import dataclasses
import math
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int32, UInt8
from PIL import Image, UnidentifiedImageError

from score_flow.data.base import Examples, existing_path, one_line
from score_flow.types import UserError, check_choice

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # a closed list: PIL also knows formats that start other programs (EPS)
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
SPLITS = ("train", "test")

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is lower, and refuses
_POOL = ThreadPoolExecutor(max_workers=8, thread_name_prefix="image")  # PIL decodes outside the interpreter lock


@dataclasses.dataclass(frozen=True)
class Decoder:
    """An image file -> uint8 (image_size, image_size, channels); raises UserError naming the file."""

    image_size: int
    channels: int
    max_pixels: int

    def check(self, file: Path) -> str | None:
        """Why the header of the file is refused, or None."""
        try:
            with self._open(file):
                return None
        except UserError as error:
            return str(error)

    def decode(self, file: Path) -> UInt8[np.ndarray, "h w c"]:
        with self._open(file) as image:
            image.info.pop("transparency", None)  # dropped either way; PIL would warn
            pixels = centre_crop(image.convert("L" if self.channels == 1 else "RGB"), self.image_size)
            return np.array(pixels).reshape(self.image_size, self.image_size, self.channels)

    @contextlib.contextmanager
    def _open(self, file: Path) -> Iterator[Image.Image]:
        try:
            with Image.open(file, formats=FORMATS) as image:  # reads the header only
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
        if image.mode not in EIGHT_BIT_MODES:  # PIL would saturate 16 bits: a nearly white image
            raise UserError(f"{file}: mode {image.mode} is not 8 bits a channel; allowed: {', '.join(EIGHT_BIT_MODES)}")
        if width * height > self.max_pixels:
            raise UserError(f"{file}: {width}x{height} pixels; allowed: data.max_pixels = {self.max_pixels}")
        if self.image_size**2 * max(width, height) > self.max_pixels * min(width, height):  # size before the crop
            raise UserError(f"{file}: {width}x{height} is too long to resize (data.max_pixels = {self.max_pixels})")


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
    decoder: Decoder
    skipped: int = 0
    levels: int = 256

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.decoder.image_size, self.decoder.image_size, self.decoder.channels

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: Int[np.ndarray, "b"]) -> Examples:
        images = list(_POOL.map(self.decoder.decode, [self.files[i] for i in indices]))
        examples = {"image": np.stack(images) if images else np.empty((0, *self.image_shape), np.uint8)}
        return examples if self.label is None else examples | {"label": self.label[indices]}


def build(
    split: str = "train",
    path: str = "",
    image_size: int = 32,
    channels: int = 3,
    max_pixels: int = 64_000_000,
    on_error: str = "stop",
) -> FolderSource:
    """The png, jpg, jpeg, webp, bmp and gif files under `path/<split>` if that exists, else `path`, ordered by name.

    Classes are the sub-folders, sorted; with files outside sub-folders they are what precedes the first "_" of the
    file names, if any name has one (improved-diffusion's rule). A `train` folder names the classes of every split.
    Hidden files and linked folders are passed over.

    The header of every file is checked here: the format, 8 bits a channel, and at most `max_pixels` before and after
    resizing, so that nothing larger is ever decoded. A file that fails stops the run or, with on_error = "skip", is
    left out, counted and reported in one line. Pixels are decoded on reading only, since decoding a large set to test
    it takes hours: a file that breaks there (a truncated one) stops the run and is named, whatever on_error says.
    Alpha is dropped, EXIF rotation ignored and animation reduced to its first frame, as in ADM. Raises UserError.
    """
    _check_fields(image_size, channels, max_pixels, on_error)
    base = existing_path(path)
    root = _split_folder(base, split)
    files = _image_files(root)
    if not files:
        raise UserError(f"data.path: no images under {root}; allowed extensions: {', '.join(EXTENSIONS)}")
    train = base / "train"
    classes = tuple(sorted(set(_classes(_image_files(train)) if train.is_dir() else _classes(files))))
    decoder = Decoder(image_size, channels, max_pixels)
    kept = _check_headers([root / file for file in files], decoder, on_error)
    label = _labels(root, files, classes)
    return FolderSource(
        name=f"{base.name}/{split}",
        files=[root / files[i] for i in kept],
        label=None if label is None else label[kept],
        classes=classes,
        decoder=decoder,
        skipped=len(files) - len(kept),
    )


def _check_fields(image_size: int, channels: int, max_pixels: int, on_error: str) -> None:
    check_choice("data.on_error", on_error, ("stop", "skip"))
    if channels not in (1, 3):
        raise UserError(f"data.channels: got {channels}; allowed: 1 or 3")
    if not 1 <= max_pixels <= Image.MAX_IMAGE_PIXELS:
        raise UserError(f"data.max_pixels: got {max_pixels}; allowed: 1 to {Image.MAX_IMAGE_PIXELS}, PIL's own limit")
    if image_size < 1 or image_size**2 > max_pixels:
        largest = math.isqrt(max_pixels)
        raise UserError(f"data.image_size: got {image_size}; allowed: 1 to {largest} (data.max_pixels = {max_pixels})")


def _split_folder(base: Path, split: str) -> Path:
    if not base.is_dir():
        raise UserError(f"data.path: {base} is not a folder")
    if (base / split).is_dir():
        return base / split
    there = [name for name in SPLITS if (base / name).is_dir()]
    if there:  # falling back to `base` would evaluate on the training images and call "train" a class
        raise UserError(f"data.split: {base} has no sub-folder {split!r}; it has: {', '.join(there)}")
    return base


def _image_files(root: Path) -> list[str]:
    """The image files under root, relative to it, in an order that does not depend on the file system."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        images = [name for name in names if name.lower().endswith(EXTENSIONS) and not name.startswith(".")]
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in images]
    return sorted(found)


def _classes(files: list[str]) -> list[str]:
    """The class of each file, or an empty list: the data set has none."""
    if all("/" in file for file in files):
        return [file.split("/", 1)[0] for file in files]
    stems = [Path(file).stem for file in files]
    return [stem.split("_", 1)[0] for stem in stems] if any("_" in stem for stem in stems) else []


def _labels(root: Path, files: list[str], classes: Sequence[str]) -> Int32[np.ndarray, "n"] | None:
    if not classes:
        return None
    index = {name: i for i, name in enumerate(classes)}
    names = _classes(files)
    strange = sorted(set(names) - set(classes))
    if strange or not names:
        got = ", ".join(strange[:3]) or "none"
        raise UserError(f"{root}: got class {got}; allowed, from the train folder: {', '.join(classes[:10])}")
    return np.array([index[name] for name in names], np.int32)


def _check_headers(files: list[Path], decoder: Decoder, on_error: str) -> Int[np.ndarray, "kept"]:
    """The indices of the files whose header passes; all of them, unless on_error is "skip"."""
    refused = {}
    for start in range(0, len(files), 4096):  # in parts: each queued file costs memory
        for i, reason in enumerate(_POOL.map(decoder.check, files[start : start + 4096]), start):
            if reason and on_error == "stop":
                raise UserError(f'{reason} (data.on_error = "skip" leaves such files out)')
            if reason:
                refused[i] = reason
    if len(refused) == len(files):
        raise UserError(f"none of {len(files)} files is a usable image; the first: {refused[0]}")
    if refused:
        first = next(iter(refused.values()))
        print(f"data: skipped {len(refused)} of {len(files)} files; the first: {first}", file=sys.stderr)
    return np.array([i for i in range(len(files)) if i not in refused])
