"""The forward step turned round (Song et al. 2021, app. E, arXiv:2011.13456)."""

import jax.numpy as jnp

from sampling.base import Kernel
from sampling.published import ChainGiven, forward_of
from score_flow.numerics import expand
from score_flow.process.transition import Gaussian


def predictor(probability_flow: bool = False, chain: ChainGiven = None) -> Kernel:
    """Step to (2 - a) x + b^2 score, std = b, of the forward step x_t = a x_s + b z (eq. 46).

    Its flow takes half of the score and no noise (eq. 47).
    """
    forward = forward_of(chain)

    def kernel(denoiser, x, s, t) -> Gaussian:
        a, b = (expand(value, x) for value in forward(denoiser.path, s, t)[:2])
        score = denoiser.score(x, t)
        if probability_flow:
            return Gaussian((2 - a) * x + 0.5 * b**2 * score, jnp.zeros_like(b))
        return Gaussian((2 - a) * x + b**2 * score, b)

    return kernel
