"""Linear measurements y = H x0 + sigma_y noise of images: H, and the pseudo-inverse that carries y back."""

import abc
import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from score_flow.data.conditioning import block_mean
from score_flow.types import Images

Measured = Float[Array, "b *m"]
Ridge = float | Float[Array, "..."]  # a number, or one an example with as many axes as x


class Measurement(abc.ABC):
    """A linear map H of one example."""

    @abc.abstractmethod
    def apply(self, x: Images) -> Measured:
        """Return H x."""

    @abc.abstractmethod
    def pseudo_inverse(self, y: Measured, ridge: Ridge = 0.0) -> Images:
        """Return H^T (H H^T + ridge I)^+ y."""

    def project(self, x: Images) -> Images:
        """Return H^+ H x: the part of x that is measured."""
        return self.pseudo_inverse(self.apply(x))


class OrthogonalMeasurement(Measurement):
    """One whose rows are orthogonal and of equal norm: H H^T = norm2 I."""

    norm2: float

    @abc.abstractmethod
    def adjoint(self, y: Measured) -> Images:
        """Return H^T y."""

    def pseudo_inverse(self, y: Measured, ridge: Ridge = 0.0) -> Images:
        return self.adjoint(y) / (self.norm2 + ridge)


@dataclasses.dataclass(frozen=True, eq=False)
class Mask(OrthogonalMeasurement):
    """The pixels where the mask is 1; elsewhere it is 0, and so is y."""

    mask: Float[np.ndarray, "..."]  # broadcasts against images
    norm2 = 1.0

    def apply(self, x: Images) -> Measured:
        return self.mask * x

    def adjoint(self, y: Measured) -> Images:
        return self.mask * y


@dataclasses.dataclass(frozen=True)
class Grey(OrthogonalMeasurement):
    """The weighted sum of the channels, (b, h, w, 1)."""

    weights: tuple[float, ...]

    @property
    def norm2(self) -> float:
        return math.fsum(weight**2 for weight in self.weights)

    def apply(self, x: Images) -> Measured:
        return jnp.sum(x * jnp.asarray(self.weights, x.dtype), axis=-1, keepdims=True)

    def adjoint(self, y: Measured) -> Images:
        return y * jnp.asarray(self.weights, y.dtype)


@dataclasses.dataclass(frozen=True)
class BlockMean(OrthogonalMeasurement):
    """The image at side x side pixels: means over blocks of (h, w) pixels."""

    side: int
    block: tuple[int, int]

    @property
    def norm2(self) -> float:
        return 1 / math.prod(self.block)

    def apply(self, x: Images) -> Measured:
        return block_mean(x, self.side)

    def adjoint(self, y: Measured) -> Images:
        return self.norm2 * jnp.repeat(jnp.repeat(y, self.block[0], axis=1), self.block[1], axis=2)


@dataclasses.dataclass(frozen=True, eq=False)
class Matrix(Measurement):
    """A matrix of m rows over the pixels of an example, in its singular basis: H = U diag(values) rows.

    y stands for U^T y: m numbers become `rotate(y)`, as many as the rank. White noise stays white.
    """

    left: Float[np.ndarray, "m rank"]
    values: Float[np.ndarray, "rank"]
    rows: Float[np.ndarray, "rank d"]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, matrix: Float[np.ndarray, "m d"], shape: tuple[int, ...]) -> "Matrix":
        """Decompose it on the host, in float64; singular values that are rounding errors are left out."""
        left, values, rows = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
        kept = values > values.max(initial=0.0) * max(matrix.shape) * np.finfo(np.float64).eps
        return cls(left[:, kept], values[kept], rows[kept], shape)

    def rotate(self, y: Float[np.ndarray, "b m"]) -> Float[np.ndarray, "b rank"]:
        return y @ self.left

    def apply(self, x: Images) -> Measured:
        return (x.reshape(x.shape[0], -1) @ self._of(self.rows, x).T) * self._of(self.values, x)

    def pseudo_inverse(self, y: Measured, ridge: Ridge = 0.0) -> Images:
        values = self._of(self.values, y)
        x = y * (values / (values**2 + jnp.reshape(ridge, (-1, 1)))) @ self._of(self.rows, y)
        return x.reshape(x.shape[0], *self.shape)

    @staticmethod
    def _of(array: np.ndarray, like: Array) -> Array:
        return jnp.asarray(array, like.dtype)
