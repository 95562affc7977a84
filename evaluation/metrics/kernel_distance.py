"""Kernel distance (KID): squared maximum mean discrepancy of two sets of features under k(x, y) = (x.y / d + 1)^3.

Binkowski et al. 2018 (arXiv:1801.01401). Every estimate here is unbiased, so that of equal distributions is 0 in the
mean and may be negative.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64, Int, Real

from score_flow.errors import UserError
from score_flow.numerics import mean_and_error

Features = Real[np.ndarray, "n d"]
ROWS = 1024  # of a kernel matrix in memory at a time


def kernel_distance(x: Features, y: Real[np.ndarray, "m d"]) -> tuple[float, float]:
    """Compute the distance over all pairs, and its standard error; raises UserError for fewer than two vectors.

    E k(x, x') + E k(y, y') - 2 E k(x, y), without pairs of a vector with itself. The error is the jackknife's to first
    order: the estimate is a mean of 2 (E_x' k(x_i, x') - E_y k(x_i, y)) over x_i plus its like over y_j. Where the sets
    are alike, those means are mostly noise of the others, and the error errs on the large side.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise UserError(f"kernel distance: got {n} and {m} feature vector(s); each set needs at least 2")
    within_x, within_y = (_sums(z, z)[0] - _kernel((z * z).sum(axis=1), z.shape[1]) for z in (x, y))
    across_x, across_y = _sums(x, y)
    of_x, of_y = within_x / (n - 1) - across_x / m, within_y / (m - 1) - across_y / n
    error = 2 * np.sqrt(of_x.var(ddof=1) / n + of_y.var(ddof=1) / m)
    return float(of_x.mean() + of_y.mean()), float(error)


def block_distance(x: Features, y: Real[np.ndarray, "m d"], largest: int = 1024) -> tuple[float, float]:
    """Average over consecutive blocks of at most `largest` vectors; with the standard error (nan of a single block).

    What TF-GAN computes (kernel_classifier_distance_and_std_from_activations), and score_sde with it.
    """
    return mean_and_error(np.array([kernel_distance(a, b)[0] for a, b in blocks(x, y, largest)]))


def blocks(x: Features, y: Real[np.ndarray, "m d"], largest: int) -> Iterator[tuple[Features, Features]]:
    """Yield both sets in equally many consecutive parts; sizes of a set differ by one at most, the larger come last."""
    count = -(-max(len(x), len(y)) // largest)
    for i in range(count):
        yield tuple(z[_start(len(z), count, i) : _start(len(z), count, i + 1)] for z in (x, y))


def subset_distances(
    x: Features, y: Real[np.ndarray, "m d"], *, subsets: int = 100, size: int = 1000, seed: int = 2020
) -> Float64[np.ndarray, "subsets"]:
    """Compute the distance of random subsets of both sets, drawn without replacement: what torch-fidelity averages."""
    pairs = subset_indices(len(x), len(y), subsets=subsets, size=size, seed=seed)
    return np.array([kernel_distance(x[i], y[j])[0] for i, j in pairs])


def subset_indices(n: int, m: int, *, subsets: int, size: int, seed: int) -> list[tuple[Int[np.ndarray, "size"], ...]]:
    """Draw (indices into x, into y) of each subset, in the order in which RandomState(seed) draws them."""
    rng = np.random.RandomState(seed)
    return [tuple(rng.choice(total, size, replace=False) for total in (n, m)) for _ in range(subsets)]


def _start(n: int, count: int, i: int) -> int:
    """Return where the i-th of `count` parts of n begins."""
    return i * (n // count) + max(0, i - (count - n % count))


def _kernel(products: Float64[np.ndarray, "*shape"], d: int) -> Float64[np.ndarray, "*shape"]:
    base = products / d + 1.0
    return base * base * base  # numpy's power is ten times slower


def _sums(
    x: Float64[np.ndarray, "n d"], y: Float64[np.ndarray, "m d"]
) -> tuple[Float64[np.ndarray, "n"], Float64[np.ndarray, "m"]]:
    """Compute sum_j k(x_i, y_j) for each i, and sum_i k(x_i, y_j) for each j."""
    over_y, over_x = np.empty(len(x)), np.zeros(len(y))
    for start in range(0, len(x), ROWS):
        rows = slice(start, start + ROWS)
        kernel = _kernel(x[rows] @ y.T, x.shape[1])
        over_y[rows] = kernel.sum(axis=1)
        over_x += kernel.sum(axis=0)
    return over_y, over_x
