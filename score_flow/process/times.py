"""Which times a training step looks at: samplers of t with importance weights."""

import math
import statistics
from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from score_flow.config.hints import Count, Given, Positive, Share, limited
from score_flow.errors import UserError
from score_flow.paths.base import Path
from score_flow.process.grid import finite_log_snr
from score_flow.types import Key, Times

WHERE = "config.training.time_sampler"
PathGiven = Annotated[Path, Given("config.path")]
First = Annotated[float, Given("config.training.smallest_time")]
Last = Annotated[float, Given("config.training.largest_time")]


class TimeSampler(NamedTuple):
    """Draws (t, weight), each (b,): the mean of weight x f(t) estimates the mean of f under the sampler's base law.

    init() is a state carried by the training state and update(state, t, losses) its next value, the losses unweighted;
    most have none. `times`: the times of a chain, ascending, where t is always one of them; () otherwise.
    """

    init: Callable[[], PyTree]
    sample: Callable[[PyTree, Key, int], tuple[Float[Array, "b"], Float[Array, "b"]]]
    update: Callable[[PyTree, Float[Array, "b"], Float[Array, "b"]], PyTree]
    times: tuple[float, ...] = ()


def _stateless(
    sample: Callable[[Key, int], tuple[Float[Array, "b"], Float[Array, "b"]]], times: tuple[float, ...] = ()
) -> TimeSampler:
    return TimeSampler(lambda: (), lambda state, key, b: sample(key, b), lambda state, t, losses: state, times)


def nearest(times: tuple[float, ...], t: Times) -> Int[Array, "..."]:
    """Return the index of the nearest of some ascending times: exact for a chain's times in float32 too."""
    middles = (np.asarray(times[1:]) + np.asarray(times[:-1])) / 2
    t = jnp.asarray(t)
    return jnp.searchsorted(jnp.asarray(middles, t.dtype), t)


@limited(WHERE)
def uniform(path: PathGiven, t_min: First, t_max: Last = 1.0) -> TimeSampler:
    """t ~ U[t_min, t_max], weight 1."""

    def sample(key, b):
        return t_min + (t_max - t_min) * jax.random.uniform(key, (b,)), jnp.ones(b)

    return _stateless(sample)


@limited(WHERE)
def stratified(path: PathGiven, t_min: First, t_max: Last = 1.0) -> TimeSampler:
    """One t in each of b equal cells, uniform in its cell: the same mean, less variance (arXiv:2107.00630, app. I)."""

    def sample(key, b):
        # One shift for the batch (a lattice): every t is marginally uniform and the cells are equally filled.
        u = (jax.random.uniform(key, ()) + jnp.arange(b) / b) % 1.0
        return t_min + (t_max - t_min) * u, jnp.ones(b)

    return _stateless(sample)


@limited(WHERE)
def grid(path: PathGiven, t_min: First, t_max: Last = 1.0, n: Count = 1000, closed: bool = False) -> TimeSampler:
    """t uniform on n grid times that lie in [t_min, t_max], weight 1: a chain's (i + 1)/n (discrete DDPM training), or,
    closed, i/(n - 1) from 0 to 1 (the n noise levels of SMLD)."""
    times = _chain_times("grid", t_min, t_max, n, closed)

    def sample(key, b):
        return jnp.asarray(times, jnp.result_type(float))[jax.random.randint(key, (b,), 0, len(times))], jnp.ones(b)

    return _stateless(sample, tuple(times.tolist()))


def _chain_times(name: str, t_min: float, t_max: float, n: int, closed: bool) -> Float[np.ndarray, "times"]:
    times = np.linspace(0.0, 1.0, n) if closed else np.arange(1, n + 1) / n
    times = times[(times >= t_min) & (times <= t_max)]
    if not len(times):
        raise UserError(
            f"{WHERE}.n is {n} (name = {name}): no i/{n} lies between "
            f"config.training.smallest_time = {t_min} and largest_time = {t_max}."
        )
    return times


class LossHistory(NamedTuple):
    """The last losses seen at each time of a chain: history[i, counts[i] % h] is the next to be overwritten."""

    history: Float[Array, "n h"]
    counts: Int[Array, "n"]


@limited(WHERE)
def loss_second_moment(
    path: PathGiven,
    t_min: First,
    t_max: Last = 1.0,
    n: Count = 1000,
    closed: bool = False,
    history: Count = 10,
    uniform_prob: Share = 0.001,
) -> TimeSampler:
    """`grid` with p(t_i) ~ sqrt(E[loss(t_i)^2]) over the last `history` losses of each time, weight 1/(n p).

    A share uniform_prob of the draws is uniform, and all are until every time has its history (Nichol and Dhariwal
    2021, sec. 3.3, arXiv:2102.09672).
    """
    times = _chain_times("loss_second_moment", t_min, t_max, n, closed)
    chain = tuple(times.tolist())

    def init():
        return LossHistory(jnp.zeros((len(times), history)), jnp.zeros(len(times), jnp.int32))

    def sample(state, key, b):
        p = second_moment_law(state, uniform_prob)
        step = jax.random.choice(key, len(times), (b,), p=p)
        return jnp.asarray(times, jnp.result_type(float))[step], 1 / (len(times) * p[step])

    def update(state, t, losses):
        return remember(state, nearest(chain, t), losses)

    return TimeSampler(init, sample, update, chain)


def second_moment_law(state: LossHistory, uniform_prob: float) -> Float[Array, "n"]:
    """Return the probability of each time of a chain."""
    n, h = state.history.shape
    uniform_law = jnp.full((n,), 1 / n, state.history.dtype)
    rms = jnp.sqrt(jnp.mean(state.history**2, axis=1))
    total = jnp.sum(rms)
    law = (1 - uniform_prob) * rms / jnp.where(total > 0, total, 1.0) + uniform_prob / n
    return jnp.where(jnp.all(state.counts >= h) & (total > 0), law, uniform_law)


def remember(state: LossHistory, steps: Int[Array, "b"], losses: Float[Array, "b"]) -> LossHistory:
    """Return the history after losses at some steps, taken in order; of more than h at one step the last h stay."""
    h = state.history.shape[1]
    same, index = steps[:, None] == steps[None, :], jnp.arange(len(steps))
    earlier = jnp.sum(same & (index[None, :] < index[:, None]), axis=1)
    later = jnp.sum(same & (index[None, :] > index[:, None]), axis=1)
    slot = jnp.where(later < h, (state.counts[steps] + earlier) % h, h)  # h is out of range: dropped
    losses = losses.astype(state.history.dtype)
    return LossHistory(
        state.history.at[steps, slot].set(losses, mode="drop", unique_indices=True), state.counts.at[steps].add(1)
    )


@limited(WHERE)
def log_snr(path: PathGiven, t_min: First, t_max: Last = 1.0) -> TimeSampler:
    """log SNR uniform between its ends: the importance sampler of the likelihood weighting, for any path.

    p(t) = |d log_snr/dt| / Z, weight = 1 / (p(t) (t_max - t_min)) (Song et al. 2021, sec. 5.2, arXiv:2101.09258).
    """
    high, low = finite_log_snr(path, t_min), finite_log_snr(path, t_max)

    def sample(key, b):
        u = (jax.random.uniform(key, ()) + jnp.arange(b) / b) % 1.0
        t = path.inverse_log_snr(high + (low - high) * u, t_min, t_max)
        c = path.at(t)
        rate = 2 * c.det / (c.alpha * c.sigma)  # -d log_snr/dt
        return t, (high - low) / (rate * (t_max - t_min))

    return _stateless(sample)


@limited(WHERE)
def log_variance(path: PathGiven, t_min: First, t_max: Last = 1.0) -> TimeSampler:
    """log(1 + SNR) uniform between its ends: the importance sampler of the likelihood weighting for v, for any path.

    On a variance-preserving path that is -log sigma^2, and |v error|^2 counts alike at all times: i-DODE's sampler
    (Zheng et al. 2023, arXiv:2305.03935, sec. 4.3). p(t) = sigmoid(log_snr) |d log_snr/dt| / Z.
    """
    high, low = (float(np.logaddexp(0.0, finite_log_snr(path, t))) for t in (t_min, t_max))

    def sample(key, b):
        value = high + (low - high) * ((jax.random.uniform(key, ()) + jnp.arange(b) / b) % 1.0)
        # log(e^value - 1), by what does not overflow
        t = path.inverse_log_snr(value + jnp.log(-jnp.expm1(-value)), t_min, t_max)
        c = path.at(t)
        rate = 2 * c.det * c.alpha / (c.sigma * (c.alpha**2 + c.sigma**2))  # -d log(1 + SNR)/dt
        return t, (high - low) / (rate * (t_max - t_min))

    return _stateless(sample)


def _require_share(low: float, high: float, mean: float, std: float) -> None:
    """Raise UserError where a normal law has nothing between its quantiles `low` and `high`, the ends of training."""
    if not low < high:
        raise UserError(
            f"{WHERE}.mean is {mean}, with std = {std}: none of that law lies between config.training.smallest_time "
            "and config.training.largest_time."
        )


@limited(WHERE)
def lognormal(path: PathGiven, t_min: First, t_max: Last = 1.0, mean: float = -1.2, std: Positive = 1.2) -> TimeSampler:
    """log(sigma/alpha) ~ N(mean, std^2) cut to [t_min, t_max]; weight 1: here the law is part of the objective (EDM,
    Karras et al. 2022, table 1, arXiv:2206.00364)."""
    law = statistics.NormalDist(mean, std)
    low, high = (law.cdf(-finite_log_snr(path, t) / 2) for t in (t_min, t_max))
    _require_share(low, high, mean, std)

    def sample(key, b):
        quantile = low + (high - low) * jax.random.uniform(key, (b,))
        log_noise = mean + std * jax.scipy.special.ndtri(quantile)
        return path.inverse_log_snr(-2 * log_noise, t_min, t_max), jnp.ones(b)

    return _stateless(sample)


@limited(WHERE)
def logit_normal(
    path: PathGiven, t_min: First, t_max: Last = 1.0, mean: float = 0.0, std: Positive = 1.0
) -> TimeSampler:
    """log(t/(1 - t)) ~ N(mean, std^2) cut to [t_min, t_max]; weight 1: the law is part of the objective (Esser et al.
    2024, sec. 3.1, arXiv:2403.03206)."""
    law = statistics.NormalDist(mean, std)
    low = law.cdf(math.log(t_min / (1 - t_min))) if t_min > 0 else 0.0
    high = law.cdf(math.log(t_max / (1 - t_max))) if t_max < 1 else 1.0
    _require_share(low, high, mean, std)

    def sample(key, b):
        quantile = low + (high - low) * jax.random.uniform(key, (b,))
        t = jax.nn.sigmoid(mean + std * jax.scipy.special.ndtri(quantile))
        return jnp.clip(t, t_min, t_max), jnp.ones(b)

    return _stateless(sample)


@limited(WHERE)
def shifted(path: PathGiven, t_min: First, t_max: Last = 1.0, shift: Positive = 3.0) -> TimeSampler:
    """t = shift u / (1 + (shift - 1) u) in [t_min, t_max], u uniform; weight 1.

    shift > 1 looks more at the noise, as images of shift^2 times the pixels need (Esser et al. 2024, eq. 23,
    arXiv:2403.03206).
    """
    low, high = (t / (shift - (shift - 1) * t) for t in (t_min, t_max))  # the inverse map

    def sample(key, b):
        u = low + (high - low) * jax.random.uniform(key, (b,))
        return jnp.clip(shift * u / (1 + (shift - 1) * u), t_min, t_max), jnp.ones(b)

    return _stateless(sample)


TIME_SAMPLERS: dict[str, Callable[..., TimeSampler]] = {
    "uniform": uniform, "stratified": stratified, "grid": grid, "loss_second_moment": loss_second_moment,
    "log_snr": log_snr, "log_variance": log_variance, "lognormal": lognormal, "logit_normal": logit_normal,
    "shifted": shifted,
}  # fmt: skip
"""The laws of time by name; config.training.time_sampler.name takes module.function for one of another package.

A row is a function that returns a TimeSampler, whose functions are traced by jax and draw t from [t_min, t_max] by
their key alone. By parameters of these names it asks for what the rest of the config says: `path`, `t_min` and `t_max`
(config.training.smallest_time and largest_time). Every other parameter is a field of config.training.time_sampler, with
its default and the limits of its annotation (config.hints: Positive, Share, ...).
"""
