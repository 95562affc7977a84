"""The variational bound of a chain on every image of a split, term by term (improved-diffusion's calc_bpd_loop)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from evaluation.context import Context
from evaluation.fold import Fold, write_arrays
from sampling.base import example_keys, normal
from sampling.guidance import Thresholded
from score_flow.model import Denoiser
from score_flow.numerics import mean_flat
from score_flow.record import mean_and_error
from score_flow.sharding import place, to_host
from score_flow.types import Images, Keys, NonFinite, UserError
from score_flow.variational import VariationalBound

STREAM = 5  # of example keys


class Terms(NamedTuple):
    """Of each step of a chain, in ascending time, and each example: bits per dimension, mean squares of two errors."""

    bits: Float[Array, "n b"]
    x0_error: Float[Array, "n b"]
    noise_error: Float[Array, "n b"]


def bound_terms(keys: Keys, denoiser: Denoiser, bound: VariationalBound, x0: Images) -> Terms:
    """L_i of every step i at one draw of x_{t_i}, and how far its estimates of x0 and of the noise are off.

    The sum of the bits over the steps, and bound.prior(x0), bound -log2 p(x0) per dimension (arXiv:2006.11239, eq. 5).
    """
    times = jnp.asarray(bound.times, x0.dtype)

    def at(step):
        t, noise = jnp.broadcast_to(times[step], x0.shape[:1]), normal(keys, x0.shape[1:], step)
        x = denoiser.path.perturb(x0, noise, t)
        estimate = denoiser.estimate(x, t)
        bits = bound.term(x0, x, estimate, jnp.broadcast_to(step, x0.shape[:1]))
        return Terms(bits, mean_flat((estimate.x0 - x0) ** 2), mean_flat((estimate.noise - noise) ** 2))

    return jax.lax.map(at, jnp.arange(len(bound.times)))


def chain(context: Context) -> VariationalBound:
    """The bound on eval.vlb_steps even times, or on those that training drew from; its variance is what was trained."""
    run, options = context.run, context.options
    times, n, trained = run.loss.times.times, options.vlb_steps, getattr(run.loss, "variational", None)
    if n:
        times = tuple((options.largest_time * np.arange(1, n + 1) / n).tolist())
    elif not times:
        raise UserError(
            "eval.vlb_steps = 0 asks for the chain that training drew its times from, but this model was trained on "
            "an interval: give --config.eval.vlb_steps=1000."
        )
    if trained:
        return dataclasses.replace(trained, times=times)
    scaling = run.scaling
    return VariationalBound(
        run.model.path, times, options.vlb_variance, "exact", scaling.low, scaling.high, scaling.levels
    )


def build(context: Context) -> Fold:
    """bits/dim of the levels, with the share of the prior and of the first step; all terms in vlb.npz."""
    run, options, source, bound = context.run, context.options, context.source, chain(context)
    n, n_steps, low, high = len(source), len(bound.times), run.scaling.low, run.scaling.high

    def terms(params, batch, indices):
        denoiser, x0 = context.denoiser(params, batch), run.scaling.normalise(batch["image"])
        if options.vlb_clip:
            denoiser = Thresholded(denoiser, low, high)
        with jax.default_matmul_precision("highest"):  # likelihoods are float32 whatever the backend prefers
            return bound.prior(x0), bound_terms(example_keys(run.seed, indices, STREAM), denoiser, bound, x0)

    compiled = context.compile(terms)

    def init():
        by_image, by_step = {"bits": np.zeros(n), "prior": np.zeros(n)}, ("terms", "x0_error", "noise_error")
        return by_image | {name: np.zeros(n_steps) for name in by_step}

    def step(state, round_number):
        batch, indices, mask = context.examples(round_number)
        prior, rows = to_host(compiled(batch, place(run.mesh, indices.astype(np.uint32))))
        prior, rows = prior[mask].astype(np.float64), Terms(*(row[:, mask].astype(np.float64) for row in rows))
        bits = prior + rows.bits.sum(axis=0)
        if not np.isfinite(bits).all():
            raise NonFinite(f"the bound of images {indices[mask][~np.isfinite(bits)][:8].tolist()} is not finite.")
        state = {name: value.copy() for name, value in state.items()}
        state["bits"][indices[mask]], state["prior"][indices[mask]] = bits, prior
        for name, row in zip(("terms", "x0_error", "noise_error"), rows, strict=True):
            state[name] += row.sum(axis=1) / n
        return state

    def finish(state):
        write_arrays(context.directory / "vlb.npz", t=np.asarray(bound.times), **state)
        mean, error = mean_and_error(state["bits"])
        return {
            "bits_per_dim": mean,
            "standard_error": error,
            "prior_bits": float(state["prior"].mean()),
            "first_step_bits": float(state["terms"][0]),
            "x0_error": float(state["x0_error"].mean()),
            "noise_error": float(state["noise_error"].mean()),
            "n_images": n,
            "n_steps": n_steps,
            "split": source.name,
            "variance": bound.variance,
            "decoder": bound.decoder,
            "clipped": options.vlb_clip,
        }

    return Fold(context.rounds_of(n), init, step, finish)
