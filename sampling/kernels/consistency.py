"""Steps of a consistency model: to the data in one jump, and back by noise (Song et al. 2023, arXiv:2303.01469)."""

import jax.numpy as jnp

from sampling.base import Kernel
from score_flow.config.hints import UnitTime
from score_flow.numerics import expand
from score_flow.process.transition import Gaussian, forward_step


def predictor(t_min: UnitTime = 0.0) -> Kernel:
    """Jump to t_min by an average velocity, from where noise leads back to s: exact for a perfect network (alg. 1)."""

    def kernel(denoiser, x, s, t) -> Gaussian:
        end = jnp.minimum(jnp.asarray(t_min, x.dtype), s)
        arrived = x - expand(t - end, x) * denoiser.average_velocity(x, t, end)
        scale, std = forward_step(denoiser.path, end, s)
        moves = s > end  # else log SNR may be infinite at both
        return Gaussian(expand(jnp.where(moves, scale, 1.0), x) * arrived, expand(jnp.where(moves, std, 0.0), x))

    return kernel
