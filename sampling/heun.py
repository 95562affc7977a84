"""EDM's stochastic sampler (Karras et al. 2022, alg. 2, arXiv:2206.00364), on any path."""

import math
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sampling.base import WHERE, Sampler
from sampling.recursion import Recursion, levels, recursion_sampler
from score_flow.config.hints import Count, NotNegative, UnitTime, limited
from score_flow.config.limits import Limits, check_times
from score_flow.errors import UserError
from score_flow.paths.base import Path
from score_flow.process.grid import Grid, GridChoice, choose


def churned(path: Path, times: Grid, s_churn: float, *, s_min: float, s_max: float) -> Float[np.ndarray, "times-1"]:
    """Return the times at which steps start: noise levels raised by 1 + gamma, gamma = min(s_churn/n, sqrt(2) - 1).

    Only levels between s_min and s_max are raised, and none above that of times[0]: the first step has no churn.
    """
    start, (alpha, sigma) = times[:-1], levels(path, times[:-1])
    with np.errstate(divide="ignore"):
        noise = sigma / alpha
    gamma = min(s_churn / len(start), math.sqrt(2) - 1) * ((s_min <= noise) & (noise <= s_max))
    if not np.any(gamma):
        return start
    with jax.ensure_compile_time_eval():
        log_snr = jnp.asarray(-2 * np.log(noise * (1 + gamma)), float)
        raised = np.asarray(path.inverse_log_snr(log_snr, float(times[-1]), float(times[0])), np.float64)
    return np.where(gamma > 0, np.maximum(raised, start), start)


def heun(
    path: Path, times: Grid, s_churn: float = 0.0, *, s_min: float = 0.0, s_max: float = math.inf, s_noise: float = 1.0
) -> Recursion:
    """Tabulate Heun steps of dy/dv = (y - x0)/v, y = x/alpha at noise level v = sigma/alpha; the last step is Euler's.

    A step from v to w calls at its start, y <- (w/v) y + (1 - w/v) x0, and at its end, y <- y + (v/w - 1)/2 (x0' - x0):
    with n steps 2 n - 1 calls. Churn then adds s_noise sqrt(w_start^2 - w^2) z, which takes y to the next start. From
    v = infinity (alpha = 0) the step is Euler's too, w z + x0, and that call is the only one.
    """
    bounds = {"s_min": s_min, "s_max": s_max, "s_noise": s_noise}
    if len(times) > 2 and levels(path, times[:1])[0][0] == 0:
        first, rest = heun(path, times[:2]), heun(path, times[1:], s_churn, **bounds)
        return Recursion(*(np.concatenate(columns) for columns in zip(first, rest, strict=True)))
    start = churned(path, times, s_churn, s_min=s_min, s_max=s_max)
    ends = times[1:]
    calls = np.stack([start, ends], axis=1).ravel()[:-1]
    after = np.stack([ends, np.append(start[1:], ends[-1])], axis=1).ravel()[:-1]
    (alpha, sigma), (alpha_after, sigma_after) = levels(path, calls), levels(path, after)
    scale, ratio = sigma_after / sigma, (sigma_after * alpha / (alpha_after * sigma))[::2]  # w/v
    weights, std = np.zeros((len(calls), 2)), np.zeros(len(calls))
    weights[::2, 0] = 1 - ratio
    weights[1::2] = (1 / ratio[:-1, None] - 1) * np.array([0.5, -0.5])
    scale[1::2] = alpha_after[1::2] / alpha[1::2]
    added = (sigma_after[1::2] / alpha_after[1::2]) ** 2 - (sigma[1::2] / alpha[1::2]) ** 2
    std[1::2] = s_noise * np.sqrt(np.maximum(added, 0.0))
    return Recursion(calls, scale, alpha_after[:, None] * weights, alpha_after * std)


@limited(WHERE)
def build(
    t_min: UnitTime = 1e-3,
    t_max: UnitTime = 1.0,
    n_steps: Count = 18,
    *,
    grid: GridChoice = "karras",
    s_churn: NotNegative = 0.0,
    s_min: NotNegative = 0.0,
    s_max: Annotated[float, Limits(least=0, infinite=True)] = math.inf,
    s_noise: NotNegative = 1.0,
) -> Sampler:
    """Take n_steps steps in 2 n_steps - 1 network calls, one less from alpha = 0.

    s_churn = 0 is deterministic; s_min and s_max bound the noise levels sigma/alpha that churn raises.
    """
    check_times(WHERE, t_min, t_max)
    times = choose(f"{WHERE}.grid", grid)
    if s_min > s_max:
        raise UserError(f"{WHERE}.s_min is {s_min}; it must be at most s_max, {s_max}.")

    def rows(path: Path) -> Recursion:
        grid_times = times(path, n_steps, t_min, t_max)
        return heun(path, grid_times, s_churn, s_min=s_min, s_max=s_max, s_noise=s_noise)

    return recursion_sampler(rows)
