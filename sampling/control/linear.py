"""Any linear measurement of an image, given as a matrix."""

import math

import jax.numpy as jnp
import numpy as np

from sampling.control.base import WHERE, Control, DequantisedGiven, Method, ScalingGiven, ShapeGiven, measured
from sampling.control.inputs import holds, read_array, read_images, require_size, to_model
from sampling.control.measurement import Matrix
from score_flow.config.hints import NotNegative, Positive, limited
from score_flow.errors import UserError


@limited(WHERE)
def build(
    image_shape: ShapeGiven,
    scaling: ScalingGiven,
    dequantised: DequantisedGiven,
    *,
    input: str,
    matrix: str,
    method: Method = "pseudo_inverse",
    sigma_y: NotNegative = 0.0,
    data_std: Positive = 0.5,
) -> Control:
    """Know y = matrix u + sigma_y noise, u the h w c pixels of an image in [0, 1], channels fastest.

    matrix: (m, h w c), an .npy file, or `matrix` of an .npz. input: the numbers y, (m,) or (n, m), as a floating-point
    .npy, or `y` of an .npz; or images, which are then measured. method, sigma_y: see inpaint.
    """
    h = read_array(matrix, "config.control.matrix", "matrix").astype(np.float64)
    d = math.prod(image_shape)
    if h.ndim != 2 or h.shape[1] != d or not h.any():
        raise UserError(f"config.control.matrix: got shape {h.shape}; allowed: (m, {d}), m measurements, not all 0")
    measurement, width = Matrix.of(h, image_shape), scaling.high - scaling.low
    x0 = None
    if holds(input, "config.control.input", "y"):
        y = np.atleast_2d(read_array(input, "config.control.input", "y").astype(np.float64))
        if y.ndim != 2 or y.shape[1] != len(h):
            raise UserError(f"config.control.input: got measurements of shape {y.shape}; allowed: (n, {len(h)})")
        y = scaling.low * h.sum(axis=1) + width * y
    else:
        images = read_images(input, "config.control.input", channels=image_shape[-1], levels=scaling.levels)
        require_size(images, image_shape[:2], "config.control.input")
        x0 = to_model(images, scaling, dequantised)
        y = np.asarray(x0, np.float64).reshape(len(x0), -1) @ h.T
    y = jnp.asarray(measurement.rotate(y), jnp.float32)
    return measured(measurement, y, method, sigma_y=sigma_y * width, data_std=data_std, images=x0)
