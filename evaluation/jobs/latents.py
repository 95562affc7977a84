"""Latents of a whole split by the probability flow: are they Gaussian, and does decoding undo encoding?"""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtri

from evaluation.context import Context
from evaluation.fold import Fold, write_arrays
from evaluation.jobs.base import Job, Opened
from evaluation.jobs.likelihood import open_solver
from evaluation.jobs.rounds import Compute, per_image
from sampling.base import example_keys
from sampling.encoding import decode, encode
from sampling.ode import Solver
from score_flow.config.options import EvalOptions
from score_flow.experiment import Experiment
from score_flow.numerics import mean_and_error

STREAM = 8  # of example keys
MOMENTS = ("mean", "mean_square", "fourth", "neighbours")  # of each image
EDGES = ndtri(np.arange(1, 1000) / 1000)  # the thousandths of N(0, 1)
# Kolmogorov's limit law of sqrt(n) max |F_n - F|: its mean, and its standard deviation
KOLMOGOROV = math.sqrt(math.pi / 2) * math.log(2), math.sqrt(math.pi**2 / 12 - math.pi / 2 * math.log(2) ** 2)


def moments(z: Float[np.ndarray, "*n h w c"]) -> dict[str, Float[np.ndarray, "*n"]]:
    """Of each image: the means of z, z^2, z^4 and of products of neighbours, in float64."""
    z, axes = z.astype(np.float64), (-3, -2, -1)
    beside, below = z[..., :-1, :] * z[..., 1:, :], z[..., :-1, :, :] * z[..., 1:, :, :]
    products = (beside.sum(axes) + below.sum(axes)) / neighbours(z.shape[-3:])
    return dict(zip(MOMENTS, (z.mean(axes), (z**2).mean(axes), (z**4).mean(axes), products), strict=True))


def neighbours(shape: tuple[int, ...]) -> int:
    """Pairs of pixels of one channel, side by side or one above the other, in an image of this shape."""
    h, w, c = shape
    return max(1, c * (h * (w - 1) + (h - 1) * w))


def summary(of_images: dict[str, Float[np.ndarray, "*n"]], shape: tuple[int, int, int]) -> dict[str, float]:
    """Over all numbers of all images: mean, mean square, kurtosis and correlation of neighbours, each with two errors.

    Of independent N(0, 1) numbers they are 0, 1, 3 and 0, with the `normal_standard_error`; the `standard_error` is
    what the spread over these images says (of ratios, to first order).
    """
    mean, square, fourth, product = (of_images[name].ravel() for name in MOMENTS)
    s, size, pairs = square.mean(), mean.size * math.prod(shape), mean.size * neighbours(shape)
    kurtosis, correlation = fourth.mean() / s**2, product.mean() / s
    figures = {
        "mean": (mean.mean(), mean, 1 / size),
        "mean_square": (s, square, 2 / size),
        "kurtosis": (kurtosis, fourth / s**2 - 2 * kurtosis / s * square, 24 / size),
        "neighbour_correlation": (correlation, (product - correlation * square) / s, 1 / pairs),
    }
    found = {}
    for name, (value, influence, variance) in figures.items():
        found[f"latent_{name}"] = float(value)
        found[f"latent_{name}_standard_error"] = mean_and_error(influence)[1]
        found[f"latent_{name}_normal_standard_error"] = math.sqrt(variance)
    return found


def cumulative(z: Float[np.ndarray, "..."]) -> Int[np.ndarray, "999"]:
    """How many numbers lie below each thousandth of N(0, 1)."""
    return np.searchsorted(np.sort(z, axis=None), EDGES.astype(z.dtype))


def normality(below: Int[np.ndarray, "999"], n: int) -> dict[str, float]:
    """max |F_n - Phi| over the thousandths, and what n independent N(0, 1) numbers would have (Kolmogorov's law)."""
    share = np.arange(1, 1000) / 1000
    mean, deviation = (x / math.sqrt(n) for x in KOLMOGOROV)
    return {
        "normal_distance": float(np.abs(below / n - share).max()),
        "normal_distance_expected": mean,
        "normal_distance_expected_standard_error": deviation,
    }


def there_and_back(context: Context, solver: Solver) -> Compute:
    """Latents, rms and largest error of the round trip, calls, and which images arrived.

    Latents are in units of the prior's standard deviation, errors in pixel levels.
    """
    run, options = context.run, context.options
    t_min, t_max = options.smallest_time, options.largest_time

    def figures(params, batch, indices):
        keys, levels = example_keys(run.seed, indices, STREAM), batch["image"]
        x0 = run.to_model(levels, keys)
        denoiser = context.denoiser(params, batch)
        with jax.default_matmul_precision("highest"):  # as likelihoods are computed
            z, there = encode(denoiser, x0, solver, t_min, t_max)
            x, back = decode(denoiser, z, solver, t_min, t_max)
        off = jnp.abs(run.scaling.to_unit(x) - run.scaling.to_unit(x0)).reshape(len(x), -1) * run.scaling.levels
        rms, largest = jnp.sqrt(jnp.mean(off**2, axis=1)), jnp.max(off, axis=1)
        z = z / run.model.path.sigma(jnp.asarray(t_max))
        found = {"z": z, "round_trip_rms": rms, "round_trip_max": largest, "calls": there.calls + back.calls}
        return found, there.ok & back.ok

    return figures


def build(context: Context, solver: Solver) -> Fold:
    """Every image of the split encoded and decoded by eval.solver, without guidance; latents.npz has each figure."""
    by_image = (*MOMENTS, "round_trip_rms", "round_trip_max")

    def summarise(arrays):
        z = arrays.pop("z")
        return arrays | moments(z), {"below": cumulative(z)}

    def finish(state):
        write_arrays(context.directory / "latents.npz", **{name: state[name][0] for name in by_image})
        shape, about = context.run.image_shape, context.about()
        return {
            **summary({name: state[name] for name in MOMENTS}, shape),
            **normality(state["below"], about["n_images"] * math.prod(shape)),
            "round_trip_rms_levels": float(np.sqrt(np.mean(state["round_trip_rms"] ** 2))),
            "round_trip_max_levels": float(state["round_trip_max"].max()),
            **about,
            "network_calls_per_image": float(state["calls"].mean()),
            "solver": solver.described(),
        }

    advice = ": loosen eval.solver's tolerances"
    return per_image(context, there_and_back(context, solver), finish, summarise=summarise, advice=advice)


def open_solver_alone(run: Experiment, options: EvalOptions, workdir: Path) -> Opened:
    """The solver; raises UserError where it cannot integrate over the times of eval."""
    return Opened(open_solver(run, options, options.smallest_time))


NEEDS, READS = frozenset({"denoiser", "pixels", "split"}), ("solver", "smallest_time", "largest_time")
job = Job(build, NEEDS, READS, open_solver_alone)
