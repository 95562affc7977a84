"""log p(x) by the probability-flow ODE, solved on the device, against scipy driving the same right-hand side.

Ours is sampling.likelihood.log_likelihood in one program; the other is score_sde's way: scipy's RK45 at rtol = atol =
1e-5, its state, the whole batch, in float64 on the host; every call of the same jitted right-hand side crosses to the
device and back. Network, images, dequantisation and probes are the same. A row for each of ours: the default, which
steps each image alone; the same with steps that the batch shares; scipy's formulas, step control and tolerance (Dopri5
at 1e-5), shared; Tsit5 at 1e-5, each image alone. Goals: time <= 0.75 of scipy's, of the same formulas <= 0.5.

Each one's error is its root mean square distance in bits/dim from Bosh3's in 600 steps even in sqrt(t), which are
shorter than any wave of a network's time features. `waiting` is the share of the device's work that is done for images
which have arrived. Where the network is large, the ratio of times is that of calls; below that it shows what the
crossings cost. Trained weights, which are rougher in time than random ones, are those of --workdir:

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

from benchmarks.measure import Options, Row, Timing, interleave, main, params_of, row, significant
from sampling.base import example_keys
from sampling.flow import Solver
from sampling.likelihood import log_likelihood, probes
from score_flow.build import experiment
from score_flow.config.options import Config, EvalOptions
from score_flow.experiment import Experiment
from score_flow.numerics import value_and_divergence
from score_flow.types import Images, Params

TOLERANCE = 1e-5
# name -> (solver, goal of its time over scipy's)
SOLVERS = {
    "likelihood": (Solver(), 0.75),
    "likelihood_shared_steps": (Solver(per_example=False), 0.75),
    "likelihood_same_solver": (Solver("dopri5", TOLERANCE, TOLERANCE, per_example=False, control="integral"), 0.5),
    "likelihood_tsit5": (Solver("tsit5", TOLERANCE, TOLERANCE), None),
}
FINE = Solver("bosh3", n_steps=600, grid="quadratic", per_example=False)

Log = Float[np.ndarray, "b"]


class Answer(NamedTuple):
    """log p in nats, batched network calls, and those of an image's own steps."""

    log_prob: Log
    calls: int
    own: float


Field = Callable[[Images, np.float32], tuple[Images, Log]]  # (x, t) -> the velocity and its divergence along the probe


class Problem(NamedTuple):
    """log p of some images: ours by any solver; its right-hand side, log p of a latent, images, probe, both ends."""

    ours: Callable[[Solver], Answer]
    field: Field
    prior: Callable[[Images], Log]
    x0: Images
    probe: Images
    times: tuple[float, float]


def measure(config: Config, options: Options) -> Iterable[Row]:
    """A row a solver: ms for the likelihood of a batch, and its time over scipy's."""
    run = experiment(config)
    with jax.default_matmul_precision("highest"):  # as evaluation.jobs.likelihood
        given = problem(run, params_of(run, config, options), config.eval, options.batch)
        truth = given.ours(FINE).log_prob
        other = functools.partial(by_scipy, given.field, given)
        for name, (solver, goal) in SOLVERS.items():
            timing = interleave(functools.partial(given.ours, solver), other, options.seconds)
            weights = "trained" if options.workdir else "random"
            yield compared(name, timing, truth, run, goal=goal, solver=solver.described(), weights=weights)


def compared(name: str, timing: Timing, truth: Log, run: Experiment, *, goal: float | None, **about: str) -> Row:
    """The row of one solver."""
    ours, scipy = timing.answers
    errors = [np.sqrt(np.mean((answer.log_prob - truth) ** 2)) for answer in timing.answers]
    error, error_scipy = significant(np.array(errors) / (math.prod(run.image_shape) * math.log(2)), 2)
    ratios = np.array([ours.calls / scipy.calls, ours.own, 1 - ours.own / ours.calls])
    calls_ratio, own, waiting = significant(ratios, 4)
    return row(
        name, 1e3 * timing.ours, "ms/batch", timing.ratios, "scipy RK45, same right-hand side", goal,
        calls=ours.calls, calls_scipy=scipy.calls, calls_ratio=calls_ratio, calls_of_an_image=own, waiting=waiting,
        error_bits_per_dim=error, error_scipy_bits_per_dim=error_scipy,
        network=type(run.model.network).__name__, batch_size=len(truth), **about,
    )  # fmt: skip


def problem(run: Experiment, params: Params, options: EvalOptions, size: int) -> Problem:
    """The first images of the test split."""
    t_min, t_max, size = options.smallest_time, options.largest_time, min(size, len(run.test_source))
    batch = jax.tree.map(jnp.asarray, run.test_source.read(np.arange(size)))
    u = np.random.default_rng(run.seed).random(batch["image"].shape, np.float32)
    x0 = run.scaling.dequantise(batch["image"], jnp.asarray(u))
    given = params, run.condition(batch), example_keys(run.seed, jnp.arange(size))
    probe = probes(given[2], "rademacher", 1, shape=x0.shape[1:])

    @functools.partial(jax.jit, static_argnums=0)
    def on_device(solver, params, condition, keys, x0):
        return log_likelihood(keys, run.model.bind(params, condition), x0, solver=solver, t_min=t_min, t_max=t_max)

    @jax.jit
    def field(params, condition, e, x, t):
        denoiser = run.model.bind(params, condition)
        return value_and_divergence(lambda x: denoiser.velocity(x, t), x, e)

    def ours(solver: Solver) -> Answer:
        result = on_device(solver, *given, x0)
        return Answer(np.asarray(result.log_prob), int(result.n_evaluations), float(np.mean(result.calls)))

    prior = jax.jit(lambda z: run.model.path.prior_log_prob(z, t_max))
    return Problem(ours, lambda x, t: field(*given[:2], probe, x, t), prior, x0, np.asarray(probe[0]), (t_min, t_max))


def by_scipy(field: Field, given: Problem) -> Answer:
    """score_sde's likelihood: images and log p of the batch as one float64 vector under scipy's error control."""
    x0 = given.x0

    def f(t: float, y: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        value, divergence = field(np.float32(y[: x0.size]).reshape(x0.shape), np.float32(t))
        return np.concatenate([np.ravel(value), divergence], dtype=np.float64)

    y0 = np.concatenate([np.ravel(x0), np.zeros(len(x0))], dtype=np.float64)
    solution = solve_ivp(f, given.times, y0, "RK45", rtol=TOLERANCE, atol=TOLERANCE)
    y = solution.y[:, -1]
    z = np.float32(y[: x0.size]).reshape(x0.shape)
    return Answer(np.asarray(given.prior(z)) + y[x0.size :], solution.nfev, solution.nfev)


if __name__ == "__main__":
    sys.exit(main(measure))
