"""Paths whose log SNR is linear in t, from a finite one at the data's end."""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from score_flow.config.hints import check_fields
from score_flow.config.limits import Limits
from score_flow.errors import UserError
from score_flow.paths.base import Path
from score_flow.types import Times


@dataclasses.dataclass(frozen=True)
class LogSNR(Path):
    """log SNR(t) = log_snr_max + (log_snr_min - log_snr_max) t (Kingma et al. 2021, arXiv:2107.00630).

    schedule: "variance_preserving": alpha^2 + sigma^2 = 1, VDM's; "straight": alpha + sigma = 1, the line of i-DODE
    (Zheng et al. 2023, arXiv:2305.03935). x_0 is the data with noise of standard deviation sigma(0) > 0.
    """

    log_snr_max: Annotated[float, Limits(least=-60, most=60)] = 13.3
    log_snr_min: Annotated[float, Limits(least=-60, most=60)] = -5.0
    schedule: Annotated[str, Limits(among=("variance_preserving", "straight"))] = "variance_preserving"

    def __post_init__(self):
        check_fields(self)
        if not self.log_snr_min < self.log_snr_max:
            raise UserError(
                f"config.path.log_snr_min is {self.log_snr_min}; it must be below log_snr_max, {self.log_snr_max}."
            )

    def _share(self, sign: int, t: Times) -> Times:
        """sigmoid(sign log SNR)^(1/2), or of half the log SNR: the log of it, as it vanishes exponentially."""
        power = 0.5 if self.schedule == "variance_preserving" else 1.0
        value = self.log_snr_max + (self.log_snr_min - self.log_snr_max) * t
        return jnp.exp(power * jax.nn.log_sigmoid(sign * value * (0.5 / power)))

    def alpha(self, t: Times) -> Times:
        return self._share(1, t)

    def sigma(self, t: Times) -> Times:
        return self._share(-1, t)


build = LogSNR
