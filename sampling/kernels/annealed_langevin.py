"""Langevin corrections whose length follows the noise level (Song & Ermon 2019, alg. 1, arXiv:1907.05600)."""

import jax.numpy as jnp

from sampling.base import Kernel
from sampling.published import ChainGiven, forward_of
from score_flow.config.hints import Positive
from score_flow.numerics import expand
from score_flow.process.transition import Gaussian


def corrector(snr: Positive = 0.16, chain: ChainGiven = None) -> Kernel:
    """Step to x + e score, std = sqrt(2 e), of size e = 2 a (snr sigma_t)^2 at t, a = (alpha_t/alpha_s)^2."""
    forward = forward_of(chain)

    def kernel(denoiser, x, s, t) -> Gaussian:
        a = forward(denoiser.path, s, t)[0] ** 2
        step = expand(2 * a * (snr * denoiser.path.sigma(t)) ** 2, x)
        return Gaussian(x + step * denoiser.score(x, t), jnp.sqrt(2 * step))

    return kernel
