"""DDIM sampling."""

import jax.numpy as jnp

from sampling.base import Kernel, Sampler, chain_sampler
from score_flow.grid import GRIDS, intervals
from score_flow.transition import Gaussian, posterior_coefficients
from score_flow.types import check_choice


def ddim(eta: float = 0.0) -> Kernel:
    """alpha_s x0 + sqrt(sigma_s^2 - std^2) noise, std = eta times the posterior's (arXiv:2010.02502, eq. 12).

    eta = 0 is a deterministic solver of the probability flow, of order 1; eta = 1 is ancestral sampling.
    """

    def kernel(denoiser, x, s, t) -> Gaussian:
        path, estimate = denoiser.path, denoiser.estimate(x, t)
        std = eta * posterior_coefficients(path, s, t)[2]
        kept = jnp.sqrt(jnp.maximum(path.sigma(s) ** 2 - std**2, 0.0))
        return Gaussian(path.alpha(s) * estimate.x0 + kept * estimate.noise, std)

    return kernel


def build(
    t_min: float = 1e-3, t_max: float = 1.0, n_steps: int = 100, grid: str = "uniform", eta: float = 0.0
) -> Sampler:
    """n_steps DDIM steps from t_max to t_min."""
    check_choice("sampler ddim: grid", grid, GRIDS)
    return chain_sampler([ddim(eta)], lambda path: intervals(GRIDS[grid](path, n_steps, t_min, t_max)), t_max)
