"""Sheets of images as PNG files."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from score_flow.runs.files import write_whole
from score_flow.runs.places import Place

Pixels = UInt8[np.ndarray, "n h w c"]


def grid(
    images: UInt8[np.ndarray, "n h w c"], levels: int = 256, *, columns: int = 0, border: int = 1
) -> UInt8[np.ndarray, "H W c"]:
    """Lay images side by side, row by row, their levels stretched to 0..255; as square as it gets without `columns`."""
    n, h, w, c = images.shape
    columns = columns or int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    stretched = (images.astype(np.float32) * (255.0 / (levels - 1))).round().astype(np.uint8)
    sheet = np.full((rows, h + border, columns, w + border, c), 96, np.uint8)
    for i, image in enumerate(stretched):
        sheet[i // columns, :h, i % columns, :w] = image
    return sheet.reshape(rows * (h + border), columns * (w + border), c)[: -border or None, : -border or None]


def beside(
    shown: Sequence[UInt8[np.ndarray, "n h w c"]], samples: UInt8[np.ndarray, "m h w c"]
) -> tuple[UInt8[np.ndarray, "cells h w c"], int]:
    """Make (images, columns) of a sheet with a row an input: what is shown of it, then samples i of input i mod n."""
    n = min(len(shown[0]), len(samples))
    missing = np.zeros((-len(samples) % n, *samples.shape[1:]), np.uint8)
    drawn = np.concatenate([samples, missing]).reshape(-1, n, *samples.shape[1:])
    columns = [*(pictures[:n] for pictures in shown), *drawn]
    return np.stack(columns, axis=1).reshape(-1, *samples.shape[1:]), len(columns)


def picture_of(sheet: UInt8[np.ndarray, "H W c"]) -> Image.Image:
    """Make a picture of one channel, or of three, which are the first of many."""
    return Image.fromarray(sheet[..., 0] if sheet.shape[-1] < 3 else sheet[..., :3])


def save_grid(file: Place, images: UInt8[np.ndarray, "n h w c"], levels: int = 256, *, columns: int = 0) -> None:
    """Write a sheet; small images are enlarged by whole factors, so that pixels stay square."""
    sheet = grid(images, levels, columns=columns)
    zoom = max(1, 32 // images.shape[1])
    picture = picture_of(sheet)
    picture = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
    write_whole(file, lambda stream: picture.save(stream, "PNG"))
