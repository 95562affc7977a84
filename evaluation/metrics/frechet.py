"""What is computed of features and class probabilities of images: Gaussians and their distance, the Inception score."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int, Int64, Real, Shaped

from score_flow.errors import UserError


class Moments(NamedTuple):
    """Count, sum, and sum of (x - mean)(x - mean)^T of feature vectors: parts of a set merge to the whole's.

    All in float64. The outer product is centred: that of large features would cancel when the mean is taken off it.
    """

    count: Int64[np.ndarray, ""]
    total: Float64[np.ndarray, "d"]
    outer: Float64[np.ndarray, "d d"]

    @classmethod
    def empty(cls, d: int) -> "Moments":
        """Make those of no vector."""
        return cls(np.zeros((), np.int64), np.zeros(d), np.zeros((d, d)))

    @classmethod
    def of(cls, features: Shaped[np.ndarray, "n d"]) -> "Moments":
        """Compute those of n >= 0 vectors."""
        features = np.asarray(features, np.float64)
        n, total = len(features), features.sum(axis=0)
        centred = features - total / max(n, 1)
        return cls(np.asarray(n, np.int64), total, centred.T @ centred)

    def merge(self, other: "Moments") -> "Moments":
        """Merge both sets' (Chan, Golub and LeVeque 1979): outer_a + outer_b + n_a n_b / n gap gap^T."""
        n = self.count + other.count
        gap = other.total / max(other.count, 1) - self.total / max(self.count, 1)
        between = (self.count * other.count / max(n, 1)) * np.outer(gap, gap)
        return Moments(np.asarray(n, np.int64), self.total + other.total, self.outer + other.outer + between)

    def gaussian(self) -> tuple[Float64[np.ndarray, "d"], Float64[np.ndarray, "d d"]]:
        """Compute the mean and unbiased covariance; raises UserError for fewer than two vectors."""
        if self.count < 2:
            raise UserError(f"moments: got {self.count} feature vector(s); a covariance needs at least 2")
        return self.total / self.count, self.outer / (self.count - 1)


def moments(features: Shaped[np.ndarray, "n d"]) -> tuple[Float64[np.ndarray, "d"], Float64[np.ndarray, "d d"]]:
    """Compute the mean and unbiased covariance of n >= 2 feature vectors, in float64; raises UserError for fewer."""
    return Moments.of(features).gaussian()


def frechet_distance(
    mu1: Float[np.ndarray, "d"],
    cov1: Float[np.ndarray, "d d"],
    mu2: Float[np.ndarray, "d"],
    cov2: Float[np.ndarray, "d d"],
) -> float:
    """Compute |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2) of two Gaussians, in float64.

    Their squared Frechet distance (Dowson and Landau 1982, doi:10.1016/0047-259X(82)90077-X); on features of images it
    is the FID (Heusel et al., arXiv:1706.08500). The covariances may be singular.
    """
    mu1, cov1, mu2, cov2 = (np.asarray(x, np.float64) for x in (mu1, cov1, mu2, cov2))
    values, vectors = np.linalg.eigh(cov1)
    root = (vectors * np.sqrt(values.clip(0.0))) @ vectors.T
    # S1^1/2 S2 S1^1/2 has the eigenvalues of S1 S2 and is symmetric: real and stable where a root of S1 S2 need not be.
    # Rounding leaves zeros slightly negative, and the distance of equal Gaussians too.
    overlap = np.sqrt(np.linalg.eigvalsh(root @ cov2 @ root).clip(0.0)).sum()
    return max(0.0, float(((mu1 - mu2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2.0 * overlap))


class ClassSums(NamedTuple):
    """Of each of s splits of a set of images: how many, the sum of p(y|x), and that of sum_y p(y|x) log p(y|x)."""

    count: Int64[np.ndarray, "s"]
    probability: Float64[np.ndarray, "s k"]
    negative_entropy: Float64[np.ndarray, "s"]

    @classmethod
    def empty(cls, splits: int, n_classes: int) -> "ClassSums":
        """Make those of no image."""
        return cls(np.zeros(splits, np.int64), np.zeros((splits, n_classes)), np.zeros(splits))

    def add(self, logits: Real[np.ndarray, "n k"], split: Int[np.ndarray, "n"]) -> "ClassSums":
        """Return these sums with n more images, each of a split."""
        logits = np.asarray(logits, np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        count, probability, negative_entropy = (x.copy() for x in self)
        np.add.at(count, split, 1)
        np.add.at(probability, split, p)
        np.add.at(negative_entropy, split, (p * log_p).sum(axis=1))
        return ClassSums(count, probability, negative_entropy)

    def together(self) -> "ClassSums":
        """Return those of all images in one split."""
        return ClassSums(*(x.sum(axis=0, keepdims=True) for x in self))

    def score(self) -> tuple[float, float]:
        """Compute the mean and (population) standard deviation over splits of exp(E_x KL(p(y|x) | p(y))).

        Salimans et al. 2016 (arXiv:1606.03498). p(y) is the split's own: few images a split bias it downwards.
        """
        p = self.probability / self.count[:, None]
        entropy = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0).sum(axis=1)
        scores = np.exp(self.negative_entropy / self.count + entropy)
        return float(scores.mean()), float(scores.std())


def split_of(n: int, splits: int, seed: int | None = None) -> Int[np.ndarray, "n"]:
    """Return the split of each of n images: equal stretches (to one image) of their order or RandomState(seed)'s."""
    bounds = np.arange(splits + 1) * n // splits
    position = np.repeat(np.arange(splits), np.diff(bounds))
    if seed is None:
        return position
    shuffled = np.empty(n, np.int64)
    shuffled[np.random.RandomState(seed).permutation(n)] = position
    return shuffled


def inception_score(logits: Real[np.ndarray, "n k"], splits: int = 1, seed: int | None = None) -> tuple[float, float]:
    """Compute the Inception score of a set: mean and deviation over splits, in order or of RandomState(seed)."""
    n, k = logits.shape
    return ClassSums.empty(splits, k).add(logits, split_of(n, splits, seed)).score()
