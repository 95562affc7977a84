"""The forward chains that score_sde publishes: their tables, and the times of their n steps."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sampling.base import WHERE
from score_flow.config.hints import Given
from score_flow.config.limits import Limits
from score_flow.errors import UserError
from score_flow.paths.base import Path
from score_flow.process.grid import Intervals
from score_flow.process.transition import forward_step
from score_flow.types import Times


class Step(NamedTuple):
    """x_t = scale x_s + std noise, and the std of the noise that the ancestral sampler of the chain puts back."""

    scale: Times
    std: Times
    ancestral_std: Times


# (path, s, t) -> (scale, std, ...): transition.forward_step, or a published chain's.
Forward = Callable[[Path, Times, Times], tuple[Times, ...]]


def ddpm_table(path: Path, n: int) -> Float[np.ndarray, "3 n"]:
    """Tabulate the chain of a VP path, beta_i = beta(i/(n - 1))/n; its ancestral noise is that of the forward step."""
    u = jnp.linspace(0.0, 1.0, n)
    beta = np.asarray(-2 * path.at(u).drift / n)
    preserved = np.asarray(path.alpha(u) ** 2 + path.sigma(u) ** 2)
    if np.abs(preserved - 1).max() > 1e-6 or not ((beta > 0) & (beta < 1)).all():
        raise UserError(f"{WHERE}.chain = ddpm needs a VP path and beta/n < 1, got {path}, n = {n}.")
    return np.stack([np.sqrt(1 - beta), np.sqrt(beta), np.sqrt(beta)])


def smld_table(path: Path, n: int) -> Float[np.ndarray, "3 n"]:
    """Tabulate the levels sigma_i = sigma(i/(n - 1)) of a VE path, sigma_{-1} = 0 (Song et al. 2021, app. F)."""
    u = jnp.linspace(0.0, 1.0, n)
    sigma = np.asarray(path.sigma(u))
    if np.any(np.asarray(path.alpha(u)) != 1.0):
        raise UserError(f"{WHERE}.chain = smld needs a VE path, got {path}.")
    before = np.concatenate([[0.0], sigma[:-1]])
    std = np.sqrt(sigma**2 - before**2)
    return np.stack([np.ones(n), std, before * std / sigma])


TABLES = {"ddpm": ddpm_table, "smld": smld_table}
CHAINS = (*TABLES, "euler")

# Whose norms decide how far a correction goes: each example's own, or, as published, the means over the batch.
Norms = Annotated[str, Limits(among=("example", "batch"))]


@dataclasses.dataclass(frozen=True)
class PublishedChain:
    """A chain takes the place of the grid and of the path's exact transitions.

    Attributes:
        name: ddpm (of a VP path), smld (VE), or euler (any): the forward step is Euler-Maruyama's over 1/n.
        n: the number of its steps, each of which spans 1/n.
    """

    name: str
    n: int

    def step(self, path: Path, s: Times, t: Times) -> Step:
        """Return the forward step that ends at t: row floor(t (n - 1)) of a table, or Euler-Maruyama's.

        It spans 1/n, wherever its grid puts s.
        """
        return self._euler(path, t) if self.name == "euler" else self._row(path, t)

    def _euler(self, path: Path, t: Times) -> Step:
        c = path.at(t)
        std = jnp.sqrt(c.g2 / self.n)
        return Step(1 + c.drift / self.n, std, std)

    def _row(self, path: Path, t: Times) -> Step:
        # Float64 on the host, one rounding on the device: sigma_i^2 - sigma_{i-1}^2 cancels.
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            table = TABLES[self.name](path, self.n)
        t = jnp.asarray(t, jnp.result_type(float))
        # Grid times lie on rows or just above: a rounding must not take them to the row below.
        i = jnp.floor(t * (self.n - 1) * (1 + 4 * jnp.finfo(t.dtype).eps)).astype(jnp.int32)
        return Step(*jnp.asarray(table, t.dtype)[:, jnp.minimum(i, self.n - 1)])

    def intervals(self, t_min: float, t_max: float) -> Intervals:
        """Return rows (t - 1/n, t) for n times t from t_max to t_min, both visited: close to contiguous, not quite."""
        t = np.linspace(t_max, t_min, self.n)
        return np.stack([t - 1 / self.n, t], axis=1)


# What a kernel that has a published form takes as its parameter `chain`; None: the path's exact transitions.
ChainGiven = Annotated[PublishedChain | None, Given("config.sampling.chain, of config.sampling.n_steps steps")]


def forward_of(chain: PublishedChain | None) -> Forward:
    """Return the forward steps of a published chain, or of the path itself."""
    return chain.step if chain else forward_step
