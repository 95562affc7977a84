"""Exponential integrators in log SNR: the weights of DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095) and of UniPC."""

import numpy as np
from jaxtyping import Float

from sampling.recursion import Recursion, levels
from score_flow.paths.base import Path
from score_flow.process.grid import Grid

VARIANTS = {"ode": 1, "sde": 2}  # how fast old estimates are forgotten, in units of the flow's rate
SHORT = (
    15  # runs of fewer steps end at lower orders (arXiv:2211.01095's code): extrapolating over long steps is unstable
)

# B(h) of UniPC (Zhao et al. 2023, sec. 3.2, arXiv:2302.04867); bh2 makes its second-order predictor DPM-Solver++(2M).
B = {"bh1": lambda h: h, "bh2": lambda h: -np.expm1(-h)}


def half_log_snr(path: Path, times: Grid) -> Grid:
    """Return lambda = log(alpha/sigma), the variable of exponential integrators; infinite where alpha or sigma is 0."""
    alpha, sigma = levels(path, times)
    with np.errstate(divide="ignore"):
        return np.log(alpha) - np.log(sigma)


def step_orders(log_snr: Grid, order: int) -> list[int]:
    """Choose the order of each step: 1, 2, ... as estimates at finite log SNR come in.

    It is lowered towards the end of short runs and before an infinite log SNR.
    """
    n, known = len(log_snr) - 1, np.cumsum(np.isfinite(log_snr))
    lowered = n < SHORT or not np.isfinite(log_snr[-1])
    return [min(order, max(int(known[i]), 1), n - i if lowered else order) for i in range(n)]


def exponential_weights(nodes: Float[np.ndarray, "k"], h: float, b: str = "bh2") -> Float[np.ndarray, "k"]:
    """Weigh the values at the nodes in h int_0^1 e^{-h (1 - u)} p(u) du, p the polynomial through them.

    Of two nodes the first moment is taken as B(h)/2, as DPM-Solver++(2M) and UniPC do; the rest are exact.
    """
    moments = [-np.expm1(-h)]
    for j in range(1, len(nodes)):
        moments.append(1 - j / h * moments[-1])
    if len(nodes) == 2:
        moments[1] = B[b](h) / 2
    return np.linalg.solve(np.vander(nodes, increasing=True).T, np.array(moments))


def dpm_solver(path: Path, times: Grid, order: int, *, variant: str = "ode", b: str = "bh2") -> Recursion:
    """Tabulate x_s = (sigma_s/sigma_t) x_t + sigma_s int e^lambda x0 dlambda, x0 a polynomial through estimates.

    "sde" (arXiv:2211.01095, eq. 18): sigma_s/sigma_t e^{-h} x_t + 2 sigma_s int e^{2 lambda - lambda_s} x0 dlambda +
    sigma_s sqrt(1 - e^{-2h}) z, h = lambda_s - lambda_t; like `chain` it adds no noise in its last step. At order 3 the
    published code halves the second difference's weight, which makes it second order; here it has its full weight.
    """
    (alpha, sigma), log_snr = levels(path, times), half_log_snr(path, times)
    h, rate = np.diff(log_snr), VARIANTS[variant]
    weights = np.zeros((len(h), order))
    for i, k in enumerate(step_orders(log_snr, order)):
        nodes = np.array([0.0, *(log_snr[i - j] - log_snr[i] for j in range(1, k))]) / h[i]
        weights[i, :k] = alpha[i + 1] * exponential_weights(nodes, rate * h[i], b)
    scale, std = sigma[1:] / sigma[:-1], np.zeros(len(h))
    if variant == "sde":
        scale, std[:-1] = scale * np.exp(-h), (sigma[1:] * np.sqrt(-np.expm1(-2 * h)))[:-1]
    return Recursion(times[:-1], scale, weights, std)
