"""Linear interpolant (rectified flow)."""

import dataclasses

from score_flow.paths.base import Path
from score_flow.types import Times


@dataclasses.dataclass(frozen=True)
class Linear(Path):
    """x_t = (1 - t) x0 + t noise (Liu et al. 2023, arXiv:2209.03003; Ma et al. 2024, table 1, arXiv:2401.08740)."""

    def alpha(self, t: Times) -> Times:
        return 1.0 - t

    def sigma(self, t: Times) -> Times:
        return 1.0 * t


build = Linear
