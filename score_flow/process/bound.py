"""The variational bound of a chain: its terms in bits per dimension (Ho et al. 2020; Nichol and Dhariwal 2021).

A chain observes a path at times t_1 < ... < t_n. With x_0 the data themselves,

    -log2 p(x_0) <= KL(q(x_n|x_0) || p(x_n)) + sum_{i>1} KL(q(x_{i-1}|x_i,x_0) || p(x_{i-1}|x_i)) - log2 p(x_0|x_1).
"""

import dataclasses
import functools
import math
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from score_flow.errors import UserError, check_choice
from score_flow.numerics import expand, mean_flat, sum_flat
from score_flow.paths.base import Path
from score_flow.process.prediction import Estimate
from score_flow.process.times import nearest
from score_flow.types import Images, Times

Variance = Literal["small", "large", "range", "log"]
Decoder = Literal["tanh", "exact"]


class Tables(NamedTuple):
    """What a step of the chain needs, row i for the step from t_{i+1} to its earlier neighbour; float64 on the host."""

    on_x_t: Float[np.ndarray, "n"]  # the mean of q(x_s | x_t, x_0) is on_x_t x_t + on_x0 x_0
    on_x0: Float[np.ndarray, "n"]
    log_small: Float[
        np.ndarray, "n"
    ]  # log variance of q(x_s | x_t, x_0); at the first step, where it is -inf, the next
    log_large: Float[np.ndarray, "n"]  # log variance of q(x_t | x_s)
    log_fixed_large: Float[np.ndarray, "n"]  # the same, but the first: the small decodes data better (Ho et al. 2020)
    on_x_s: Float[np.ndarray, "n"]  # the mean of q(x_t | x_s) is on_x_s x_s
    sigma: Float[np.ndarray, "n"]  # of x_t


@functools.lru_cache(maxsize=16)
def tables(path: Path, times: tuple[float, ...]) -> Tables:
    """Tabulate the chain of a path at ascending times; raises UserError for fewer than two usable ones."""
    # Differences of neighbours: in float32 the posterior's deviation is off by 3e-4 at 4000 steps.
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        t = jnp.asarray(times, jnp.float64)
        alpha, sigma = (np.asarray(f(t), np.float64) for f in (path.alpha, path.sigma))
    name = type(path).__name__
    if len(times) < 2 or not (np.diff(times) > 0).all():
        raise UserError(f"variational bound: a chain needs two or more ascending times, got {len(times)}.")
    if not (sigma > 0).all() or not (alpha > 0).all():
        raise UserError(
            f"variational bound: alpha and sigma of {name} must be positive at every time of the chain, "
            f"got {alpha.min():.3g} and {sigma.min():.3g} at least: t_min or t_max must stop short."
        )
    log_snr = 2 * (np.log(alpha) - np.log(sigma))
    # The first step ends at the data: alpha = 1, sigma = 0.
    alpha_s, sigma_s = np.append(1.0, alpha[:-1]), np.append(0.0, sigma[:-1])
    lost = np.append(1.0, -np.expm1(np.diff(log_snr)))  # 1 - SNR_t / SNR_s
    log_small, log_large = np.log(sigma_s[1:] ** 2 * lost[1:]), np.log(sigma**2 * lost)
    return Tables(
        alpha * sigma_s**2 / (alpha_s * sigma**2),
        alpha_s * lost,
        np.append(log_small[0], log_small),
        log_large,
        np.append(log_small[0], log_large[1:]),
        alpha / alpha_s,
        sigma,
    )


@dataclasses.dataclass(frozen=True)
class VariationalBound:
    """The terms of the bound for a chain of a path, for data at `levels` even levels from `low` to `high`.

    variance, of p(x_s | x_t): "small", the posterior's; "large", the forward step's (Ho et al. 2020, sec. 3.2,
    arXiv:2006.11239); "range", learned between the two in the logarithm (eq. 15, arXiv:2102.09672); "log", its learned
    logarithm. The last two read Estimate.variance.
    decoder, the normal distribution function of the first step: "exact", or its published approximation by "tanh".
    """

    path: Path
    times: tuple[float, ...]
    variance: Variance = "range"
    decoder: Decoder = "tanh"
    low: float = -1.0
    high: float = 1.0
    levels: int = 256

    def __post_init__(self):
        check_choice("training.variance", self.variance, get_args(Variance))
        check_choice("training.decoder", self.decoder, get_args(Decoder))
        tables(self.path, self.times)  # refuses what has no bound

    @property
    def learned(self) -> bool:
        """Whether the network says the variance."""
        return self.variance in ("range", "log")

    def step(self, t: Times) -> Int[Array, "..."]:
        """Return the row of the tables of each time; any time counts as the nearest of the chain."""
        return nearest(self.times, t)

    def _rows(self, step: Int[Array, "b"], x: Images) -> Tables:
        """Return the tables at some steps, broadcastable over x."""
        columns = tables(self.path, self.times)
        return Tables(*(expand(jnp.asarray(column, x.dtype)[step], x) for column in columns))

    def posterior_mean(self, x_t: Images, x0: Images, step: Int[Array, "b"]) -> Images:
        """Return the mean of q(x_s | x_t, x0)."""
        rows = self._rows(step, x_t)
        return rows.on_x_t * x_t + rows.on_x0 * x0

    def log_variance(self, channels: Images | None, x_t: Images, step: Int[Array, "b"]) -> Float[Array, "b *_"]:
        """log variance of p(x_s | x_t), broadcastable over x_t; the first step's smallest is the second's."""
        rows = self._rows(step, x_t)
        if self.learned and channels is None:
            raise UserError(f"variance = {self.variance} needs a network with model.learn_sigma=True.")
        match self.variance:
            case "small":
                return rows.log_small
            case "large":
                return rows.log_fixed_large
            case "log":
                return channels
            case "range":
                share = (1 + channels) / 2
                return share * rows.log_large + (1 - share) * rows.log_small

    def term(self, x0: Images, x_t: Images, estimate: Estimate, step: Int[Array, "b"]) -> Float[Array, "b"]:
        """L of one step each, bits per dimension: a KL, or at the first step -log2 p(x0 | x_1) of the data's levels."""
        rows, log_variance = self._rows(step, x_t), self.log_variance(estimate.variance, x_t, step)
        # Both means hold on_x_t x_t: their difference does not.
        inner = kl(rows.on_x0 * (x0 - estimate.x0), rows.log_small, log_variance)
        mean = rows.on_x_t * x_t + rows.on_x0 * estimate.x0
        first = -self.log_likelihood(x0, mean, jnp.broadcast_to(log_variance, x0.shape) / 2)
        return jnp.where(step == 0, mean_flat(first), mean_flat(inner)) / math.log(2.0)

    def log_likelihood(self, x0: Images, mean: Images, log_std: Images) -> Images:
        """Nats of the level at x0 under N(mean, std^2), elementwise; the first and last level reach to infinity."""
        half = (self.high - self.low) / (self.levels - 1) / 2
        probability = {"tanh": _tanh_log_probability, "exact": _exact_log_probability}[self.decoder]
        # x0 may be a rounding off its level; the published code calls x0 the end within 0.001 of it.
        below, above = x0 < self.low + half / 4, x0 > self.high - half / 4
        scale = jnp.exp(-log_std)
        return probability((x0 - mean - half) * scale, (x0 - mean + half) * scale, below, above)

    def prior(self, x0: Images, std: float | None = None) -> Float[Array, "b"]:
        """KL(q(x_n|x0) || N(0, std^2)), bits per dimension; std None is sigma(t_n), at which our samplers start.

        improved-diffusion's prior is N(0, 1): std = 1.
        """
        t = jnp.asarray(self.times[-1], x0.dtype)
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        other = sigma if std is None else jnp.asarray(std, x0.dtype)
        return mean_flat(kl(alpha * x0, 2 * jnp.log(sigma), 2 * jnp.log(other))) / math.log(2.0)


def kl(difference: Images, log_p: Float[Array, "..."], log_q: Float[Array, "..."]) -> Images:
    """KL(p || q) in nats of Gaussians with a difference of means and log variances, elementwise.

    expm1: equal variances, which a chain of many steps comes near, cancel exactly.
    """
    ratio = log_p - log_q
    return 0.5 * (jnp.expm1(ratio) - ratio + difference**2 * jnp.exp(-log_q))


def _tanh_log_probability(low: Images, high: Images, below: Array, above: Array) -> Images:
    """log P(low < z < high), z ~ N(0, 1); `below` opens the bin below, `above` above; at least log 1e-12."""

    def cdf(z):
        return 0.5 * (1.0 + jnp.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3)))

    under_high, under_low = cdf(high), cdf(low)
    probability = jnp.where(below, under_high, jnp.where(above, 1.0 - under_low, under_high - under_low))
    return jnp.log(jnp.maximum(probability, 1e-12))


def _exact_log_probability(low: Images, high: Images, below: Array, above: Array) -> Images:
    """Return the same, exact also far from the mean and without a floor."""
    # In the lower tail, by symmetry: there distribution functions are small numbers, not 1 less a small number.
    flip = low + high > 0
    a, b = jnp.where(flip, -high, low), jnp.where(flip, -low, high)
    log_a, log_b = jax.scipy.special.log_ndtr(a), jax.scipy.special.log_ndtr(b)
    tiny = jnp.finfo(low.dtype).tiny
    inside = log_b + jnp.log(jnp.maximum(-jnp.expm1(log_a - log_b), tiny))
    tail = jnp.where(below, jax.scipy.special.log_ndtr(high), jax.scipy.special.log_ndtr(-low))
    return jnp.where(below | above, tail, inside)


def prior(path: Path, x0: Images, t_max: float) -> Float[Array, "b"]:
    """KL(q(x_T | x_0) || N(0, sigma_T^2 I)) in nats, the path's own prior."""
    t = jnp.asarray(t_max, x0.dtype)
    return 0.5 * sum_flat((path.alpha(t) / path.sigma(t) * x0) ** 2)


def share_of_gaussian(path: Path, t: Times, data_std: float) -> Times:
    """E|n_hat - n|^2 / d of data N(m, data_std^2 I): alpha^2 s^2 / (alpha^2 s^2 + sigma^2)."""
    return jax.nn.sigmoid(path.log_snr(t) + 2 * jnp.log(data_std))


def known_integral(path: Path, x0: Images, t_min: float, t_max: float, data_std: float) -> Float[Array, ""]:
    """1/2 int g^2/sigma^2 d share dt over [t_min, t_max], and the entropy of q(x_{t_min} | x_0), in nats.

    The integral of arXiv:2101.09258, theorem 3, for data N(m, data_std^2 I): g^2/sigma^2 = -d log SNR/dt, of which
    the share is the logistic function. The sum with the entropy converges as t_min -> 0.
    """
    d, ends = x0[0].size, path.log_snr(jnp.asarray([t_min, t_max], x0.dtype)) + 2 * jnp.log(data_std)
    integral = 0.5 * d * (jax.nn.softplus(ends[0]) - jax.nn.softplus(ends[1]))
    sigma = path.sigma(jnp.asarray(t_min, x0.dtype))
    return integral + 0.5 * d * math.log(2 * math.pi * math.e) + d * jnp.log(sigma)
