"""DDIM sampling."""

import jax.numpy as jnp

from sampling.base import WHERE, Kernel, Sampler, chain_sampler
from score_flow.config.hints import Count, NotNegative, UnitTime, limited
from score_flow.config.limits import check_times
from score_flow.process.grid import GridChoice, choose_in_chain, intervals
from score_flow.process.transition import Gaussian, posterior_coefficients


def ddim(eta: float = 0.0) -> Kernel:
    """alpha_s x0 + sqrt(sigma_s^2 - std^2) noise, std = eta times the posterior's (arXiv:2010.02502, eq. 12).

    eta = 0 is a deterministic solver of the probability flow, of order 1, and works upwards (s > t) too; eta = 1 is
    ancestral sampling.
    """

    def kernel(denoiser, x, s, t) -> Gaussian:
        path, estimate = denoiser.path, denoiser.estimate(x, t)
        std = eta * posterior_coefficients(path, s, t)[2] if eta else jnp.zeros_like(s)
        kept = jnp.sqrt(jnp.maximum(path.sigma(s) ** 2 - std**2, 0.0))
        return Gaussian(path.alpha(s) * estimate.x0 + kept * estimate.noise, std)

    return kernel


@limited(WHERE)
def build(
    t_min: UnitTime = 1e-3,
    t_max: UnitTime = 1.0,
    n_steps: Count = 100,
    grid: GridChoice = "uniform",
    eta: NotNegative = 0.0,
    respacing: str = "",
) -> Sampler:
    """n_steps DDIM steps from t_max to t_min, or those that a respacing keeps ("ddim50") of a chain of n_steps."""
    check_times(WHERE, t_min, t_max)
    times = choose_in_chain(WHERE, grid, n_steps, respacing)
    return chain_sampler([ddim(eta)], lambda path: intervals(times(path, n_steps, t_min, t_max)))
