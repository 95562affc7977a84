"""Gaussian transitions between two times of a path: the DDPM algebra, for every path."""

from typing import NamedTuple

import jax.numpy as jnp

from score_flow.numerics import expand
from score_flow.paths.base import Path
from score_flow.types import Images, Times


class Gaussian(NamedTuple):
    """N(mean, std^2 I); std broadcasts over mean."""

    mean: Images
    std: Images | Times


def lost_fraction(path: Path, s: Times, t: Times) -> Times:
    """1 - SNR(t)/SNR(s) for s < t, in [0, 1]: a difference of logarithms, not of variances, so nothing cancels."""
    return -jnp.expm1(path.log_snr(t) - path.log_snr(s))


def posterior_coefficients(path: Path, s: Times, t: Times) -> tuple[Times, Times, Times]:
    """(on x_t, on x_0, std) of q(x_s | x_t, x_0), s < t; std = 0 where sigma(s) = 0 (Ho et al. 2020, eq. 7,
    arXiv:2006.11239)."""
    lost = lost_fraction(path, s, t)
    alpha_s, sigma_s, alpha_t, sigma_t = path.alpha(s), path.sigma(s), path.alpha(t), path.sigma(t)
    return alpha_t * sigma_s**2 / (alpha_s * sigma_t**2), alpha_s * lost, sigma_s * jnp.sqrt(lost)


def posterior(path: Path, x_t: Images, x0: Images, s: Times, t: Times) -> Gaussian:
    """q(x_s | x_t, x_0), s < t: DDPM's, NCSN's and every interpolant's."""
    on_x_t, on_x0, std = (expand(value, x_t) for value in posterior_coefficients(path, s, t))
    return Gaussian(on_x_t * x_t + on_x0 * x0, std)


def forward_step(path: Path, s: Times, t: Times) -> tuple[Times, Times]:
    """(scale on x_s, std) of q(x_t | x_s), s < t: alpha_t/alpha_s and sigma_t sqrt(1 - SNR_t/SNR_s)."""
    return path.alpha(t) / path.alpha(s), path.sigma(t) * jnp.sqrt(lost_fraction(path, s, t))


def kl(p: Gaussian, q: Gaussian) -> Images:
    """KL(p || q) in nats, elementwise."""
    return jnp.log(q.std / p.std) + (p.std**2 + (p.mean - q.mean) ** 2) / (2 * q.std**2) - 0.5
