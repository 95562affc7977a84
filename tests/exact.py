"""Denoisers whose posterior means are known in closed form."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from score_flow.model import Denoiser
from score_flow.numerics import expand
from score_flow.paths.base import Path
from score_flow.process.prediction import Estimate, velocity
from score_flow.types import Condition


def mapped(denoiser: Denoiser, x, t, law) -> Estimate | None:
    """What a denoiser that is told of two times reads out: the velocity that leads to x_s in one step; None for one.

    law(t, x) -> (mean, std) of x_t: the flow of Gaussian data keeps (x_t - mean)/std.
    """
    span = (denoiser.condition or {}).get("span")
    if span is None:
        return None
    t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
    (mean, std), (mean_s, std_s) = (law(time, x) for time in (t, t - span))
    average = (x - mean_s - std_s / std * (x - mean)) / expand(jnp.where(span == 0, 1.0, span), x)
    return velocity.decode(average, x, denoiser.path.at(t).expand(x))


@dataclasses.dataclass(frozen=True)
class GaussianDenoiser(Denoiser):
    """Data N(mean, std^2 I): E[x0 | x_t] and E[noise | x_t] of a Gaussian conditioned on a linear observation."""

    path: Path
    mean: float = 0.5
    std: float = 0.3
    condition: Condition = None
    spans = True

    def given(self, condition):
        return dataclasses.replace(self, condition=condition)

    def estimate(self, x, t):
        exact, average = self._at_one_time(x, t), mapped(self, x, t, self._law)
        if average is None:
            return exact
        same = expand(self.condition["span"], x) == 0
        return jax.tree.map(lambda one, two: jnp.where(same, one, two), exact, average)

    def _law(self, t, x):
        alpha, sigma = (expand(f(t), x) for f in (self.path.alpha, self.path.sigma))
        return alpha * self.mean, jnp.sqrt((alpha * self.std) ** 2 + sigma**2)

    def _at_one_time(self, x, t):
        alpha, sigma = (expand(f(jnp.asarray(t, x.dtype)), x) for f in (self.path.alpha, self.path.sigma))
        variance = (alpha * self.std) ** 2 + sigma**2
        rest = (x - alpha * self.mean) / variance
        return Estimate(self.mean + alpha * self.std**2 * rest, sigma * rest)

    def marginal(self, t: float) -> tuple[float, float]:
        """Mean and standard deviation of x_t."""
        alpha, sigma = float(self.path.alpha(jnp.asarray(t))), float(self.path.sigma(jnp.asarray(t)))
        return alpha * self.mean, ((alpha * self.std) ** 2 + sigma**2) ** 0.5


@dataclasses.dataclass(frozen=True)
class CorrelatedDenoiser(Denoiser):
    """Data N(0, C) over flat examples, C = R diag(variances) R^T: the posterior means in C's eigenbasis."""

    path: Path
    rotation: Float[Array, "d d"]
    variances: Float[Array, "d"]
    condition: None = None

    def given(self, condition):
        return self

    def estimate(self, x, t):
        alpha, sigma = (expand(f(jnp.asarray(t, x.dtype)), x) for f in (self.path.alpha, self.path.sigma))
        rest = (x @ self.rotation) / (alpha**2 * self.variances + sigma**2)
        return Estimate((alpha * self.variances * rest) @ self.rotation.T, (sigma * rest) @ self.rotation.T)


@dataclasses.dataclass(frozen=True)
class MixtureDenoiser(Denoiser):
    """Data an equal mixture of N(m_k, s^2 I): responsibilities at time t weigh each component's posterior mean."""

    path: Path
    means: Float[Array, "k d"]
    std: float = 0.2
    condition: None = None

    def given(self, condition):
        return self

    def estimate(self, x, t):
        t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
        alpha, sigma = (f(t)[:, None, None] for f in (self.path.alpha, self.path.sigma))
        shift, variance = x[:, None] - alpha * self.means, (alpha * self.std) ** 2 + sigma**2  # (b, k, d), (b, 1, 1)
        weights = jax.nn.softmax(-0.5 * jnp.sum(shift**2, axis=-1, keepdims=True) / variance, axis=1)
        rest = shift / variance
        x0 = jnp.sum(weights * (self.means + alpha * self.std**2 * rest), axis=1)
        return Estimate(x0, jnp.sum(weights * sigma * rest, axis=1))

    def log_prob(self, x, t):
        """log density of x_t in nats."""
        alpha, sigma = self.path.alpha(jnp.asarray(t, x.dtype)), self.path.sigma(jnp.asarray(t, x.dtype))
        variance, d = (alpha * self.std) ** 2 + sigma**2, x.shape[1]
        squares = jnp.sum((x[:, None] - alpha * self.means) ** 2, axis=-1)
        return (
            jax.nn.logsumexp(-0.5 * squares / variance, axis=1)
            - jnp.log(len(self.means))
            - 0.5 * d * jnp.log(2 * jnp.pi * variance)
        )
