"""Variance-preserving SDE."""

import dataclasses

import jax.numpy as jnp

from score_flow.config.hints import NotNegative, Positive, check_fields
from score_flow.errors import UserError
from score_flow.paths.base import Path
from score_flow.types import Times


@dataclasses.dataclass(frozen=True)
class VP(Path):
    """dx = -beta(t)/2 x dt + sqrt(beta(t)) dw, beta linear in t (Song et al. 2021, eq. 11, arXiv:2011.13456)."""

    beta_min: NotNegative = 0.1
    beta_max: Positive = 20.0

    def __post_init__(self):
        check_fields(self)
        if self.beta_min > self.beta_max:
            raise UserError(f"config.path.beta_min is {self.beta_min}; it must be at most beta_max, {self.beta_max}.")

    def log_alpha(self, t: Times) -> Times:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def alpha(self, t: Times) -> Times:
        return jnp.exp(self.log_alpha(t))

    def sigma(self, t: Times) -> Times:
        # expm1: sqrt(1 - exp) loses 0.6 % of sigma at t = 1e-5 in float32.
        return jnp.sqrt(-jnp.expm1(2 * self.log_alpha(t)))


build = VP
