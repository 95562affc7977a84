"""UniPC (Zhao et al. 2023, arXiv:2302.04867), in data prediction."""

from typing import Annotated

import numpy as np

from sampling.base import WHERE, Sampler
from sampling.exponential import B, dpm_solver, exponential_weights, half_log_snr, step_orders
from sampling.recursion import Recursion, levels, recursion_sampler
from score_flow.config.hints import Count, UnitTime, limited
from score_flow.config.limits import Limits, check_times
from score_flow.paths.base import Path
from score_flow.process.grid import Grid, GridChoice, choose


def unipc(path: Path, times: Grid, order: int, *, b: str = "bh2") -> Recursion:
    """UniP predicts x_s; the estimate made there, which the next step needs anyway, corrects x_s first (UniC).

    Prediction and correction are sums over the same estimates, so the correction changes only the next step's weights:
    weights_i += scale_i (UniC's - UniP's weights)_{i-1}. The last state, where nothing is evaluated, is not corrected.
    """
    predictor, log_snr, alpha = dpm_solver(path, times, order, b=b), half_log_snr(path, times), levels(path, times)[0]
    weights = np.pad(predictor.weights, ((0, 0), (0, 1)))
    h, orders = np.diff(log_snr), step_orders(log_snr, order)
    for i in range(1, len(h)):
        if np.isfinite(h[i - 1]):
            k = orders[i - 1]
            nodes = (log_snr[i - k : i + 1][::-1] - log_snr[i - 1]) / h[i - 1]  # 1 (the new estimate), 0, ...
            correction = alpha[i] * exponential_weights(nodes, h[i - 1], b)
            correction[1:] -= predictor.weights[i - 1, :k]
            weights[i, : k + 1] += predictor.scale[i] * correction
    return predictor._replace(weights=weights)


@limited(WHERE)
def build(
    t_min: UnitTime = 1e-3,
    t_max: UnitTime = 1.0,
    n_steps: Count = 20,
    *,
    grid: GridChoice = "log_snr",
    order: Annotated[int, Limits(least=1, most=3)] = 2,
    b: Annotated[str, Limits(among=tuple(B))] = "bh2",
) -> Sampler:
    """Take n_steps steps of UniPC-order, accurate to order + 1; one network call a step. b names B(h), bh1 or bh2."""
    check_times(WHERE, t_min, t_max)
    times = choose(f"{WHERE}.grid", grid)
    return recursion_sampler(lambda path: unipc(path, times(path, n_steps, t_min, t_max), order, b=b))
