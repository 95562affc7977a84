"""DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095), and the loop of every method linear in its network calls."""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sampling.base import WHERE, Sampler, Samples, finite, normal, split
from score_flow.config.hints import Count, UnitTime, limited
from score_flow.config.limits import Limits, check_times
from score_flow.model import Denoiser
from score_flow.paths.base import Path
from score_flow.process.grid import Grid, GridChoice, choose
from score_flow.types import Images, Keys

VARIANTS = {"ode": 1, "sde": 2}  # how fast old estimates are forgotten, in units of the flow's rate
SHORT = (
    15  # runs of fewer steps end at lower orders (arXiv:2211.01095's code): extrapolating over long steps is unstable
)

# B(h) of UniPC (Zhao et al. 2023, sec. 3.2, arXiv:2302.04867); bh2 makes its second-order predictor DPM-Solver++(2M).
B = {"bh1": lambda h: h, "bh2": lambda h: -np.expm1(-h)}


class Recursion(NamedTuple):
    """x <- scale x + sum_j weights[j] e_j + std z, a row for each network call; e_j is E[x0 | x] as of j calls ago.

    Grids are known on the host, and so are the rows, in float64: what runs is one network call in one scan.
    """

    t: Float[np.ndarray, "n"]  # when the network is called
    scale: Float[np.ndarray, "n"]
    weights: Float[np.ndarray, "n k"]
    std: Float[np.ndarray, "n"]


def recur(keys: Keys, denoiser: Denoiser, x: Images, rows: Recursion) -> Images:
    """Run a recursion from x at rows.t[0]."""
    noisy = bool(np.any(rows.std))

    def visit(carry, row):
        x, history = carry
        index, (t, scale, weights, std) = row
        history = (denoiser.x0(x, t), *history[:-1])
        x = scale * x + sum(weight * value for weight, value in zip(weights, history, strict=True))
        if noisy:
            x = x + std * normal(keys, x.shape[1:], index)
        return (x, history), None

    start = x, (jnp.zeros_like(x),) * rows.weights.shape[1]
    steps = jnp.arange(len(rows.t)), tuple(jnp.asarray(column, x.dtype) for column in rows)
    (x, _), _ = jax.lax.scan(visit, start, steps)
    return x


def recursion_sampler(rows: Callable[[Path], Recursion]) -> Sampler:
    """Draw from the prior at the first time of rows(path), then `recur`."""

    def sample(keys: Keys, denoiser: Denoiser, shape: tuple[int, ...]) -> Samples:
        recursion = rows(denoiser.path)
        prior_keys, noise_keys = split(keys)
        x = denoiser.start(prior_keys, shape, float(recursion.t[0]))
        x = recur(noise_keys, denoiser, x, recursion)
        return Samples(x, jnp.asarray(len(recursion.t)), finite(x))

    return sample


def levels(path: Path, times: Grid) -> tuple[Grid, Grid]:
    """(alpha, sigma) at the times, on the host even while a jit around it traces."""
    with jax.ensure_compile_time_eval():
        t = jnp.asarray(times, float)
        return np.asarray(path.alpha(t), np.float64), np.asarray(path.sigma(t), np.float64)


def half_log_snr(path: Path, times: Grid) -> Grid:
    """lambda = log(alpha/sigma), the variable of the exponential integrators; infinite where alpha or sigma is 0."""
    alpha, sigma = levels(path, times)
    with np.errstate(divide="ignore"):
        return np.log(alpha) - np.log(sigma)


def step_orders(log_snr: Grid, order: int) -> list[int]:
    """The order of each step: 1, 2, ... as estimates at finite log SNR come in; lowered towards the end of short runs
    and before an infinite log SNR."""
    n, known = len(log_snr) - 1, np.cumsum(np.isfinite(log_snr))
    lowered = n < SHORT or not np.isfinite(log_snr[-1])
    return [min(order, max(int(known[i]), 1), n - i if lowered else order) for i in range(n)]


def exponential_weights(nodes: Float[np.ndarray, "k"], h: float, b: str = "bh2") -> Float[np.ndarray, "k"]:
    """Weights of the values at the nodes in h int_0^1 e^{-h (1 - u)} p(u) du, p the polynomial through them.

    Of two nodes the first moment is taken as B(h)/2, as DPM-Solver++(2M) and UniPC do; the rest are exact.
    """
    moments = [-np.expm1(-h)]
    for j in range(1, len(nodes)):
        moments.append(1 - j / h * moments[-1])
    if len(nodes) == 2:
        moments[1] = B[b](h) / 2
    return np.linalg.solve(np.vander(nodes, increasing=True).T, np.array(moments))


def dpm_solver(path: Path, times: Grid, order: int, variant: str = "ode", b: str = "bh2") -> Recursion:
    """x_s = (sigma_s/sigma_t) x_t + sigma_s int e^lambda x0(lambda) dlambda, x0 a polynomial through `order` estimates.

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


@limited(WHERE)
def build(
    t_min: UnitTime = 1e-3,
    t_max: UnitTime = 1.0,
    n_steps: Count = 20,
    grid: GridChoice = "log_snr",
    order: Annotated[int, Limits(least=1, most=3)] = 2,
    variant: Annotated[str, Limits(among=tuple(VARIANTS))] = "ode",
) -> Sampler:
    """n_steps steps of DPM-Solver++(order M), deterministic ("ode") or stochastic ("sde"); one network call a step."""
    check_times(WHERE, t_min, t_max)
    times = choose(f"{WHERE}.grid", grid)
    return recursion_sampler(lambda path: dpm_solver(path, times(path, n_steps, t_min, t_max), order, variant))
