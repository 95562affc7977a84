"""Distances between sets of features."""

import numpy as np
from jaxtyping import Float, Float64, Shaped

from score_flow.types import UserError


def moments(features: Shaped[np.ndarray, "n d"]) -> tuple[Float64[np.ndarray, "d"], Float64[np.ndarray, "d d"]]:
    """Mean and unbiased covariance of n >= 2 feature vectors, in float64; raises UserError for fewer."""
    if len(features) < 2:
        raise UserError(f"moments: got {len(features)} feature vector(s); a covariance needs at least 2")
    features = np.asarray(features, np.float64)
    mean = features.mean(axis=0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def frechet_distance(
    mu1: Float[np.ndarray, "d"],
    cov1: Float[np.ndarray, "d d"],
    mu2: Float[np.ndarray, "d"],
    cov2: Float[np.ndarray, "d d"],
) -> float:
    """Squared Frechet distance of two Gaussians, |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2), in float64.

    Dowson and Landau 1982 (doi:10.1016/0047-259X(82)90077-X); on features of images it is the FID (Heusel et al.,
    arXiv:1706.08500). The covariances may be singular.
    """
    mu1, cov1, mu2, cov2 = (np.asarray(x, np.float64) for x in (mu1, cov1, mu2, cov2))
    values, vectors = np.linalg.eigh(cov1)
    root = (vectors * np.sqrt(values.clip(0.0))) @ vectors.T
    # S1^1/2 S2 S1^1/2 has the eigenvalues of S1 S2 and is symmetric: real and stable where a root of S1 S2 need not be.
    # Rounding leaves zeros slightly negative, and the distance of equal Gaussians too.
    overlap = np.sqrt(np.linalg.eigvalsh(root @ cov2 @ root).clip(0.0)).sum()
    return max(0.0, float(((mu1 - mu2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2.0 * overlap))
