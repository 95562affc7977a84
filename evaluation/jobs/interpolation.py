"""Interpolation: what lies between the latents of two images, and whether decoding undoes encoding."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from evaluation.context import Context
from evaluation.fold import Fold, write_arrays
from evaluation.jobs.base import Job
from evaluation.jobs.latents import MOMENTS, NEEDS, READS, moments, open_solver_alone, summary
from evaluation.report import page
from evaluation.report.pictures import save_grid
from sampling.encoding import decode, encode, slerp
from sampling.ode import Solver
from score_flow.data.levels import middles, to_model
from score_flow.data.pipeline import gather
from score_flow.runs.processes import is_main
from score_flow.runs.sharding import batch_sharding, multiple, to_host
from score_flow.types import NonFinite

N_PAIRS, N_BETWEEN = 8, 8


def build(context: Context, solver: Solver) -> Fold:
    """One round: the first images of the split in eight pairs, and eight between each.

    The model's flow by config.eval.solver, without guidance; a model with a condition encodes each image under its own
    and decodes what lies between under the first's. The result compares the latents z with N(0, 1) too, in units of
    the prior's standard deviation.
    """
    run, options, source = context.run, context.options, context.source
    t_min, t_max, n = options.smallest_time, options.largest_time, multiple(context.run.mesh, N_PAIRS)
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
        square = jnp.mean(off.reshape(n, -1) ** 2, axis=1)
        images, latents = run.pixels(x[1:]), z / run.model.path.sigma(jnp.asarray(t_max))
        return images, latents, square, encoded_ok.all(axis=0) & decoded_ok.all(axis=0)

    def step(state):
        indices = np.arange(2 * n).reshape(n, 2).T % len(source)
        batches = gather(source, indices, batch_sharding(run.mesh, 1))
        between, z, square, ok = to_host(jax.jit(interpolate)(context.params, batches))
        levels = to_host(batches)["image"]
        # Of more devices than pairs some have nothing to do.
        between, z, levels, indices = (array[:, :N_PAIRS] for array in (between, z, levels, indices))
        if not ok[:N_PAIRS].all():
            bad = indices[:, ~ok[:N_PAIRS]].T.tolist()
            raise NonFinite(
                f"interpolation: pairs {bad} of images did not arrive: loosen config.eval.solver's tolerances."
            )
        rows = np.concatenate([levels[:1], between, levels[1:]]).swapaxes(0, 1)  # one a pair
        write_arrays(context.directory / "interpolation.npz", image=rows, latents=z, index=indices.T)
        if is_main():
            cells = rows.reshape(-1, *run.image_shape)
            save_grid(context.directory / "interpolation.png", cells, run.scaling.levels, rows.shape[1])
        return {"done": np.ones(1), "square": square[:N_PAIRS].astype(np.float64), **moments(z)}

    def init():
        of_images = {name: np.zeros((2, N_PAIRS)) for name in MOMENTS}
        return {"done": np.zeros(1), "square": np.zeros(N_PAIRS), **of_images}

    def finish(state):
        latents = summary(state, run.image_shape)
        rms = float(np.sqrt(state["square"].mean())) * run.scaling.levels
        of = {"split": source.name, "solver": solver.described()}
        return {"n_pairs": N_PAIRS, "round_trip_rms_levels": rms, **latents, **of}

    return Fold(context.key, lambda state: int(not state["done"]), init, step, finish)


def section(record: page.Record) -> str:
    """What lies between the latents of pairs of images."""
    rows = record.arrays("interpolation", "interpolation.npz").get("image", record.real[:0, None])[:N_PAIRS]
    if not len(rows):
        return ""
    n, columns = rows.shape[:2]
    error = record.results["interpolation"].get("round_trip_rms_levels", math.nan)
    caption = f"{n} pairs, one a row: two images of the data, and between them the decoded latents between theirs"
    sheet = page.sheet(rows.reshape(-1, *rows.shape[2:]), record.levels, caption, caption, columns=columns)
    note = f"Decoded again, the images are {error:.2g} levels off (rms)." if math.isfinite(error) else ""
    return page.section("Interpolation", sheet, note=note)


job = Job(build, NEEDS, READS, open_solver_alone, section, place=30)
