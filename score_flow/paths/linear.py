"""Linear interpolant (rectified flow)."""

import dataclasses

from score_flow.config.hints import Positive, check_fields
from score_flow.paths.base import Path
from score_flow.types import Times


@dataclasses.dataclass(frozen=True)
class Linear(Path):
    """x_t = (1 - t) x0 + noise_scale t noise (Liu et al. 2023, arXiv:2209.03003; Ma et al. 2024, arXiv:2401.08740).

    noise_scale: standard deviation at t = 1; 1 as published, 2 for images of twice the side (JiT, arXiv:2511.13720).
    """

    noise_scale: Positive = 1.0

    def __post_init__(self):
        check_fields(self)

    def alpha(self, t: Times) -> Times:
        return 1.0 - t

    def sigma(self, t: Times) -> Times:
        return self.noise_scale * t


build = Linear
