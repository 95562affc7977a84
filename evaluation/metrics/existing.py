"""Images that exist already: what other programs, or earlier runs, left in a folder, a zip or an .npz."""

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from score_flow.data import archive, arrays
from score_flow.data.base import Source
from score_flow.data.encoded import open_files
from score_flow.data.images import File, ImageReader
from score_flow.data.listing import list_images
from score_flow.data.walking import Paths
from score_flow.errors import UserError
from score_flow.experiment import Experiment
from score_flow.runs.files import existing_path, names_in, sha256_of

WHERE = "config.eval.samples"
GREY = ("1", "L", "I;16")  # modes of files
FULL = 256  # levels of files, and of ADM's arr_0


class Existing(NamedTuple):
    """A set of images, by their numbers, as pixel levels of a run."""

    name: str
    n: int
    sha256: str  # of the file; of a folder, of the names and contents of its files
    read: Callable[[Int[np.ndarray, "b"]], UInt8[np.ndarray, "b h w c"]]


class AsTheyAre(ImageReader):
    """Reads image files of one size; those of another, or with colours where there are none, are refused."""

    def _check_header(self, file: File, image: Image.Image) -> None:
        super()._check_header(file, image)
        wanted = (self.shape[1], self.shape[0])
        if image.size != wanted or (self.channels == 1 and image.mode not in GREY):
            got = f"{image.width}x{image.height} pixels of mode {image.mode}"
            raise UserError(f"{file}: {got}; allowed: {wanted[0]}x{wanted[1]}, {self.channels} channel(s)")


def open_existing(run: Experiment, path: str) -> Existing:
    """Open a folder or archive of image files, or an .npz: arr_0 in 0 .. 255 as ADM's, or images in the run's levels.

    Raises UserError, in one line, unless every image has the shape of the run's.
    """
    found = existing_path(path, WHERE)
    try:
        source = _source(found, run)
    except UserError as error:
        reason = str(error).partition(" (config.data.source.on_error")[0].removeprefix("config.data.source.path: ")
        raise UserError(f"{WHERE}: {reason}") from error
    shape, levels = run.pixel_shape, run.scaling.levels
    if tuple(source.image_shape) != shape:
        raise UserError(f"{WHERE}: {found} holds images of shape {source.image_shape}; allowed: {shape}, the run's.")

    def read(indices):
        images = source.read(indices)["image"]
        if source.levels == levels:
            return images
        return np.rint(images * ((levels - 1) / (source.levels - 1))).astype(np.uint8)

    return Existing(found.name, len(source), _digest(found, source), read)


def _source(found: Path, run: Experiment) -> Source:
    if found.suffix == ".npz":
        levels = FULL if "arr_0" in names_in(found) else run.scaling.levels
        return arrays.read(found, arrays.Form(levels))
    height, width, channels = run.pixel_shape
    if channels not in (1, 3):
        raise UserError(f"the run's images have {channels} channels, files 1 or 3: give an .npz.")
    reader = AsTheyAre(image_size=(height, width), channels=channels)
    if found.is_dir():
        listed = list_images(found, "none")
        return open_files(found.name, Paths(listed.root, listed.files), reader, "stop")
    build = inspect.unwrap(archive.build)  # which takes the reader itself
    return build("train", str(found), reader=reader, labels="none", test_share=0.0)


def _digest(found: Path, source: Source) -> str:
    if found.is_file():
        return sha256_of(found)
    digest = hashlib.sha256()
    for file in source.files:
        digest.update(f"{file.relative_to(found)}\n{sha256_of(file)}\n".encode())
    return digest.hexdigest()
