"""log p(x) by the probability-flow ODE, solved on the device, against scipy driving the same right-hand side.

Ours is sampling.likelihood.log_likelihood with the whole batch as one state, in one program; the other is
score_sde's way: scipy's RK45 at rtol = atol = 1e-5, its state in float64 on the host; every call of the same jitted
right-hand side crosses to the device and back. Network, images, dequantisation and probes are the same. Two rows: ours
to the same error (Bosh3 at 1e-4: along a probe a network is too rough in time for higher orders to pay), and by the
same formulas, step control and tolerances (Dopri5 at 1e-5). Goals: time <= 0.75 and calls <= 1.05 of scipy's.

Each one's error is its root mean square distance in bits/dim from tsit5's at 1e-6. Where the network is large, the
ratio of times is that of calls; below that it shows what the crossings cost. Random weights are rougher in time than
trained ones, which --workdir takes:

    python -m benchmarks.likelihood --workdir=runs/digits --batch=64
"""

import functools
import math
import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.integrate import solve_ivp

from benchmarks.measure import Contender, Options, Row, Timing, interleave, main, params_of, row, significant
from sampling.base import example_keys
from sampling.flow import Solver
from sampling.likelihood import log_likelihood, probes
from score_flow.build import experiment
from score_flow.config.options import Config, EvalOptions
from score_flow.experiment import Experiment
from score_flow.numerics import value_and_divergence
from score_flow.types import Images, Params

TOLERANCE = 1e-5
SOLVERS = {
    "likelihood": Solver("bosh3", 10 * TOLERANCE, 10 * TOLERANCE, per_example=False, control="integral"),
    "likelihood_same_solver": Solver("dopri5", TOLERANCE, TOLERANCE, per_example=False, control="integral"),
}
FINER = Solver("tsit5", TOLERANCE / 10, TOLERANCE / 10, per_example=False)
GOAL, CALLS_GOAL = 0.75, 1.05

Log = Float[np.ndarray, "b"]


class Answer(NamedTuple):
    """log p in nats, and batched network calls."""

    log_prob: Log
    calls: int


def measure(config: Config, options: Options) -> Iterable[Row]:
    """Two rows: ms for the likelihood of a batch, and its time over scipy's."""
    run = experiment(config)
    with jax.default_matmul_precision("highest"):  # as evaluation.jobs.likelihood
        ours, other = contenders(run, params_of(run, config, options), config.eval, options.batch)
        truth = ours(FINER).log_prob
        for name, solver in SOLVERS.items():
            timing = interleave(functools.partial(ours, solver), other, options.seconds)
            yield compared(name, solver, timing, truth, run, "trained" if options.workdir else "random")


def compared(name: str, solver: Solver, timing: Timing, truth: Log, run: Experiment, weights: str) -> Row:
    """The row of one solver."""
    ours, scipy = timing.answers
    errors = [np.sqrt(np.mean((answer.log_prob - truth) ** 2)) for answer in timing.answers]
    error, error_scipy = significant(np.array(errors) / (math.prod(run.image_shape) * math.log(2)), 2)
    [calls_ratio] = significant(np.array([ours.calls / scipy.calls]), 4)
    return row(
        name, 1e3 * timing.ours, "ms/batch", timing.ratios, "scipy RK45, same right-hand side", GOAL,
        calls=ours.calls, calls_scipy=scipy.calls, calls_ratio=calls_ratio, calls_goal=CALLS_GOAL,
        error_bits_per_dim=error, error_scipy_bits_per_dim=error_scipy, solver=f"{solver.method} at {solver.rtol:g}",
        network=type(run.model.network).__name__, weights=weights, batch_size=len(truth),
    )  # fmt: skip


def contenders(
    run: Experiment, params: Params, options: EvalOptions, size: int
) -> tuple[Callable[[Solver], Answer], Contender]:
    """Ours by any solver, and scipy's, on the first images of the test split: each an Answer."""
    t_min, t_max, size = options.smallest_time, options.largest_time, min(size, len(run.test_source))
    batch = jax.tree.map(jnp.asarray, run.test_source.read(np.arange(size)))
    u = np.random.default_rng(run.seed).random(batch["image"].shape, np.float32)
    x0 = run.scaling.dequantise(batch["image"], jnp.asarray(u))
    given = params, run.condition(batch), example_keys(run.seed, jnp.arange(size))

    @functools.partial(jax.jit, static_argnums=0)
    def on_device(solver, params, condition, keys, x0):
        return log_likelihood(keys, run.model.bind(params, condition), x0, solver=solver, t_min=t_min, t_max=t_max)

    @jax.jit
    def field(params, condition, keys, x, t):
        denoiser = run.model.bind(params, condition)
        e = probes(keys, "rademacher", 1, shape=x.shape[1:])
        return value_and_divergence(lambda x: denoiser.velocity(x, t), x, e)

    prior_log_prob = jax.jit(lambda z: run.model.path.prior_log_prob(z, t_max))

    def ours(solver: Solver) -> Answer:
        result = on_device(solver, *given, x0)
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
