"""Are the numbers of many images independent N(0, 1) numbers? Moments, correlations, and the distance of laws."""

import math

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtri

from score_flow.numerics import mean_and_error

MOMENTS = ("mean", "mean_square", "fourth", "neighbours")  # of each image
EDGES = ndtri(np.arange(1, 1000) / 1000)  # the thousandths of N(0, 1)
# Kolmogorov's limit law of sqrt(n) max |F_n - F|: its mean, and its standard deviation
KOLMOGOROV = math.sqrt(math.pi / 2) * math.log(2), math.sqrt(math.pi**2 / 12 - math.pi / 2 * math.log(2) ** 2)


def moments(z: Float[np.ndarray, "*n h w c"]) -> dict[str, Float[np.ndarray, "*n"]]:
    """Compute, of each image, the means of z, z^2, z^4 and of products of neighbours, in float64."""
    z, axes = z.astype(np.float64), (-3, -2, -1)
    beside, below = z[..., :-1, :] * z[..., 1:, :], z[..., :-1, :, :] * z[..., 1:, :, :]
    products = (beside.sum(axes) + below.sum(axes)) / neighbours(z.shape[-3:])
    return dict(zip(MOMENTS, (z.mean(axes), (z**2).mean(axes), (z**4).mean(axes), products), strict=True))


def neighbours(shape: tuple[int, ...]) -> int:
    """Count pairs of pixels of one channel, side by side or one above the other, in an image of this shape."""
    h, w, c = shape
    return max(1, c * (h * (w - 1) + (h - 1) * w))


def summary(of_images: dict[str, Float[np.ndarray, "*n"]], shape: tuple[int, int, int]) -> dict[str, float]:
    """Compute mean, mean square, kurtosis and correlation of neighbours over all numbers of all images.

    Each with two errors. Of independent N(0, 1) numbers they are 0, 1, 3 and 0, with the `normal_standard_error`; the
    `standard_error` is what the spread over these images says (of ratios, to first order).
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
    """Count how many numbers lie below each thousandth of N(0, 1)."""
    return np.searchsorted(np.sort(z, axis=None), EDGES.astype(z.dtype))


def distance(below: Int[np.ndarray, "999"], n: int) -> dict[str, float]:
    """Compute max |F_n - Phi| over the thousandths, and what n normal numbers would have (Kolmogorov's law)."""
    share = np.arange(1, 1000) / 1000
    mean, deviation = (x / math.sqrt(n) for x in KOLMOGOROV)
    return {
        "normal_distance": float(np.abs(below / n - share).max()),
        "normal_distance_expected": mean,
        "normal_distance_expected_standard_error": deviation,
    }
