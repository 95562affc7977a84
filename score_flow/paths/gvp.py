"""Trigonometric (generalised variance-preserving) interpolant."""

import dataclasses
import math

import jax.numpy as jnp

from score_flow.paths.base import Path
from score_flow.types import Times


@dataclasses.dataclass(frozen=True)
class GVP(Path):
    """x_t = cos(pi t/2) x0 + sin(pi t/2) noise (Albergo & Vanden-Eijnden 2023; Ma et al. 2024, arXiv:2401.08740)."""

    def alpha(self, t: Times) -> Times:
        # sin(pi/2 (1 - t)): cos(pi/2 t) is slightly negative at t = 1, which would flip the sign of g2.
        return jnp.sin(0.5 * math.pi * (1.0 - t))

    def sigma(self, t: Times) -> Times:
        return jnp.sin(0.5 * math.pi * t)


build = GVP
