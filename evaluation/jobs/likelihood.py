"""Likelihood by the probability-flow ODE: bits per dimension of every image of a split."""

import math
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from evaluation.context import Context
from evaluation.dequantisers import build_dequantizer, dequantising, described, refuse_missing, start_time
from evaluation.fold import Fold, write_arrays
from evaluation.jobs.base import Job, Opened
from evaluation.jobs.rounds import per_image
from evaluation.report import page
from sampling.base import example_keys, split
from sampling.ode import Solver, solve_flow
from score_flow.config.options import EvalOptions
from score_flow.experiment import Experiment
from score_flow.model import Denoiser
from score_flow.numerics import mean_and_error, value_and_divergence
from score_flow.types import Images, Keys

Probe = Literal["rademacher", "gaussian", "exact"]
Floats = Float[Array, "b"] | Float[np.ndarray, "b"]
STREAM = 1  # of example keys
N_EXTREMES = 16


class LogLikelihood(NamedTuple):
    """log p(x0) in nats, the latent it was mapped to, batched network calls (divergence included), and success."""

    log_prob: Float[Array, "b"]
    z: Images
    n_evaluations: Int[Array, ""]
    ok: Bool[Array, "b"]
    calls: Int[Array, "b"]  # of each image's own steps


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
    log_prob = denoiser.path.prior_log_prob(z, t_max) + d * integral
    return LogLikelihood(log_prob, z, stats.n_evaluations, stats.ok, stats.calls)


def bits_per_dim(log_prob: Floats, d: int, bits_offset: float | Floats) -> Floats:
    """-log2 p of the pixel levels, a dimension; bits_offset is the data scaling's, or a dequantiser's bits."""
    return -log_prob / (d * math.log(2)) + bits_offset


READS = (
    "num_repeats", "solver", "smallest_time", "largest_time", "probe", "n_probes", "dequantizer",
    "decoder_time",
)  # fmt: skip


def open_solver(run: Experiment, options: EvalOptions, t_min: float) -> Solver:
    """eval.solver; raises UserError where it cannot integrate from t_min to eval.largest_time."""
    solver = Solver(**options.solver.to_dict())
    solver.refuse(run.model.path, t_min, options.largest_time)
    return solver


def open_for(name: str, run: Experiment, options: EvalOptions, workdir: Path) -> Opened:
    """The dequantiser's name and the solver; raises UserError without either."""
    refuse_missing(run, options, workdir, name)
    return Opened((name, open_solver(run, options, start_time(options, name))))


def open_own(run: Experiment, options: EvalOptions, workdir: Path) -> Opened:
    """As eval.dequantizer says."""
    return open_for(options.dequantizer, run, options, workdir)


def build(context: Context, opened: tuple[str, Solver]) -> Fold:
    """bits/dim over the split, num_repeats times: mean, standard error over images, calls, per-image values kept."""
    (dequantizer, solver), options, run = opened, context.options, context.run
    d, t_min, t_max = math.prod(run.image_shape), start_time(options, dequantizer), options.largest_time

    def bits(params, batch, seeds, dequantise):
        noise_keys, probe_keys = split(example_keys(run.seed, seeds, STREAM))
        with jax.default_matmul_precision("highest"):  # likelihoods are float32 whatever the backend prefers
            x, offset = dequantise(noise_keys, batch["image"])
            denoiser, probe = context.denoiser(params, batch), (options.probe, options.n_probes)
            result = log_likelihood(probe_keys, denoiser, x, solver, t_min, t_max, *probe)
        power = jnp.mean(result.z.reshape(len(seeds), -1) ** 2, axis=1) / run.model.path.sigma(jnp.asarray(t_max)) ** 2
        bits = bits_per_dim(result.log_prob, d, offset)
        return {"bits": bits, "latent_power": power, "calls": result.calls}, result.ok

    def finish(state):
        write_arrays(context.directory / "bits.npz", bits=state["bits"])
        mean, error = mean_and_error(state["bits"].mean(axis=0))  # repeats of an image are not independent
        return {
            "bits_per_dim": mean,
            "standard_error": error,
            **context.about(options.num_repeats),
            "probe": options.probe,
            "n_probes": options.n_probes,
            **described(context, dequantizer),
            "network_calls_per_image": float(state["calls"].mean()),
            "solver": solver.described(),
            "smallest_time": t_min,
            "latent_mean_square": float(state["latent_power"].mean()),
        }

    context = dequantising(context, dequantizer)
    dequantise, advice = build_dequantizer(context, dequantizer), ": raise eval.solver.max_steps or the tolerances"
    repeats = options.num_repeats
    return per_image(context, bits, finish, repeats=repeats, arguments=(dequantise,), advice=advice)


def section(record: page.Record) -> str:
    """How bits per dimension are distributed; which images are the most and the least likely."""
    from evaluation.report import figures  # matplotlib: mistakes are answered without waiting for it

    bits = record.arrays("likelihood", "bits.npz").get("bits", np.empty((0, 0)))
    if not bits.size or not np.isfinite(bits).all():
        return ""
    bits = bits.mean(axis=0)
    caption = f"Bits per dimension of {len(bits):,} images"
    plot = page.picture(figures.histogram(bits, "bits / dim"), "Histogram of bits per dimension over images", caption)
    split = record.results["likelihood"].get("split")
    # Bits of another split say nothing about the images that we have.
    sheets = extremes(record, bits) if split == (record.split or split) else ""
    return page.section("Likelihood", page.pair(plot, sheets))


def extremes(record: page.Record, bits: Float[np.ndarray, "n"]) -> str:
    """The most and the least likely of the first images of the split."""
    n = min(len(bits), len(record.real))
    order, k = np.argsort(bits[:n]), min(N_EXTREMES, n // 2)
    sheets = []
    for which, chosen in (("most", order[:k]), ("least", order[::-1][:k])):
        if k:
            low, high = sorted((bits[chosen[0]], bits[chosen[-1]]))
            caption = f"The {k} {which} likely of {n:,} test images: {low:.2f} to {high:.2f} bits / dim"
            alt = f"The {which} likely images"
            sheets.append(page.sheet(record.real[chosen], record.levels, alt, caption, columns=8))
    return "".join(sheets)


def cards(record: page.Record) -> list[str]:
    """The mean."""
    bits = record.results["likelihood"]
    if "bits_per_dim" not in bits:
        return []
    return [page.card("bits / dim", f"{bits['bits_per_dim']:.3f}", page.error_of(bits), page.images_of(bits))]


NEEDS = frozenset({"denoiser", "pixels", "split"})
job = Job(build, NEEDS, READS, open_own, section, cards, place=70)
