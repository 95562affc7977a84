"""Averages of the weights over training by powers of the step, and others of any width made of these afterwards.

Karras et al. 2024, arXiv:2312.02696, sec. 3 and app. C: after n steps the weights of step k have a share proportional
to p(k/n), with the profile p(s) = (gamma + 1) s^gamma on [0, 1], whose standard deviation is the relative width.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from score_flow.config.options import ModelOptions

Doubles = Float[np.ndarray, "k"]
Numbers = Float[np.ndarray, "..."] | float


def n_averages(model: ModelOptions | dict[str, Any]) -> int:
    """Count the averages that config.model keeps: one for each ema_rate, then one for each ema_std."""
    known = model if isinstance(model, dict) else model.to_dict()
    return len(known["ema_rate"]) + len(known.get("ema_std", ()))  # runs of older versions have no ema_std


def gamma_of(std: float) -> float:
    """Return the exponent of the profile of relative width std: std^2 = (gamma + 1)/((gamma + 2)^2 (gamma + 3)).

    std in (0, 12^-1/2]: the widest is the plain mean, gamma = 0.
    """
    return float(np.roots([1.0, 7.0, 16.0 - std**-2, 12.0 - std**-2]).real.max())


def power_share(gamma: float, step: Int[Array, ""]) -> Float[Array, ""]:
    """Return the share of the new weights, 1 - (1 - 1/n)^(gamma + 1), n counting updates from 1 (eq. 127)."""
    n = jnp.asarray(step + 1, jnp.float32)
    return -jnp.expm1((gamma + 1) * jnp.log1p(-1 / n))  # 1 - x loses the share, about (gamma + 1)/n, in float32


def combination(steps: Doubles, gammas: Doubles, step: float, gamma: float) -> tuple[Doubles, float]:
    """(weights of averages, their relative error) for the average at `step` with exponent gamma.

    Average i was taken at steps[i] with exponent gammas[i]. The combination's profile is nearest to the wanted one in
    L2 (app. C.2), here under a sum of one, so that parameters that never move stay as they are. The error is the norm
    of the difference of the profiles over the norm of the wanted one.
    """
    products = _product(steps[:, None], gammas[:, None], steps[None], gammas[None])
    wanted, norm = _product(steps, gammas, step, gamma), float(_product(step, gamma, step, gamma))
    scale = np.sqrt(np.diag(products))  # unit profiles: else the earliest, the steepest, decide what rounding is
    system = np.block([[products / np.outer(scale, scale), 1 / scale[:, None]], [1 / scale[None], np.zeros((1, 1))]])
    solution = np.linalg.lstsq(system, np.append(wanted / scale, 1.0), rcond=1e-13)[0]
    weights = solution[:-1] / scale
    weights = weights / weights.sum()
    square = weights @ products @ weights - 2 * weights @ wanted + norm
    return weights, float(np.sqrt(max(square, 0.0) / norm))


def _product(t_a: Numbers, gamma_a: Numbers, t_b: Numbers, gamma_b: Numbers) -> Numbers:
    """Return the integral of two profiles, of averages taken at t_a and t_b, over the steps that they share."""
    later, last = np.where(t_a > t_b, gamma_a, gamma_b), np.maximum(t_a, t_b)
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * (np.minimum(t_a, t_b) / last) ** later / last
