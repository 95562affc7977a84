"""Latents of a whole split by the probability flow: are they Gaussian, and does decoding undo encoding?"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from evaluation.context import Context
from evaluation.fold import Fold, write_arrays
from evaluation.jobs.base import FLOW_READS, Job, open_flow
from evaluation.jobs.rounds import Compute, per_image
from evaluation.metrics import normality
from sampling.base import Stream, example_keys
from sampling.encoding import decode, encode
from sampling.flow import Solver


def there_and_back(context: Context, solver: Solver) -> Compute:
    """Compute latents, rms and largest error of the round trip, calls, and which images arrived.

    Latents are in units of the prior's standard deviation, errors in pixel levels.
    """
    run, options = context.run, context.options
    t_min, t_max = options.smallest_time, options.largest_time

    def figures(params, batch, indices):
        keys, levels = example_keys(run.seed, indices, Stream.ENCODING), batch["image"]
        x0 = run.to_model(levels, keys)
        denoiser = context.denoiser(params, batch)
        with jax.default_matmul_precision("highest"):  # as likelihoods are computed
            z, there = encode(denoiser, x0, solver, t_min=t_min, t_max=t_max)
            x, back = decode(denoiser, z, solver, t_min=t_min, t_max=t_max)
        off = jnp.abs(run.scaling.to_unit(x) - run.scaling.to_unit(x0)).reshape(len(x), -1) * run.scaling.levels
        rms, largest = jnp.sqrt(jnp.mean(off**2, axis=1)), jnp.max(off, axis=1)
        z = z / run.model.path.sigma(jnp.asarray(t_max))
        found = {"z": z, "round_trip_rms": rms, "round_trip_max": largest, "calls": there.calls + back.calls}
        return found, there.ok & back.ok

    return figures


def build(context: Context, solver: Solver) -> Fold:
    """Encode and decode every image of the split by eval.solver, without guidance; latents.npz has each figure."""
    by_image = (*normality.MOMENTS, "round_trip_rms", "round_trip_max")

    def summarise(arrays):
        z = arrays.pop("z")
        return arrays | normality.moments(z), {"below": normality.cumulative(z)}

    def finish(state):
        write_arrays(context.directory / "latents.npz", **{name: state[name][0] for name in by_image})
        shape, about = context.run.image_shape, context.about()
        return {
            **normality.summary({name: state[name] for name in normality.MOMENTS}, shape),
            **normality.distance(state["below"], about["n_images"] * math.prod(shape)),
            "round_trip_rms_levels": float(np.sqrt(np.mean(state["round_trip_rms"] ** 2))),
            "round_trip_max_levels": float(state["round_trip_max"].max()),
            **about,
            "network_calls_per_image": float(state["calls"].mean()),
            "solver": solver.described(),
        }

    advice = ": loosen eval.solver's tolerances"
    return per_image(context, there_and_back(context, solver), finish, summarise=summarise, advice=advice)


job = Job(build, frozenset({"denoiser", "pixels", "levels", "split"}), FLOW_READS, open_flow)
