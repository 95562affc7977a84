"""Precision and recall: how much of one set of features lies in the manifold of another, a union of balls.

Kynkaanniemi et al. 2019 (arXiv:1904.06991).
"""

import numpy as np
from jaxtyping import Bool, Float64, Real

from score_flow.errors import UserError

ROWS = 1024  # of a distance matrix in memory at a time


def precision_recall(
    generated: Real[np.ndarray, "n d"], real: Real[np.ndarray, "m d"], k: int = 3
) -> tuple[float, float]:
    """Compute the share of generated vectors in the manifold of the real ones, and the other way round."""
    precision = inside(generated, real, radii(real, k)).mean()
    return float(precision), float(inside(real, generated, radii(generated, k)).mean())


def radii(x: Real[np.ndarray, "n d"], k: int) -> Float64[np.ndarray, "n"]:
    """Compute the distance of each vector to the k-th nearest other; raises UserError where there are fewer."""
    if len(x) <= k:
        raise UserError(f"precision and recall: got {len(x)} feature vectors; {k} neighbours need at least {k + 1}")
    found = []
    for start, part in _distances(x, x):
        rows = np.arange(len(part))
        part[rows, start + rows] = np.inf  # itself
        found.append(np.partition(part, k - 1, axis=1)[:, k - 1])
    return np.concatenate(found)


def inside(
    x: Real[np.ndarray, "n d"], centres: Real[np.ndarray, "m d"], radius: Float64[np.ndarray, "m"]
) -> Bool[np.ndarray, "n"]:
    """Say whether each x lies in any of the closed balls."""
    return np.concatenate([(part <= radius).any(axis=1) for _, part in _distances(x, centres)])


def _distances(x: np.ndarray, y: np.ndarray):
    """Yield (first row, |x_i - y_j| of some rows), in float64."""
    origin = np.asarray(y, np.float64).mean(axis=0)  # squares of large coordinates would cancel
    x, y = x - origin, y - origin
    x_squares, y_squares = (x * x).sum(axis=1), (y * y).sum(axis=1)
    for i in range(0, len(x), ROWS):
        squares = x_squares[i : i + ROWS, None] + y_squares - 2 * x[i : i + ROWS] @ y.T
        yield i, np.sqrt(squares.clip(0.0))
