"""Images of any size brought to one: cut, padded or stretched, by ADM's filters."""

from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from score_flow.config.limits import Limits
from score_flow.errors import UserError

Fit = Literal["crop", "pad", "stretch"]
Size = Annotated[int | tuple[int, int], Limits(least=1)]  # a side, or (h, w)
PadTo = Annotated[int | tuple[int, int], Limits(least=0)]  # 0: nothing is added


def sides(size: int | tuple[int, ...]) -> tuple[int, int]:
    """Return (h, w) of a side or of both."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def scale(size: tuple[int, int], target: tuple[int, int], fit: Fit) -> float:
    """Return by how much an image is scaled to fill the target, or, with fit = "pad", to lie within it."""
    ratios = [wanted / side for wanted, side in zip(target, size, strict=True)]
    return min(ratios) if fit == "pad" else max(ratios)


def bring_to(image: Image.Image, target: tuple[int, int], fit: Fit, fill: Any = 0) -> Image.Image:
    """Return the image at a size (w, h): box-halved while it stays long enough, then bicubic, then cut or padded.

    crop: the short side decides and the middle of the long one stays, ADM's square crop (Dhariwal and Nichol 2021,
    arXiv:2105.05233, image_datasets.center_crop_arr) for any shape; pad: the long side decides, and `fill` is added
    evenly; stretch: both sides become the target's, whatever that does to the shape.
    """
    while scale(image.size, target, fit) <= 0.5:
        image = image.resize([max(side // 2, 1) for side in image.size], Image.Resampling.BOX)
    by = scale(image.size, target, fit)
    size = target if fit == "stretch" else tuple(max(round(side * by), 1) for side in image.size)
    return centred(image.resize(size, Image.Resampling.BICUBIC), target, fill)


def centred(image: Image.Image, target: tuple[int, int], fill: Any = 0) -> Image.Image:
    """Return the middle of an image at a size (w, h), and `fill` where it does not reach."""
    left, top = ((side - wanted) // 2 for side, wanted in zip(image.size, target, strict=True))
    if left >= 0 and top >= 0:
        return image.crop((left, top, left + target[0], top + target[1]))
    canvas = Image.new(image.mode, target, fill)
    canvas.paste(image, (-left, -top))
    return canvas


def padded(
    images: Shaped[np.ndarray, "n h w c"], size: int | tuple[int, ...], fill: Any
) -> Shaped[np.ndarray, "n h2 w2 c"]:
    """Return a stack of images with `fill` around each, up to the size (h, w); 0: as it is. Raises UserError."""
    if not size:
        return images
    (h, w), wanted = images.shape[1:3], sides(size)
    if wanted[0] < h or wanted[1] < w:
        raise UserError(f"config.data.source.pad_to: got {size}; allowed: from {h} x {w} on")
    before = [(wanted - side + 1) // 2 for wanted, side in zip(sides(size), images.shape[1:3], strict=True)]
    after = [wanted - side - b for wanted, side, b in zip(sides(size), images.shape[1:3], before, strict=True)]
    return np.pad(images, ((0, 0), *zip(before, after, strict=True), (0, 0)), constant_values=fill)
