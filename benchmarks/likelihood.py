"""log p(x) by the probability-flow ODE, solved on the device, against scipy driving the same right-hand side.

Ours is evaluation.likelihood.log_likelihood, Dopri5 at rtol = atol = 1e-5 with the whole batch as one state, in one
program. The other is score_sde's way: scipy's RK45, the same pair of formulas, at the same tolerances; its state is in
float64 on the host, and every call of the same jitted right-hand side crosses to the device and back. Network (random
weights), images, dequantisation and probes are the same. Goals: time <= 0.75 and calls <= 1.05 of scipy's, log p within
1e-5 bits/dim. The batch is config.eval.batch_size, at most MAX_BATCH.

    python -m benchmarks.likelihood --config=configs/digits.py --config.eval.batch_size=16
"""

import math
import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict
from scipy.integrate import solve_ivp

from benchmarks.measure import Row, interleave, main, random_params, row
from evaluation.likelihood import log_likelihood, probes
from sampling.base import example_keys
from sampling.ode import Solver
from score_flow.build import condition_of, experiment
from score_flow.numerics import value_and_divergence
from score_flow.types import Images

TOLERANCE = 1e-5
MAX_BATCH = 32
GOAL, CALLS_GOAL = 0.75, 1.05


class Answer(NamedTuple):
    """log p in nats, and batched network calls."""

    log_prob: Float[np.ndarray, "b"]
    calls: int


def measure(config: ConfigDict, seconds: float) -> Iterable[Row]:
    """One row: ms of ours for a batch, and its time over scipy's."""
    run, options = experiment(config), config.eval
    size = min(options.batch_size, MAX_BATCH, len(run.test_source))
    batch = run.test_source.read(np.arange(size))
    x0 = run.scaling.dequantise(jnp.asarray(batch["image"]), jax.random.uniform(jax.random.key(1), batch["image"].shape))
    given = random_params(run), jax.device_put(condition_of(batch, run.labelled)), example_keys(run.seed, jnp.arange(size))
    t_min, t_max = options.smallest_time, options.largest_time
    solver = Solver("dopri5", TOLERANCE, TOLERANCE, per_example=False)

    @jax.jit
    def on_device(params, condition, keys, x0):
        return log_likelihood(keys, run.model.bind(params, condition), x0, solver, t_min, t_max)

    @jax.jit
    def field(params, condition, keys, x, t):
        denoiser = run.model.bind(params, condition)
        return value_and_divergence(lambda x: denoiser.velocity(x, t), x, probes(keys, "rademacher", 1, x.shape[1:]))

    prior_log_prob = jax.jit(lambda z: run.model.path.prior_log_prob(z, t_max))

    def ours() -> Answer:
        result = on_device(*given, x0)
        return Answer(np.asarray(result.log_prob), int(result.n_evaluations))

    def other() -> Answer:
        return by_scipy(lambda x, t: field(*given, x, t), prior_log_prob, x0, t_min, t_max)

    with jax.default_matmul_precision("highest"):  # as evaluation.likelihood
        timing, mine, theirs = interleave(ours, other, seconds), ours(), other()
    bits = (mine.log_prob - theirs.log_prob) / (math.prod(x0.shape[1:]) * math.log(2))
    yield row(
        "likelihood", 1e3 * timing.ours, "ms/batch", timing.ratios, "scipy RK45 on the host, same right-hand side", GOAL,
        calls=mine.calls, calls_other=theirs.calls, calls_ratio=round(mine.calls / theirs.calls, 4), calls_goal=CALLS_GOAL,
        max_bits_per_dim_difference=float(f"{np.abs(bits).max():.2g}"), mean_bits_per_dim_difference=float(f"{bits.mean():.2g}"),
        network=type(run.model.network).__name__, batch_size=size,
    )  # fmt: skip


def by_scipy(field: Callable, prior_log_prob: Callable, x0: Images, t_min: float, t_max: float) -> Answer:
    """score_sde's likelihood: images and log p of the batch as one float64 vector under scipy's error control."""

    def f(t: float, y: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        value, divergence = field(np.float32(y[: x0.size]).reshape(x0.shape), np.float32(t))
        return np.concatenate([np.ravel(value), divergence], dtype=np.float64)

    y0 = np.concatenate([np.ravel(x0), np.zeros(len(x0))], dtype=np.float64)
    solution = solve_ivp(f, (t_min, t_max), y0, "RK45", rtol=TOLERANCE, atol=TOLERANCE)
    y = solution.y[:, -1]
    z = np.float32(y[: x0.size]).reshape(x0.shape)
    return Answer(np.asarray(prior_log_prob(z)) + y[x0.size :], solution.nfev)


if __name__ == "__main__":
    sys.exit(main(measure))
