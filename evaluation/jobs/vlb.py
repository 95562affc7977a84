"""The variational bound of a chain on every image of a split, term by term (improved-diffusion's calc_bpd_loop)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from evaluation.context import Context
from evaluation.fold import Fold, write_arrays
from evaluation.jobs.base import Job, Opened
from evaluation.jobs.chains import NEEDS, READS, chain
from evaluation.jobs.rounds import per_image
from sampling.base import Stream, example_keys, normal
from sampling.guided import Thresholded
from score_flow.model import Denoiser
from score_flow.numerics import mean_and_error, mean_flat
from score_flow.process.bound import VariationalBound
from score_flow.types import Images, Keys


class Terms(NamedTuple):
    """Of each step of a chain, in ascending time, and each example: bits per dimension, mean squares of two errors."""

    bits: Float[Array, "n b"]
    x0_error: Float[Array, "n b"]
    noise_error: Float[Array, "n b"]


def bound_terms(keys: Keys, denoiser: Denoiser, bound: VariationalBound, x0: Images) -> Terms:
    """Compute L_i of every step i at one draw of x_{t_i}, and how far its estimates of x0 and of the noise are off.

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


def build(context: Context, bound: VariationalBound) -> Fold:
    """Compute bits/dim of the levels, with the share of the prior and of the first step; all terms in vlb.npz."""
    run, options, n = context.run, context.options, len(context.images)

    def terms(params, batch, indices):
        denoiser, x0 = context.denoiser(params, batch), run.scaling.normalise(batch["image"])
        if options.vlb_clip:
            denoiser = Thresholded(denoiser, run.scaling.low, run.scaling.high)
        with jax.default_matmul_precision("highest"):  # likelihoods are float32 whatever the backend prefers
            prior, rows = bound.prior(x0), bound_terms(example_keys(run.seed, indices, Stream.VLB), denoiser, bound, x0)
        return {"prior": prior} | {name: row.T for name, row in rows._asdict().items()}, None

    def summarise(arrays):
        """Of each image its total; of each step, of which there may be thousands, the mean over images."""
        prior, *rows = (arrays[name].astype(np.float64) for name in ("prior", *Terms._fields))
        names = ("terms", *Terms._fields[1:])
        of_steps = {name: row.sum(axis=0) / n for name, row in zip(names, rows, strict=True)}
        return {"bits": prior + rows[0].sum(axis=1), "prior": prior}, of_steps

    def finish(state):
        state |= {name: state[name][0] for name in ("bits", "prior")}
        write_arrays(context.directory / "vlb.npz", t=np.asarray(bound.times), **state)
        mean, error = mean_and_error(state["bits"])
        return {
            "bits_per_dim": mean,
            "standard_error": error,
            "prior_bits": float(state["prior"].mean()),
            "first_step_bits": float(state["terms"][0]),
            "x0_error": float(state["x0_error"].mean()),
            "noise_error": float(state["noise_error"].mean()),
            **context.about(),
            "n_steps": len(bound.times),
            "variance": bound.variance,
            "decoder": bound.decoder,
            "clipped": options.vlb_clip,
        }

    return per_image(context, terms, finish, summarise=summarise)


job = Job(build, NEEDS, READS, lambda run, options, workdir: Opened(chain(run, options)))
