"""The truncated normal dequantiser's density, and the bound of several samples an image."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate
from scipy.stats import norm

from evaluation.jobs.bits import of_all_samples
from sampling.base import example_keys
from score_flow.data.scaling import Scaling
from score_flow.losses.dequantisation import TruncatedNormalDequantiser
from score_flow.paths.linear import Linear

EPS = np.finfo(np.float32).eps


@pytest.mark.parametrize("t", [0.01, 0.3])
def test_the_entropy_of_a_truncated_normal_is_its_closed_form(t):
    """1/2 (1 + log 2 pi sigma^2) + log Z - tau exp(-tau^2/2)/(sqrt(2 pi) Z) a number, against quadrature too."""
    scaling = Scaling(-1.0, 1.0, 17)
    levels = jax.random.randint(jax.random.key(0), (256, 2, 2, 1), 0, 17, jnp.uint8)
    x, bits = TruncatedNormalDequantiser(Linear(), scaling, t, True)(example_keys(0, jnp.arange(256)), levels)
    tau = (1 - t) / (17 * t)
    z, tail = math.erf(tau / math.sqrt(2)), tau * math.exp(-(tau**2) / 2)
    closed = 0.5 * (1 + math.log(2 * math.pi * t**2)) + math.log(z) - tail / (math.sqrt(2 * math.pi) * z)
    density = lambda u: norm.pdf(u) / (t * z)  # noqa: E731
    integrated = integrate.quad(lambda u: -t * density(u) * math.log(density(u)), -tau, tau, epsabs=1e-12)[0]
    assert abs(closed - integrated) < 1e-10
    found = -np.asarray(bits, np.float64) * math.log(2)
    assert abs(found.mean() - closed) < 4 * found.std() / 16 + 8 * EPS
    cell = (1 - t) * np.asarray(scaling.dequantise(levels, jnp.full(levels.shape, 0.5)))
    assert (np.abs(np.asarray(x) - cell) <= (1 - t) / 17 + 4 * EPS).all()


def test_the_bound_of_several_samples_lies_between_the_bound_and_the_truth():
    """-log2 mean_k p(x_k) P(v | x_k) / q(x_k | v) of known ratios."""
    ratios = np.exp(np.random.default_rng(0).normal(-0.5, 1.0, (4, 50_000)))  # of mean 1: P(v) = 1
    repeats = -np.log2(ratios) / 2
    found, one = of_all_samples(repeats, 2), repeats.mean()
    assert 0 < found["bits_per_dim_of_all_samples"] + 4 * found["standard_error_of_all_samples"] < one
    assert abs(one - 0.5 / math.log(2) / 2) < 4 * repeats.std() / math.sqrt(repeats.size)
    expected = -np.log2(ratios.mean(axis=0)) / 2
    np.testing.assert_allclose(found["bits_per_dim_of_all_samples"], expected.mean(), rtol=1e-12)
