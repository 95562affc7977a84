"""log p(x) by the probability-flow ODE, solved on the device, against scipy driving the same right-hand side.

Ours is evaluation.likelihood.log_likelihood, Dopri5 at rtol = atol = 1e-5 with the whole batch as one state, in one
program. The other is score_sde's way: scipy's RK45, the same pair of formulas at the same tolerances, its state in
float64 on the host; every call of the same jitted right-hand side crosses to the device and back. Network (random
weights), images, dequantisation and probes are the same. Goals: time <= 0.75 and calls <= 1.05 of scipy's.

Where the network is large, the ratio of times is that of calls; below that it shows what the crossings cost.

    python -m benchmarks.likelihood --config=configs/digits.py --batch=64
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

from benchmarks.measure import Contender, Options, Row, interleave, main, random_params, row, significant
from evaluation.likelihood import log_likelihood, probes
from sampling.base import example_keys
from sampling.ode import Solver
from score_flow.build import Experiment, experiment
from score_flow.numerics import value_and_divergence
from score_flow.types import Images

TOLERANCE = 1e-5
GOAL, CALLS_GOAL = 0.75, 1.05


class Answer(NamedTuple):
    """log p in nats, and batched network calls."""

    log_prob: Float[np.ndarray, "b"]
    calls: int


def measure(config: ConfigDict, options: Options) -> Iterable[Row]:
    """One row: ms for the likelihood of a batch, and its time over scipy's."""
    run = experiment(config)
    with jax.default_matmul_precision("highest"):  # as evaluation.likelihood
        timing = interleave(*contenders(run, config.eval, options.batch), options.seconds)
    ours, scipy = timing.answers
    bits = (ours.log_prob - scipy.log_prob) / (math.prod(run.image_shape) * math.log(2))
    calls_ratio, largest, mean = significant(np.array([ours.calls / scipy.calls, np.abs(bits).max(), bits.mean()]), 4)
    yield row(
        "likelihood", 1e3 * timing.ours, "ms/batch", timing.ratios, "scipy RK45, same right-hand side", GOAL,
        calls=ours.calls, calls_scipy=scipy.calls, calls_ratio=calls_ratio, calls_goal=CALLS_GOAL,
        max_bits_per_dim_difference=largest, mean_bits_per_dim_difference=mean,
        network=type(run.model.network).__name__, batch_size=len(bits),
    )  # fmt: skip


def contenders(run: Experiment, options: ConfigDict, size: int) -> tuple[Contender, Contender]:
    """Ours and scipy's on the first images of the test split; each returns its Answer."""
    t_min, t_max, size = options.smallest_time, options.largest_time, min(size, len(run.test_source))
    batch = jax.tree.map(jnp.asarray, run.test_source.read(np.arange(size)))
    u = np.random.default_rng(run.seed).random(batch["image"].shape, np.float32)
    x0 = run.scaling.dequantise(batch["image"], jnp.asarray(u))
    given = random_params(run), run.condition(batch), example_keys(run.seed, jnp.arange(size))
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

    return ours, other


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
