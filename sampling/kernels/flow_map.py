"""Steps of a flow map: x_s = x_t - (t - s) u(x_t, t, s), of any length (Geng et al. 2025, arXiv:2505.13447)."""

import jax.numpy as jnp

from sampling.base import Kernel
from score_flow.numerics import expand
from score_flow.process.transition import Gaussian


def predictor() -> Kernel:
    """Step along the probability flow by its average velocity: exact for a perfect network, whatever t - s is."""

    def kernel(denoiser, x, s, t) -> Gaussian:
        moved = expand(t - s, x) * denoiser.average_velocity(x, t, s)
        return Gaussian(x - moved, jnp.zeros_like(expand(jnp.asarray(s, x.dtype), x)))

    return kernel
