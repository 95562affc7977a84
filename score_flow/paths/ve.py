"""Variance-exploding SDE."""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp

from score_flow.config.hints import NotNegative, Positive, check_fields
from score_flow.errors import UserError
from score_flow.paths.base import Path
from score_flow.types import Times


@dataclasses.dataclass(frozen=True)
class VE(Path):
    """alpha = 1 and sigma from sigma_min to sigma_max (Song et al. 2021, eq. 9 and 30, arXiv:2011.13456).

    geometric: sigma_min (sigma_max/sigma_min)^t; linear: sigma_min + t (sigma_max - sigma_min), where sigma_min may
    be 0 (score_flow's linear VE is sigma = t sigma_max).
    """

    sigma_min: NotNegative = 0.01
    sigma_max: Positive = 50.0
    schedule: Literal["geometric", "linear"] = "geometric"

    def __post_init__(self):
        check_fields(self)
        if self.sigma_min >= self.sigma_max or (self.sigma_min == 0 and self.schedule == "geometric"):
            raise UserError(
                "config.path.sigma_min must be above 0 (or 0 in the linear schedule) and below sigma_max, "
                f"got {self.sigma_min} and {self.sigma_max}."
            )

    def alpha(self, t: Times) -> Times:
        return jnp.ones_like(t)

    def sigma(self, t: Times) -> Times:
        if self.schedule == "linear":
            return self.sigma_min + t * (self.sigma_max - self.sigma_min)
        return self.sigma_min * jnp.exp(t * math.log(self.sigma_max / self.sigma_min))


build = VE
