"""Langevin corrections whose length follows the score (Song et al. 2021, alg. 4 and 5, arXiv:2011.13456)."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Float

from sampling.base import Kernel
from sampling.published import ChainGiven, Norms, forward_of
from score_flow.config.hints import Positive
from score_flow.numerics import expand, sum_flat
from score_flow.process.transition import Gaussian
from score_flow.types import Images


def corrector(snr: Positive = 0.16, norms: Norms = "example", chain: ChainGiven = None) -> Kernel:
    """Step to x + e score, std = sqrt(2 e), of size e = 2 a (snr |z|/|score|)^2 at t, a = (alpha_t/alpha_s)^2.

    example: sqrt(d) stands for the norm of the noise z and |score| is each example's own. batch, as published: both are
    means over the batch, which makes a sample depend on its batch.
    """
    forward = forward_of(chain)

    def kernel(denoiser, x, s, t) -> Gaussian | Callable[[Images], Gaussian]:
        score = denoiser.score(x, t)
        a = forward(denoiser.path, s, t)[0] ** 2

        def move(step) -> Gaussian:
            step = expand(step, x)
            return Gaussian(x + step * score, jnp.sqrt(2 * step))

        if norms == "example":
            return move(2 * a * snr**2 * math.prod(x.shape[1:]) / sum_flat(score**2))
        return lambda noise: move(2 * a * (snr * _mean_norm(noise) / _mean_norm(score)) ** 2)

    return kernel


def _mean_norm(x: Images) -> Float[jax.Array, ""]:
    return jnp.mean(jnp.sqrt(sum_flat(x**2)))
