"""Colouring: the grey image is known."""

from typing import Annotated

from sampling.control.base import WHERE, Control, DequantisedGiven, Method, ScalingGiven, ShapeGiven, measured
from sampling.control.inputs import read_images, require_size, to_model
from sampling.control.measurement import Grey
from score_flow.config.hints import NotNegative, Positive, limited
from score_flow.config.limits import Limits
from score_flow.errors import UserError

WEIGHTS = {"mean": (1 / 3, 1 / 3, 1 / 3), "luminance": (0.299, 0.587, 0.114)}  # of R, G, B (ITU-R BT.601)


@limited(WHERE)
def build(
    image_shape: ShapeGiven,
    scaling: ScalingGiven,
    dequantised: DequantisedGiven,
    *,
    input: str,
    grey: Annotated[str, Limits(among=tuple(WEIGHTS))] = "mean",
    method: Method = "pseudo_inverse",
    sigma_y: NotNegative = 0.0,
    data_std: Positive = 0.5,
) -> Control:
    """Colour: what is known of a pixel is its grey value, the mean of its channels, as published, or their luminance.

    input: one image file, grey or in colour (then its grey value is taken), or an .npz of several, taken in turn.
    method, sigma_y: see inpaint.
    """
    if image_shape[-1] != 3:
        raise UserError(
            f"config.control.name = colourise needs a model of images of 3 channels, got {image_shape[-1]}."
        )
    images = read_images(input, "config.control.input", channels=3, levels=scaling.levels)
    require_size(images, image_shape[:2], "config.control.input")
    x0, measurement = to_model(images, scaling, dequantised), Grey(WEIGHTS[grey])
    y = measurement.apply(x0)
    sigma_y *= scaling.high - scaling.low
    return measured(measurement, y, method, sigma_y=sigma_y, data_std=data_std, images=x0)
