"""The Frechet distance against closed forms, its own symmetries and published implementations."""

import json

import numpy as np
import pytest

from evaluation.metrics import frechet_distance, moments
from score_flow.types import UserError
from tests.golden_data import golden_dir

GOLDEN = golden_dir() / "metrics"
SETS = ("d16_equal", "d16_same", "d16_twoblocks", "d64_rankdef", "d64_unequal")
EPS = np.finfo(np.float64).eps


def features(n, d, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def test_moments_are_numpys_in_float64():
    x = features(40, 5, 0).astype(np.float32)
    mean, covariance = moments(x)
    assert mean.dtype == covariance.dtype == np.float64
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(0), rtol=40 * EPS)
    np.testing.assert_allclose(
        covariance, np.cov(x.astype(np.float64), rowvar=False, ddof=1), rtol=0, atol=40 * EPS * covariance.max()
    )


def test_one_vector_has_no_covariance():
    with pytest.raises(UserError, match="got 1 feature vector"):
        moments(np.zeros((1, 3)))


def test_commuting_gaussians():
    """With common axes the distance is |mu1 - mu2|^2 + sum (s1 - s2)^2 over standard deviations along them."""
    rng = np.random.default_rng(1)
    axes = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    s1, s2 = rng.uniform(0.1, 3, (2, 6))
    mu1, mu2 = rng.normal(size=(2, 6))
    got = frechet_distance(mu1, (axes * s1**2) @ axes.T, mu2, (axes * s2**2) @ axes.T)
    assert got == pytest.approx(((mu1 - mu2) ** 2).sum() + ((s1 - s2) ** 2).sum(), abs=1e-6)


def test_gaussians_of_two_dimensions_that_do_not_commute():
    """tr M^1/2 = sqrt(tr M + 2 sqrt(det M)) for 2 x 2: here of M = S1 S2, by its invariants."""
    s1, s2 = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[1.0, -0.4], [-0.4, 3.0]])
    root_trace = np.sqrt(np.trace(s1 @ s2) + 2 * np.sqrt(np.linalg.det(s1) * np.linalg.det(s2)))
    expected = np.trace(s1 + s2) - 2 * root_trace
    assert frechet_distance(np.zeros(2), s1, np.zeros(2), s2) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("n", [30, 400], ids=["singular", "regular"])
def test_a_set_with_itself_and_symmetry(n):
    a, b = moments(features(n, 64, 2)), moments(features(n, 64, 3))
    # an eigenvalue of the product is off by eps times the largest, and in the worst case all of that enters its root
    rounding = 64 * np.sqrt(EPS) * max(np.linalg.eigvalsh(a[1])[-1], np.linalg.eigvalsh(b[1])[-1])
    assert 0 <= frechet_distance(*a, *a) < min(1e-3, rounding)
    assert frechet_distance(*a, *b) == pytest.approx(frechet_distance(*b, *a), abs=rounding)
    assert frechet_distance(*a, *b) > ((a[0] - b[0]) ** 2).sum()


def test_singular_covariances_on_different_lines():
    """Variances s^2 along u and t^2 along v have distance s^2 + t^2 - 2 s t |u.v|."""
    u, v = np.array([1.0, 0.0, 0.0]), np.array([0.6, 0.8, 0.0])
    got = frechet_distance(np.zeros(3), 4.0 * np.outer(u, u), np.zeros(3), 9.0 * np.outer(v, v))
    assert got == pytest.approx(4 + 9 - 2 * 2 * 3 * 0.6, abs=1e-6)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the whole golden set is not here")
@pytest.mark.parametrize("name", SETS)
def test_fid_rows(name):
    expected = json.loads((GOLDEN / "metrics.json").read_text())["results"][name]["fid_numpy"]
    with np.load(GOLDEN / f"feat_{name}.npz", allow_pickle=False) as arrays:
        a, b = moments(arrays["a"]), moments(arrays["b"])
    singular = name == "d64_rankdef"
    cancellation = len(a[0]) * EPS * 64 * (np.trace(a[1]) + np.trace(b[1]))  # all that is left of equal sets
    assert frechet_distance(*a, *b) == pytest.approx(expected, rel=1e-6 if singular else 1e-9, abs=cancellation)
