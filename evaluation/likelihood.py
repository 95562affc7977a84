"""Likelihood by the probability-flow ODE: bits per dimension of every image of a split."""

import math
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from evaluation.context import Context
from evaluation.dequantizers import build_dequantizer, described, refuse_missing, start_time
from evaluation.fold import Fold, write_arrays
from sampling.base import example_keys, split
from sampling.ode import Solver, solve_flow
from score_flow.build import Experiment
from score_flow.model import Denoiser
from score_flow.numerics import value_and_divergence
from score_flow.options import EvalOptions
from score_flow.record import mean_and_error
from score_flow.sharding import to_host
from score_flow.types import Images, Keys, NonFinite

Probe = Literal["rademacher", "gaussian", "exact"]
Floats = Float[Array, "b"] | Float[np.ndarray, "b"]
STREAM = 1  # of example keys


class LogLikelihood(NamedTuple):
    """log p(x0) in nats, the latent it was mapped to, batched network calls (divergence included), and success."""

    log_prob: Float[Array, "b"]
    z: Images
    n_evaluations: Int[Array, ""]
    ok: Bool[Array, "b"]


def probes(keys: Keys, kind: Probe, n: int, shape: tuple[int, ...]) -> Float[Array, "p b *d"]:
    """Probe vectors with E[e e^T] = I: n random ones, or all d basis vectors scaled by sqrt(d), whose mean is exact."""
    if kind == "exact":
        d = math.prod(shape)
        basis = math.sqrt(d) * jnp.eye(d).reshape(d, 1, *shape)
        return jnp.broadcast_to(basis, (d, keys.shape[0], *shape))
    draw = jax.random.rademacher if kind == "rademacher" else jax.random.normal
    return jax.vmap(lambda i: jax.vmap(lambda key: draw(jax.random.fold_in(key, i), shape, jnp.float32))(keys))(
        jnp.arange(n)
    )


def log_likelihood(
    keys: Keys,
    denoiser: Denoiser,
    x0: Images,
    solver: Solver,
    t_min: float = 1e-5,
    t_max: float = 1.0,
    probe: Probe = "rademacher",
    n_probes: int = 1,
) -> LogLikelihood:
    """log p(x0) = log N(z; 0, sigma(t_max)^2 I) + int div velocity dt, z = x(t_max) (arXiv:2011.13456, eq. 39).

    x0 is taken as the state at t_min. Probes are drawn once and kept for the whole solve, so that the right-hand side
    is a function of (t, x) and the solver's error control means what it says.
    """
    e = jnp.moveaxis(probes(keys, probe, n_probes, x0.shape[1:]), 0, 1)  # (b, p, *d): solvers may slice the batch
    e = e.astype(x0.dtype)

    def field(t, y, args):
        e, condition = args
        velocity = lambda x: denoiser.given(condition).velocity(x, t)  # noqa: E731
        value, divergence = value_and_divergence(velocity, y[0], jnp.moveaxis(e, 1, 0))
        return value, divergence / d

    d = math.prod(x0.shape[1:])
    y0 = (x0, jnp.zeros(x0.shape[0], x0.dtype))  # log p per dimension: its tolerance is then one of bits/dim
    (z, integral), stats = solve_flow(field, denoiser.path, y0, t_min, t_max, solver, (e, denoiser.condition))
    return LogLikelihood(denoiser.path.prior_log_prob(z, t_max) + d * integral, z, stats.n_evaluations, stats.ok)


def bits_per_dim(log_prob: Floats, d: int, bits_offset: float | Floats) -> Floats:
    """-log2 p of the pixel levels, a dimension; bits_offset is the data scaling's, or a dequantiser's bits."""
    return -log_prob / (d * math.log(2)) + bits_offset


def check(run: Experiment, options: EvalOptions, workdir: Path) -> None:
    """Raise UserError without the dequantiser."""
    refuse_missing(run, options, workdir, options.dequantizer)


def build(context: Context) -> Fold:
    """bits/dim over the split with the dequantiser eval.dequantizer."""
    return likelihood(context, context.options.dequantizer)


def likelihood(context: Context, dequantizer: str) -> Fold:
    """bits/dim over the split, num_repeats times: mean, standard error over images, calls, per-image values kept."""
    options, run, source = context.options, context.run, context.source
    solver, dequantise = Solver(**options.solver.to_dict()), build_dequantizer(context, dequantizer)
    n, d, repeats = len(source), math.prod(run.image_shape), options.num_repeats
    t_min = start_time(options, dequantizer)
    per_repeat = context.rounds_of(n)

    def bits(params, batch, seeds, dequantise) -> tuple[Array, ...]:  # bits/dim, |z|^2/d of the prior, calls, ok
        noise_keys, probe_keys = split(example_keys(run.seed, seeds, STREAM))
        with jax.default_matmul_precision("highest"):  # likelihoods are float32 whatever the backend prefers
            x, offset = dequantise(noise_keys, batch["image"])
            result = log_likelihood(
                probe_keys,
                context.denoiser(params, batch),
                x,
                solver,
                t_min,
                options.largest_time,
                options.probe,
                options.n_probes,
            )
        power = (
            jnp.mean(result.z.reshape(len(seeds), -1) ** 2, axis=1)
            / run.model.path.sigma(jnp.asarray(options.largest_time)) ** 2
        )
        return bits_per_dim(result.log_prob, d, offset), power, result.n_evaluations, result.ok

    compiled = context.compile(bits)

    def init():
        return {
            "bits": np.zeros((repeats, n)),
            "latent_power": np.zeros((repeats, n)),
            "calls": np.zeros(repeats * per_repeat, np.int64),
        }

    def step(state, round_number):
        repeat, batch, indices, mask, seeds = context.repeated(round_number)
        values, power, calls, ok = to_host(compiled(batch, seeds, dequantise))
        if not ok[mask].all():
            bad = indices[mask & ~ok]
            raise NonFinite(
                f"the likelihood solver failed on images {bad[:8].tolist()}: "
                "raise eval.solver.max_steps or the tolerances."
            )
        state = {name: value.copy() for name, value in state.items()}
        state["bits"][repeat, indices[mask]], state["latent_power"][repeat, indices[mask]] = values[mask], power[mask]
        state["calls"][round_number] = calls
        return state

    def finish(state):
        write_arrays(context.directory / "bits.npz", bits=state["bits"])
        mean, error = mean_and_error(state["bits"].mean(axis=0))  # repeats of an image are not independent
        return {
            "bits_per_dim": mean,
            "standard_error": error,
            "n_images": n,
            "repeats": repeats,
            "split": source.name,
            "probe": options.probe,
            "n_probes": options.n_probes,
            **described(context, dequantizer),
            "network_calls_per_batch": float(state["calls"].mean()),
            "solver": f"{solver.method} rtol {solver.rtol:g} atol {solver.atol:g}",
            "smallest_time": t_min,
            "latent_mean_square": float(state["latent_power"].mean()),
        }

    return Fold(repeats * per_repeat, init, step, finish)
