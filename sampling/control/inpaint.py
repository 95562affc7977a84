"""Inpainting: some pixels of an image are known."""

import numpy as np
from jaxtyping import Bool, UInt8

from sampling.control.base import WHERE, Control, DequantisedGiven, Method, ScalingGiven, ShapeGiven, measured
from sampling.control.inputs import read_images, require_size, to_model
from sampling.control.measurement import Mask
from score_flow.config.hints import NotNegative, Positive, limited
from score_flow.data.scaling import Scaling
from score_flow.errors import UserError


@limited(WHERE)
def build(
    image_shape: ShapeGiven,
    scaling: ScalingGiven,
    dequantised: DequantisedGiven,
    *,
    input: str,
    mask: str,
    method: Method = "pseudo_inverse",
    sigma_y: NotNegative = 0.0,
    data_std: Positive = 0.5,
) -> Control:
    """Keep the pixels of `input` where the image file `mask` is white, and sample the black ones.

    input: one image file, or an .npz of several, taken in turn. method: pseudo_inverse (guidance, with every sampler)
    or replacement (of the known pixels by the noised input after every kernel of a chain). sigma_y: standard deviation
    of the noise in what is known, of pixels in [0, 1]. data_std: of the data, in the model's range.
    """
    images = read_images(input, "config.control.input", channels=image_shape[-1], levels=scaling.levels)
    require_size(images, image_shape[:2], "config.control.input")
    white = read_images(mask, "config.control.mask", channels=1, levels=256)
    require_size(white, image_shape[:2], "config.control.mask")
    known = white[0] >= 128
    if not known.any():
        raise UserError(f"config.control.mask: {mask} has no white pixel; allowed: white where the image is known")
    return of_pixels(
        images, known, scaling, dequantised=dequantised, method=method, sigma_y=sigma_y, data_std=data_std
    )


def of_pixels(
    images: UInt8[np.ndarray, "n h w c"],
    known: Bool[np.ndarray, "h w 1"],
    scaling: Scaling,
    *,
    dequantised: bool,
    method: Method = "pseudo_inverse",
    sigma_y: float = 0.0,
    data_std: float = 0.5,
) -> Control:
    """Keep the pixels of some images where `known`; the rest as of `build`."""
    x0, mask = to_model(images, scaling, dequantised), known.astype(np.float32)
    sigma_y *= scaling.high - scaling.low
    return measured(Mask(mask), mask * x0, method, sigma_y=sigma_y, data_std=data_std, images=x0)
