"""Time grids, descending from t_max to t_min, in float64 on the host. A grid of n steps has n + 1 times."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from score_flow.paths.base import Path
from score_flow.types import UserError

Grid = Float[np.ndarray, "times"]
Intervals = Float[np.ndarray, "n 2"] | Float[Array, "n 2"]  # rows (s, t), s < t


def uniform(path: Path, n_steps: int, t_min: float, t_max: float) -> Grid:
    """Equal steps in t."""
    return np.linspace(t_max, t_min, n_steps + 1)


def quadratic(path: Path, n_steps: int, t_min: float, t_max: float) -> Grid:
    """Equal steps in sqrt(t): finer near the data (Song et al. 2021, DDIM, arXiv:2010.02502)."""
    return _pin(np.linspace(t_max**0.5, t_min**0.5, n_steps + 1) ** 2, t_min, t_max)


def karras(path: Path, n_steps: int, t_min: float, t_max: float, rho: float = 7.0) -> Grid:
    """Equal steps in (sigma/alpha)^(1/rho) (Karras et al. 2022, eq. 5, arXiv:2206.00364)."""
    noise_max, noise_min = (math.exp(-finite_log_snr(path, t) / 2) for t in (t_max, t_min))
    noise = np.linspace(noise_max ** (1 / rho), noise_min ** (1 / rho), n_steps + 1) ** rho
    return _at_log_snr(path, -2 * np.log(noise), t_min, t_max)


def log_snr(path: Path, n_steps: int, t_min: float, t_max: float) -> Grid:
    """Equal steps in log SNR (Lu et al. 2022, arXiv:2206.00927)."""
    values = np.linspace(finite_log_snr(path, t_max), finite_log_snr(path, t_min), n_steps + 1)
    return _at_log_snr(path, values, t_min, t_max)


def intervals(times: Grid) -> Float[np.ndarray, "times-1 2"]:
    """The rows (s, t) of a descending grid, s < t, contiguous and in the order in which a sampler visits them."""
    return np.stack([times[1:], times[:-1]], axis=1)


GRIDS = {"uniform": uniform, "quadratic": quadratic, "karras": karras, "log_snr": log_snr}


def finite_log_snr(path: Path, t: float) -> float:
    """log SNR at a time, on the host even while a jit around it traces; UserError where it is infinite."""
    with jax.ensure_compile_time_eval():
        value = float(path.log_snr(jnp.asarray(t, float)))
    if not math.isfinite(value):
        raise UserError(f"log SNR of {type(path).__name__} is {value} at t = {t}: t_min or t_max must stop short.")
    return value


def _at_log_snr(path: Path, values: Grid, t_min: float, t_max: float) -> Grid:
    # A grid is a handful of numbers made once: the default float is ample for where to put its points.
    with jax.ensure_compile_time_eval():
        times = path.inverse_log_snr(jnp.asarray(values, float), t_min, t_max)
    return _pin(np.array(times, np.float64), t_min, t_max)


def _pin(times: Grid, t_min: float, t_max: float) -> Grid:
    # Roots and squares round; whoever asks for t_min and t_max gets them exactly.
    times[0], times[-1] = t_max, t_min
    return times
