"""Discrete diffusion chains as continuous paths."""

import dataclasses
import functools
import math
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from score_flow.config.hints import Positive, check_fields
from score_flow.config.limits import Limits
from score_flow.errors import UserError
from score_flow.paths.base import Path
from score_flow.types import Times


def linear_betas(n: int, beta_min: float = 0.1, beta_max: float = 20.0) -> Float[np.ndarray, "n"]:
    """From beta_min/n to beta_max/n; the defaults are Ho et al.'s 1e-4 to 0.02 at n = 1000, rescaled for other n."""
    return np.linspace(beta_min / n, beta_max / n, n)


def cosine_betas(n: int, beta_cap: float = 0.999) -> Float[np.ndarray, "n"]:
    """beta_i = min(1 - abar((i+1)/n)/abar(i/n), cap) with abar(u) = cos^2(pi/2 (u + .008)/1.008) (Nichol & Dhariwal
    2021, eq. 17, arXiv:2102.09672)."""
    grid = np.arange(n + 1) / n
    abar = np.cos((grid + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - abar[1:] / abar[:-1], beta_cap)


@dataclasses.dataclass(frozen=True)
class DDPM(Path):
    """A DDPM chain as a VP-SDE that passes through it: at t_i = (i+1)/n its marginals are the chain's.

    alpha(t_i)^2 = prod_{j<=i} (1 - beta_j) (Ho et al. 2020, eq. 4, arXiv:2006.11239). Between the knots log alpha is
    the monotone cubic (PCHIP), so that the rate is continuous: with a rate that jumps n times adaptive solvers take
    three times the calls and still miss their tolerance a hundredfold. `betas` gives a table of one's own and
    overrides `schedule` and `n`. The cosine table's last beta is clipped to 0.999, a huge rate: continuous solvers
    should start at t_max = (n-1)/n.
    """

    schedule: Literal["linear", "cosine"] = "linear"
    n: Annotated[int, Limits(least=1, most=1_000_000)] = 1000
    beta_min: Positive = 0.1  # of the linear schedule, as a rate
    beta_max: Positive = 20.0
    betas: Annotated[tuple[float, ...], Limits(above=0, below=1, fewest=1)] | None = None

    def __post_init__(self):
        check_fields(self)
        if self.beta_min > self.beta_max:
            raise UserError(f"config.path.beta_min is {self.beta_min}; it must be at most beta_max, {self.beta_max}.")
        betas = self.table()
        if not ((betas > 0) & (betas < 1)).all():
            ends = f"{betas.min():.4g} to {betas.max():.4g}"
            raise UserError(
                f"config.path (name = ddpm): every beta must lie in (0, 1), got {ends} (n = {len(betas)}): "
                "beta_min / n to beta_max / n."
            )

    def table(self) -> Float[np.ndarray, "n"]:
        """Return the float64 betas of the chain."""
        if self.betas is not None:
            return np.asarray(self.betas, np.float64)
        return linear_betas(self.n, self.beta_min, self.beta_max) if self.schedule == "linear" else cosine_betas(self.n)

    def times(self) -> Float[np.ndarray, "n"]:
        """Return the float64 times (i + 1)/n of the chain's states."""
        n = len(self.table())
        return np.arange(1, n + 1) / n

    def log_alpha(self, t: Times) -> Times:
        cubic = _half_log_abar(self)  # float64 on the host, one rounding on the device
        n = cubic.shape[1]
        # On a knot rounding may pick either neighbour: both give the same value and slope.
        i = jnp.clip(jnp.floor(t * n).astype(jnp.int32), 0, n - 1)
        c3, c2, c1, c0 = (jnp.asarray(row, t.dtype)[i] for row in cubic)
        u = t - i.astype(t.dtype) / n
        return ((c3 * u + c2) * u + c1) * u + c0

    def alpha(self, t: Times) -> Times:
        return jnp.exp(self.log_alpha(jnp.asarray(t, jnp.result_type(float))))

    def sigma(self, t: Times) -> Times:
        return jnp.sqrt(-jnp.expm1(2 * self.log_alpha(jnp.asarray(t, jnp.result_type(float)))))


@functools.lru_cache(maxsize=64)
def _half_log_abar(path: DDPM) -> Float[np.ndarray, "4 n"]:
    from scipy.interpolate import PchipInterpolator  # half a second, which --help need not wait for

    # log alpha reaches 0 from below: from +0 sigma(0) would be -0, and its derivative -inf.
    knots = np.concatenate([[-0.0], 0.5 * np.cumsum(np.log1p(-path.table()))])
    cubic = PchipInterpolator(np.linspace(0.0, 1.0, len(knots)), knots).c
    cubic[2:, 0] = -np.abs(cubic[2:, 0])
    return cubic


build = DDPM
