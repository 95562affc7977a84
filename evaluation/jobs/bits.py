"""Bits per dimension by the probability-flow ODE, under any dequantiser: what the jobs of likelihoods share."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from evaluation import dequantisers
from evaluation.context import Context
from evaluation.fold import Fold, write_arrays
from evaluation.jobs.base import Job, Opened, open_solver
from evaluation.jobs.rounds import Compute, per_image
from sampling.base import Stream, example_keys, split
from sampling.flow import Solver
from sampling.likelihood import bits_per_dim, log_likelihood
from score_flow.config.options import EvalOptions
from score_flow.experiment import Experiment
from score_flow.numerics import mean_and_error
from score_flow.runs.places import Place

READS = (
    "num_repeats", "solver", "smallest_time", "largest_time", "probe", "n_probes", "dequantizer", "decoder_time",
)  # fmt: skip


def job_of(name: str = "", **report: Any) -> Job:
    """Make the job of the dequantiser of a name, without one of eval.dequantizer's, and its part of the report."""
    needs = frozenset({"denoiser", "pixels", "split", *(["levels"] if name else [])})
    return Job(build, needs, READS, functools.partial(open_for, name), **report)


def open_for(name: str, run: Experiment, options: EvalOptions, workdir: Place) -> Opened:
    """Open the dequantiser's name and the solver; raises UserError without either."""
    name = name or options.dequantizer
    dequantisers.refuse_missing(run, options, name, workdir=workdir)
    return Opened((name, open_solver(run, options, dequantisers.start_time(options, name))))


def bits_of(run: Experiment, options: EvalOptions, name: str, solver: Solver) -> Compute:
    """Make (parameters, batch, seeds, dequantiser of the name) -> bits/dim, latent's power and calls of each image."""
    d, t_min, t_max = math.prod(run.image_shape), dequantisers.start_time(options, name), options.largest_time

    def bits(params, batch, seeds, dequantise):
        noise_keys, probe_keys = split(example_keys(run.seed, seeds, Stream.LIKELIHOOD))
        with jax.default_matmul_precision("highest"):  # likelihoods are float32 whatever the backend prefers
            x, offset = dequantise(noise_keys, batch["image"])
            result = log_likelihood(
                probe_keys, run.model.bind(params, run.condition(batch)), x, solver=solver, t_min=t_min, t_max=t_max,
                probe=options.probe, n_probes=options.n_probes,
            )  # fmt: skip
        power = jnp.mean(result.z.reshape(len(seeds), -1) ** 2, axis=1) / run.model.path.sigma(jnp.asarray(t_max)) ** 2
        bits = bits_per_dim(result.log_prob, d, offset)
        return {"bits": bits, "latent_power": power, "calls": result.calls}, result.ok

    return bits


def of_all_samples(bits: Float[np.ndarray, "repeats n"], d: int) -> dict[str, float]:
    """Return the bound of K = num_repeats samples an image, -log2 mean_k 2^(-d bits_k) / d, with its standard error.

    It is nearer to -log2 P(v), and no less than it (Burda et al. 2016, arXiv:1509.00519) where every log p is exact: a
    probe's error would be taken for likelihood.
    """
    nats = -np.asarray(bits, np.float64) * d * math.log(2)
    nearer = (math.log(len(nats)) - np.logaddexp.reduce(nats, axis=0)) / (d * math.log(2))
    mean, error = mean_and_error(nearer)
    return {"bits_per_dim_of_all_samples": mean, "standard_error_of_all_samples": error}


def build(context: Context, opened: tuple[str, Solver]) -> Fold:
    """Compute bits/dim over the split, num_repeats times: mean, standard error over images, calls; bits.npz has all.

    Of real numbers the density, in nats a dimension.
    """
    (name, solver), options, run = opened, context.options, context.run
    chosen = dequantisers.choose(run, options, name, workdir=context.workdir, begun=context.begun)
    several = options.num_repeats > 1 and options.probe == "exact" and not run.real

    def finish(state):
        numbers = {"index": context.images} if context.options.num_images else {}
        write_arrays(context.directory / "bits.npz", bits=state["bits"], **numbers)
        unit, name_of = (math.log(2), "nats_per_dim") if run.real else (1.0, "bits_per_dim")
        mean, error = mean_and_error(unit * state["bits"].mean(axis=0))  # repeats of an image are not independent
        return {
            name_of: mean,
            "standard_error": error,
            **(of_all_samples(state["bits"], math.prod(run.image_shape)) if several else {}),
            **context.about(options.num_repeats),
            "probe": options.probe,
            "n_probes": options.n_probes,
            **chosen.said,
            "network_calls_per_image": float(state["calls"].mean()),
            "solver": solver.described() + (", of an error that nothing controls" if solver.fixed else ""),
            "smallest_time": dequantisers.start_time(options, name),
            "latent_mean_square": float(state["latent_power"].mean()),
        }

    return per_image(
        context.depending_on(chosen.of), bits_of(run, options, name, solver), finish, repeats=options.num_repeats,
        arguments=(chosen.dequantise,), advice=": raise eval.solver.max_steps or the tolerances",
    )  # fmt: skip
