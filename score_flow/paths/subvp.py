"""Sub-variance-preserving SDE."""

import dataclasses

import jax.numpy as jnp

from score_flow.paths.base import Path
from score_flow.types import Times


@dataclasses.dataclass(frozen=True)
class SubVP(Path):
    """VP's alpha with sigma = 1 - alpha^2, never above VP's (Song et al. 2021, eq. 12 and 29, arXiv:2011.13456)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def log_alpha(self, t: Times) -> Times:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def alpha(self, t: Times) -> Times:
        return jnp.exp(self.log_alpha(t))

    def sigma(self, t: Times) -> Times:
        return -jnp.expm1(2 * self.log_alpha(t))


build = SubVP
