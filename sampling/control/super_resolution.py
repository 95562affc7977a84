"""Super-resolution without training for it: the mean of each block of pixels is known."""

from sampling.control.base import WHERE, Control, DequantisedGiven, Method, ScalingGiven, ShapeGiven, measured
from sampling.control.inputs import read_images, require_size, to_model
from sampling.control.measurement import BlockMean
from score_flow.config.hints import NotNegative, Positive, Whole, limited
from score_flow.errors import UserError


@limited(WHERE)
def build(
    image_shape: ShapeGiven,
    scaling: ScalingGiven,
    dequantised: DequantisedGiven,
    *,
    input: str,
    low_res: Whole = 0,
    method: Method = "pseudo_inverse",
    sigma_y: NotNegative = 0.0,
    data_std: Positive = 0.5,
) -> Control:
    """Enlarge `input`, a small square image (low_res = 0), or one of full size that is known at low_res x low_res.

    input: one image file, or an .npz of several, taken in turn. method, sigma_y: see inpaint.
    """
    images = read_images(input, "config.control.input", channels=image_shape[-1], levels=scaling.levels)
    h, w = image_shape[:2]
    side = low_res or images.shape[1]
    require_size(images, (h, w) if low_res else (side, side), "config.control.input")
    if side < 1 or h % side or w % side:
        raise UserError(f"config.control.low_res: got {side} x {side} pixels; allowed: a divisor of {h} x {w}")
    x0, measurement = to_model(images, scaling, dequantised), BlockMean(side, (h // side, w // side))
    y = measurement.apply(x0) if low_res else x0
    sigma_y *= scaling.high - scaling.low
    return measured(measurement, y, method, sigma_y=sigma_y, data_std=data_std, images=x0 if low_res else None)
