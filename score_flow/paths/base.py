"""Gaussian paths: two functions, alpha(t) and sigma(t), from which everything else is derived once."""

import abc
import dataclasses
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from score_flow.numerics import bisection, expand, standard_normal_log_prob, sum_flat
from score_flow.types import Images, Keys, Times


class Coefficients(NamedTuple):
    """alpha, sigma and their time derivatives at some times; each has the shape of t (and trailing ones, expanded)."""

    alpha: Float[Array, "..."]
    sigma: Float[Array, "..."]
    dalpha: Float[Array, "..."]
    dsigma: Float[Array, "..."]

    @property
    def det(self) -> Float[Array, "..."]:
        """The Wronskian alpha sigma' - alpha' sigma > 0; 1 for Linear, pi/2 for GVP."""
        return self.alpha * self.dsigma - self.dalpha * self.sigma

    @property
    def drift(self) -> Float[Array, "..."]:
        """f(t) of the forward SDE dx = f x dt + g dw."""
        return self.dalpha / self.alpha

    @property
    def g2(self) -> Float[Array, "..."]:
        """g(t)^2 of the forward SDE, = -sigma^2 d log_snr/dt; this form does not cancel."""
        return 2 * self.sigma * self.det / self.alpha

    @property
    def log_snr(self) -> Float[Array, "..."]:
        """2 log(alpha / sigma)."""
        return 2 * (jnp.log(self.alpha) - jnp.log(self.sigma))

    def expand(self, x: Images) -> "Coefficients":
        """Return the same coefficients, broadcastable over the axes of one example of x."""
        return Coefficients(*(expand(value, x) for value in self))


@dataclasses.dataclass(frozen=True)
class Path(abc.ABC):
    """x_t | x_0 ~ N(alpha(t) x_0, sigma(t)^2 I) for t in [0, 1], data to noise.

    A subclass writes alpha and sigma, elementwise and differentiable, each in the form that is exact at the end where
    it vanishes. Fields are Python numbers: a path is hashable, compared by value, static under jit.
    """

    @abc.abstractmethod
    def alpha(self, t: Times) -> Times:
        """Scale of the data at time t."""

    @abc.abstractmethod
    def sigma(self, t: Times) -> Times:
        """Standard deviation of the noise at time t."""

    @final
    def at(self, t: Times) -> Coefficients:
        """alpha, sigma and their derivatives at t, each of the shape of t."""
        t = jnp.asarray(t, jnp.result_type(float))
        alpha, dalpha = jax.jvp(self.alpha, (t,), (jnp.ones_like(t),))
        sigma, dsigma = jax.jvp(self.sigma, (t,), (jnp.ones_like(t),))
        return Coefficients(alpha, sigma, dalpha, dsigma)

    @final
    def log_snr(self, t: Times) -> Times:
        """2 log(alpha / sigma), strictly decreasing (Kingma et al. 2021, arXiv:2107.00630)."""
        t = jnp.asarray(t, jnp.result_type(float))
        return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    @final
    def inverse_log_snr(self, value: Times, t_min: float = 0.0, t_max: float = 1.0) -> Times:
        """Return the time in [t_min, t_max] at which log_snr takes a value."""
        return bisection(self.log_snr, jnp.asarray(value, jnp.result_type(float)), t_min, t_max)

    @final
    def perturb(self, x0: Images, noise: Images, t: Times) -> Images:
        """Draw x_t | x_0: alpha(t) x0 + sigma(t) noise."""
        return expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * noise

    @final
    def prior_sample(self, keys: Keys, shape: tuple[int, ...], t_max: float = 1.0) -> Images:
        """x_{t_max} ~ N(0, sigma(t_max)^2 I), one key an example; shape is that of one example."""
        return self.sigma(jnp.asarray(t_max)) * jax.vmap(lambda key: jax.random.normal(key, shape))(keys)

    @final
    def prior_log_prob(self, z: Images, t_max: float = 1.0) -> Float[Array, "b"]:
        """log N(z; 0, sigma(t_max)^2 I) in nats, one number an example."""
        sigma = self.sigma(jnp.asarray(t_max, z.dtype))
        return standard_normal_log_prob(z / sigma) - sum_flat(jnp.ones_like(z)) * jnp.log(sigma)
