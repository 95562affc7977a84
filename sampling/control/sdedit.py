"""SDEdit: samples that resemble an image, such as a stroke painting (Meng et al. 2022, arXiv:2108.01073)."""

from sampling.control.base import WHERE, Control, DequantisedGiven, ScalingGiven, ShapeGiven, StartedFrom
from sampling.control.inputs import read_images, require_size, to_model
from score_flow.config.hints import limited


@limited(WHERE)
def build(image_shape: ShapeGiven, scaling: ScalingGiven, dequantised: DequantisedGiven, *, input: str) -> Control:
    """Start sampling from `input`, noised to config.sampling.t_max: the later, the freer.

    input: one image file, or an .npz of several, taken in turn.
    """
    images = read_images(input, "config.control.input", channels=image_shape[-1], levels=scaling.levels)
    require_size(images, image_shape[:2], "config.control.input")
    x0 = to_model(images, scaling, dequantised)
    return Control(StartedFrom, x0, (x0,))
