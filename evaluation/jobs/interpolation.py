"""Interpolation: what lies between the latents of two images, and whether decoding undoes encoding."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from evaluation.context import Context
from evaluation.fold import Fold, write_arrays
from evaluation.jobs.base import FLOW_READS, Job, open_flow
from evaluation.metrics import normality
from evaluation.report import page
from evaluation.report.pictures import save_grid
from sampling.encoding import decode, encode, slerp
from sampling.flow import Solver
from score_flow.data.levels import middles, to_model
from score_flow.data.pipeline import gather
from score_flow.errors import NonFinite
from score_flow.runs.processes import is_main
from score_flow.runs.sharding import batch_sharding, multiple, to_host
from score_flow.types import Batch, Params

N_PAIRS, N_BETWEEN = 8, 8


class Between(NamedTuple):
    """Of n pairs of images: what lies between them, their latents, and how far their decoding is off."""

    images: Array  # (shares, n, ...), as pixel levels
    latents: Array  # (2, n, ...), in units of the prior's standard deviation
    square: Float[Array, "n"]  # of the first image, decoded again, in the range [0, 1]
    ok: Bool[Array, "n"]


def between(context: Context, solver: Solver) -> Callable[[Params, Batch], Between]:
    """Make (parameters, a batch of first images stacked on one of second ones) -> all of each pair.

    Leading axes, of the ends and of the shares, are mapped over: the batch axis stays on its devices.
    """
    run, times = context.run, {"t_min": context.options.smallest_time, "t_max": context.options.largest_time}
    shares = np.linspace(0, 1, N_BETWEEN + 2)[:-1]  # the first image, decoded again, and what lies between

    def continuous(levels):
        return to_model(run.scaling, run.dequantised, levels, middles)

    def interpolate(params, batches):
        def encoded(batch):
            z, stats = encode(context.denoiser(params, batch), continuous(batch["image"]), solver, **times)
            return z, stats.ok

        def decoded(share):
            x, stats = decode(denoiser, slerp(z[0], z[1], share), solver, **times)
            return x, stats.ok

        first = jax.tree.map(lambda leaf: leaf[0], batches)
        denoiser = context.denoiser(params, first)
        with jax.default_matmul_precision("highest"):  # as likelihoods are computed
            z, encoded_ok = jax.lax.map(encoded, batches)
            x, decoded_ok = jax.lax.map(decoded, jnp.asarray(shares, z.dtype))
        off = run.scaling.to_unit(x[0]) - run.scaling.to_unit(continuous(first["image"]))
        square = jnp.mean(off.reshape(len(off), -1) ** 2, axis=1)
        latents = z / run.model.path.sigma(jnp.asarray(times["t_max"]))
        return Between(run.pixels(x[1:]), latents, square, encoded_ok.all(axis=0) & decoded_ok.all(axis=0))

    return interpolate


def build(context: Context, solver: Solver) -> Fold:
    """Take, in one round, the first images of the split in eight pairs, and eight between each.

    The model's flow by config.eval.solver, without guidance; a model with a condition encodes each image under its own
    and decodes what lies between under the first's. The result compares the latents z with N(0, 1) too, in units of
    the prior's standard deviation.
    """
    run, source, n = context.run, context.source, multiple(context.run.mesh, N_PAIRS)
    interpolate = jax.jit(between(context, solver))

    def step(state):
        indices = np.arange(2 * n).reshape(n, 2).T % len(source)
        batches = gather(source, indices, batch_sharding(run.mesh, 1))
        found = to_host(interpolate(context.params, batches))
        # Of more devices than pairs some have nothing to do.
        levels, index = to_host(batches)["image"][:, :N_PAIRS], indices[:, :N_PAIRS].T
        refuse_lost(index, found.ok[:N_PAIRS])
        rows = np.concatenate([levels[:1], found.images[:, :N_PAIRS], levels[1:]]).swapaxes(0, 1)  # one a pair
        z = found.latents[:, :N_PAIRS]
        write_arrays(context.directory / "interpolation.npz", image=rows, latents=z, index=index)
        if is_main():
            cells = rows.reshape(-1, *run.image_shape)
            save_grid(context.directory / "interpolation.png", cells, run.scaling.levels, columns=rows.shape[1])
        return {"done": np.ones(1), "square": found.square[:N_PAIRS].astype(np.float64), **normality.moments(z)}

    def init():
        of_images = {name: np.zeros((2, N_PAIRS)) for name in normality.MOMENTS}
        return {"done": np.zeros(1), "square": np.zeros(N_PAIRS), **of_images}

    def finish(state):
        latents = normality.summary(state, run.image_shape)
        rms = float(np.sqrt(state["square"].mean())) * run.scaling.levels
        of = {"split": source.name, "solver": solver.described()}
        return {"n_pairs": N_PAIRS, "round_trip_rms_levels": rms, **latents, **of}

    return Fold(context.key, lambda state: int(not state["done"]), init, step, finish)


def refuse_lost(index: Int[np.ndarray, "n 2"], ok: Bool[np.ndarray, "n"]) -> None:
    """Raise NonFinite, with the images of the pairs, where a solve did not arrive."""
    if not ok.all():
        bad = index[~ok].tolist()
        raise NonFinite(f"interpolation: pairs {bad} of images did not arrive: loosen config.eval.solver's tolerances.")


def section(record: page.Record) -> str:
    """Show what lies between the latents of pairs of images."""
    rows = record.arrays("interpolation", "interpolation.npz").get("image", record.real[:0, None])[:N_PAIRS]
    if not len(rows):
        return ""
    n, columns = rows.shape[:2]
    error = record.results["interpolation"].get("round_trip_rms_levels", math.nan)
    caption = f"{n} pairs, one a row: two images of the data, and between them the decoded latents between theirs"
    sheet = page.sheet(rows.reshape(-1, *rows.shape[2:]), record.levels, caption, columns=columns)
    note = f"Decoded again, the images are {error:.2g} levels off (rms)." if math.isfinite(error) else ""
    return page.section("Interpolation", sheet, note=note)


job = Job(build, frozenset({"denoiser", "pixels", "levels", "split"}), FLOW_READS, open_flow, section, place=30)
