"""Which times a training step looks at: samplers of t with importance weights."""

import statistics
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from score_flow.grid import finite_log_snr
from score_flow.paths.base import Path
from score_flow.types import Key, UserError


class TimeSampler(NamedTuple):
    """Draws (t, weight), each (b,): the mean of weight x f(t) estimates the mean of f under the sampler's base law.

    init() is a state carried by the training state, update(state, t, losses) its next value; those below have none.
    """

    init: Callable[[], PyTree]
    sample: Callable[[PyTree, Key, int], tuple[Float[Array, "b"], Float[Array, "b"]]]
    update: Callable[[PyTree, Float[Array, "b"], Float[Array, "b"]], PyTree]


def _stateless(sample: Callable[[Key, int], tuple[Float[Array, "b"], Float[Array, "b"]]]) -> TimeSampler:
    return TimeSampler(lambda: (), lambda state, key, b: sample(key, b), lambda state, t, losses: state)


def uniform(path: Path, t_min: float, t_max: float = 1.0) -> TimeSampler:
    """t ~ U[t_min, t_max], weight 1."""

    def sample(key, b):
        return t_min + (t_max - t_min) * jax.random.uniform(key, (b,)), jnp.ones(b)

    return _stateless(sample)


def stratified(path: Path, t_min: float, t_max: float = 1.0) -> TimeSampler:
    """One t in each of b equal cells, uniform in its cell: the same mean, less variance (arXiv:2107.00630, app. I)."""

    def sample(key, b):
        # One shift for the batch (a lattice): every t is marginally uniform and the cells are equally filled.
        u = (jax.random.uniform(key, ()) + jnp.arange(b) / b) % 1.0
        return t_min + (t_max - t_min) * u, jnp.ones(b)

    return _stateless(sample)


def grid(path: Path, t_min: float, t_max: float = 1.0, n: int = 1000, closed: bool = False) -> TimeSampler:
    """t uniform on n grid times that lie in [t_min, t_max], weight 1: a chain's (i + 1)/n (discrete DDPM training), or,
    closed, i/(n - 1) from 0 to 1 (the n noise levels of SMLD)."""
    times = np.linspace(0.0, 1.0, n) if closed else np.arange(1, n + 1) / n
    times = times[(times >= t_min) & (times <= t_max)]
    if not len(times):
        raise UserError(f"time sampler grid: no i/{n} lies between t_min = {t_min} and t_max = {t_max}.")

    def sample(key, b):
        return jnp.asarray(times, jnp.result_type(float))[jax.random.randint(key, (b,), 0, len(times))], jnp.ones(b)

    return _stateless(sample)


def log_snr(path: Path, t_min: float, t_max: float = 1.0) -> TimeSampler:
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


def lognormal(path: Path, t_min: float, t_max: float = 1.0, mean: float = -1.2, std: float = 1.2) -> TimeSampler:
    """log(sigma/alpha) ~ N(mean, std^2) cut to [t_min, t_max]; weight 1: here the law is part of the objective (EDM,
    Karras et al. 2022, table 1, arXiv:2206.00364)."""
    law = statistics.NormalDist(mean, std)
    low, high = (law.cdf(-finite_log_snr(path, t) / 2) for t in (t_min, t_max))

    def sample(key, b):
        quantile = low + (high - low) * jax.random.uniform(key, (b,))
        log_noise = mean + std * jax.scipy.special.ndtri(quantile)
        return path.inverse_log_snr(-2 * log_noise, t_min, t_max), jnp.ones(b)

    return _stateless(sample)


TIME_SAMPLERS = {"uniform": uniform, "stratified": stratified, "grid": grid, "log_snr": log_snr, "lognormal": lognormal}
