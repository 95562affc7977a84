"""Linear measurements of images, and their pseudo-inverses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling.control.measurement import BlockMean, Grey, Mask, Matrix

SHAPE, D = (2, 4, 3), 24
MASK = np.array([[1, 0, 0, 1], [0, 0, 1, 1]], np.float32)[..., None]
RANK_4 = np.random.default_rng(0).normal(size=(5, 4)) @ np.random.default_rng(1).normal(size=(4, D))
MEASUREMENTS = {
    "mask": Mask(MASK),
    "grey": Grey((0.299, 0.587, 0.114)),
    "block": BlockMean(2, (1, 2)),
    "matrix": Matrix.of(RANK_4, SHAPE),
}
MEAN, STD = 0.5, 0.3  # of the data, here and in GaussianDenoiser


def dense(measurement):
    """H, a column a pixel."""
    columns = measurement.apply(jnp.eye(D).reshape(D, *SHAPE))
    return np.asarray(columns, np.float64).reshape(D, -1).T


def known(measurement, n=1, seed=0):
    """Measurements of n images."""
    return measurement.apply(MEAN + STD * jax.random.normal(jax.random.key(seed), (n, *SHAPE)))


# Measurements.


@pytest.mark.parametrize("name", MEASUREMENTS)
@pytest.mark.parametrize("ridge", [0.0, 0.7])
def test_pseudo_inverse_is_that_of_dense_algebra(name, ridge):
    measurement = MEASUREMENTS[name]
    with jax.enable_x64(True):
        h, y = dense(measurement), known(measurement, 3)
        inverse = np.linalg.pinv(h @ h.T + ridge * np.eye(len(h))) @ np.asarray(y).reshape(3, -1).T
        ours = np.asarray(measurement.pseudo_inverse(y, ridge)).reshape(3, D)
        np.testing.assert_allclose(ours, (h.T @ inverse).T, rtol=0, atol=1e-12)
        x = measurement.project(jax.random.normal(jax.random.key(1), (3, *SHAPE)))
        np.testing.assert_allclose(measurement.project(x), x, rtol=0, atol=1e-12)
        np.testing.assert_allclose(
            measurement.apply(measurement.pseudo_inverse(y)), y, rtol=0, atol=1e-12
        )  # y is in H's range


def test_rotated_measurements_are_those_of_the_matrix():
    """y = M x becomes U^T y, which is what `apply` gives."""
    matrix, x = np.random.default_rng(2).normal(size=(5, D)), np.random.default_rng(3).normal(size=(2, *SHAPE))
    with jax.enable_x64(True):
        measurement = Matrix.of(matrix, SHAPE)
        ours = measurement.rotate(x.reshape(2, D) @ matrix.T)
        np.testing.assert_allclose(measurement.apply(jnp.asarray(x)), ours, rtol=0, atol=1e-12)


# Pseudo-inverse guidance on N(mean, std^2 I): the law given y is Gaussian, and known.
