"""Interpolation: what lies between the latents of two images, and whether decoding undoes encoding."""

import jax
import jax.numpy as jnp
import numpy as np

from evaluation.context import Context
from evaluation.fold import Fold, write_arrays
from evaluation.latents import MOMENTS, moments, summary
from evaluation.pictures import save_grid
from sampling.latents import decode, encode, slerp
from sampling.ode import Solver
from score_flow.data.pipeline import gather
from score_flow.pixels import middles, to_model
from score_flow.sharding import batch_sharding, is_main, multiple, to_host
from score_flow.types import NonFinite

N_PAIRS, N_BETWEEN = 8, 8


def build(context: Context) -> Fold:
    """One round: the first images of the split in pairs, one a device (eight at least), and eight between each.

    The model's flow by config.eval.solver, without guidance; a model with a condition encodes each image under its own
    and decodes what lies between under the first's. The result compares the latents z with N(0, 1) too, in units of
    the prior's standard deviation.
    """
    run, options, source = context.run, context.options, context.source
    solver, t_min, t_max = Solver(**options.solver.to_dict()), options.smallest_time, options.largest_time
    n = multiple(run.mesh, N_PAIRS)
    shares = np.linspace(0, 1, N_BETWEEN + 2)[:-1]  # the first image, decoded again, and what lies between

    def continuous(levels):
        return to_model(run.scaling, run.dequantised, levels, middles)

    def interpolate(params, batches):
        # Leading axes, of the ends and of the shares, are mapped over: the batch axis stays on its devices.
        def encoded(batch):
            z, stats = encode(context.denoiser(params, batch), continuous(batch["image"]), solver, t_min, t_max)
            return z, stats.ok

        def between(share):
            x, stats = decode(denoiser, slerp(z[0], z[1], share), solver, t_min, t_max)
            return x, stats.ok

        first = jax.tree.map(lambda leaf: leaf[0], batches)
        denoiser = context.denoiser(params, first)
        with jax.default_matmul_precision("highest"):  # as likelihoods are computed
            z, encoded_ok = jax.lax.map(encoded, batches)
            x, decoded_ok = jax.lax.map(between, jnp.asarray(shares, z.dtype))
        off = run.scaling.to_unit(x[0]) - run.scaling.to_unit(continuous(first["image"]))
        rms = jnp.sqrt(jnp.mean(off**2)) * run.scaling.levels
        images, latents = run.pixels(x[1:]), z / run.model.path.sigma(jnp.asarray(t_max))
        return images, latents, rms, encoded_ok.all() & decoded_ok.all()

    def step(state, round_number):
        indices = np.arange(2 * n).reshape(n, 2).T % len(source)
        batches = gather(source, indices, batch_sharding(run.mesh, 1))
        between, z, rms, ok = to_host(jax.jit(interpolate)(context.params, batches))
        if not ok:
            raise NonFinite("interpolation: some images did not arrive: loosen config.eval.solver's tolerances.")
        levels = to_host(batches)["image"]
        rows = np.concatenate([levels[:1], between, levels[1:]]).swapaxes(0, 1)  # one a pair
        write_arrays(context.directory / "interpolation.npz", image=rows, latents=z, index=indices.T)
        if is_main():
            cells = rows.reshape(-1, *run.image_shape)
            save_grid(context.directory / "interpolation.png", cells, run.scaling.levels, rows.shape[1])
        return {"rms": np.asarray(rms, np.float64), **moments(z)}

    def init():
        return {"rms": np.zeros(()), **{name: np.zeros((2, n)) for name in MOMENTS}}

    def finish(state):
        latents = summary(state, run.image_shape)
        return {"n_pairs": n, "round_trip_rms_levels": float(state["rms"]), **latents}

    return Fold(1, init, step, finish)
