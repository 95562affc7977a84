"""DDIM steps (Song et al. 2021, arXiv:2010.02502)."""

import jax.numpy as jnp

from sampling.base import Kernel
from score_flow.config.hints import NotNegative
from score_flow.numerics import expand
from score_flow.process.transition import Gaussian, posterior_coefficients


def predictor(eta: NotNegative = 0.0) -> Kernel:
    """Step to alpha_s x0 + sqrt(sigma_s^2 - std^2) noise, std = eta times the posterior's (eq. 12).

    eta = 0 is a deterministic solver of the probability flow, of order 1, and works upwards (s > t) too; eta = 1 is
    ancestral sampling.
    """

    def kernel(denoiser, x, s, t) -> Gaussian:
        path, estimate = denoiser.path, denoiser.estimate(x, t)
        std = eta * posterior_coefficients(path, s, t)[2] if eta else jnp.zeros_like(s)
        kept = jnp.sqrt(jnp.maximum(path.sigma(s) ** 2 - std**2, 0.0))
        alpha, kept, std = (expand(value, x) for value in (path.alpha(s), kept, std))
        return Gaussian(alpha * estimate.x0 + kept * estimate.noise, std)

    return kernel
