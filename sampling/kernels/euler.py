"""Euler-Maruyama on the reverse SDE, or Euler on the probability flow."""

import jax.numpy as jnp

from sampling.base import Kernel
from sampling.published import ChainGiven
from sampling.reverse_sde import stable
from score_flow.model import score_of, velocity_of
from score_flow.numerics import expand
from score_flow.process.transition import Gaussian


def predictor(probability_flow: bool = False, chain: ChainGiven = None) -> Kernel:
    """Step to x - h (velocity - w/2 score), std = sqrt(w h), over h = t - s, or over 1/n as published.

    w is g2, bounded (reverse_sde.stable) but for the published step; 0 along the flow.
    """

    def kernel(denoiser, x, s, t) -> Gaussian:
        c, estimate = denoiser.path.at(t).expand(x), denoiser.estimate(x, t)
        step = 1 / chain.n if chain else expand(t - s, x)
        w = c.g2 if chain else stable(c.g2, c, step)
        if probability_flow:
            w = jnp.zeros_like(w)
        drift = velocity_of(estimate, c) - 0.5 * w * score_of(estimate, c)
        return Gaussian(x - step * drift, jnp.sqrt(w * step))

    return kernel
