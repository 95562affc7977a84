"""What controls read: images and arrays from files, checked before time is spent; nothing is unpickled."""

import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from score_flow.data import arrays
from score_flow.data import levels as pixels
from score_flow.data.images import FORMATS, ImageReader
from score_flow.data.scaling import Scaling
from score_flow.errors import UserError, one_line
from score_flow.runs.files import array_of, regular_file

MAX_PIXELS = 64_000_000
MAX_BYTES = 4 << 30


def existing_file(file: str | Path, what: str) -> Path:
    """Return the path of a regular file; raises UserError when there is none."""
    return regular_file(str(file), what)


def read_images(file: str | Path, what: str, *, channels: int, levels: int) -> UInt8[np.ndarray, "n h w c"]:
    """Read the levels 0 .. levels - 1 of one image file, or of the stack in an .npz (uint8 `image`, as in samples.npz).

    An image file is stretched from 0..255; alpha is dropped. Raises UserError.
    """
    path = existing_file(file, what)
    if path.suffix == ".npz":
        images = arrays.read(path, arrays.Form(levels), MAX_BYTES).image
    else:
        images = np.rint(_decode(path, channels) * ((levels - 1) / 255)).astype(np.uint8)[None]
    if images.shape[-1] != channels:
        raise UserError(f"{what}: {path} has {images.shape[-1]} channels; allowed: {channels}")
    return images


def _decode(path: Path, channels: int) -> UInt8[np.ndarray, "h w c"]:
    if channels not in (1, 3):
        raise UserError(f"{path}: an image file has 1 or 3 channels, the model {channels}; allowed: an .npz of images")
    if refused := ImageReader(1, channels, MAX_PIXELS).check(path).refused:
        raise UserError(refused)
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.info.pop("transparency", None)  # dropped either way; PIL would warn
            pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    except Exception as error:  # hostile bytes raise almost anything
        raise UserError(f"{path}: cannot be read as an image ({one_line(error)})") from error
    return pixels.reshape(*pixels.shape[:2], channels)


def require_size(images: UInt8[np.ndarray, "n h w c"], size: tuple[int, int], what: str) -> None:
    """Raise UserError unless the images are of size (h, w)."""
    if images.shape[1:3] != tuple(size):
        got, wanted = (" x ".join(map(str, shape)) for shape in (images.shape[1:3], size))
        raise UserError(f"{what}: got images of {got} pixels (height x width); allowed: {wanted}")


def to_model(levels: UInt8[np.ndarray, "n h w c"], scaling: Scaling, dequantised: bool) -> Float[Array, "n h w c"]:
    """Scale levels to the model's range; where its data fill the cells of their levels, to the middles of the cells."""
    if scaling.range:
        raise UserError("config.control takes images of pixel levels, and the model is one of real numbers")
    return pixels.to_model(scaling, dequantised, jnp.asarray(levels), pixels.middles)


def holds(file: str | Path, what: str, name: str) -> bool:
    """Say whether a file is an .npy, or an .npz with an array of a name."""
    path = existing_file(file, what)
    if path.suffix != ".npz" or not zipfile.is_zipfile(path):
        return path.suffix == ".npy"
    with zipfile.ZipFile(path) as archive:
        return f"{name}.npy" in archive.namelist()


def read_array(file: str | Path, what: str, name: str) -> Float[np.ndarray, "..."]:
    """Read a real array from an .npy file, or the one called `name` (or the only one) of an .npz; raises UserError."""
    path = existing_file(file, what)
    try:
        loaded = array_of(path, name, MAX_BYTES)
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
    if loaded.dtype.kind not in "fiub" or not loaded.size or not np.isfinite(loaded).all():
        raise UserError(f"{what}: {path} holds {loaded.dtype} of shape {loaded.shape}; allowed: finite real numbers")
    return loaded
