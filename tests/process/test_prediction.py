"""Every prediction on every path: decoding a perfect output returns the pair that made it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.numerics import expand
from score_flow.paths.vp import VP
from score_flow.process.prediction import PREDICTIONS, Estimate, edm, v, velocity
from tests.exact import GaussianDenoiser
from tests.paths.variants import EPS, PATHS, TIMES

ALL = PREDICTIONS | {"edm-1.3": edm(1.3)}

every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
every_prediction = pytest.mark.parametrize("prediction", ALL.values(), ids=ALL.keys())
both_dtypes = pytest.mark.parametrize("x64", [False, True], ids=["float32", "float64"])


def pairs(seed=0):
    """x0 and noise for every time."""
    return Estimate(*jnp.asarray(np.random.default_rng(seed).normal(size=(2, len(TIMES), 6)), float))


@pytest.fixture
def problem(path, x64):
    """(pair, x_t, coefficients) at TIMES, in one dtype."""
    with jax.enable_x64(x64):
        t, pair = jnp.asarray(TIMES, float), pairs()
        yield pair, path.perturb(*pair[:2], t), path.at(t)


@every_path
@both_dtypes
def test_decode_inverts_target(problem, x64):
    pair, x, c = problem
    # Dividing x_t by alpha (sigma) magnifies its rounding by sigma/alpha (alpha/sigma): no readout can do better where
    # one of the two is a small part of x_t. The rest is a dozen roundings.
    largest = max(float(jnp.abs(part).max()) for part in pair[:2])
    with np.errstate(divide="ignore"):
        ratio = np.asarray(c.sigma, np.float64) / np.asarray(c.alpha, np.float64)
        tolerance = 12 * EPS[x64] * largest * (1 + np.stack([ratio, 1 / ratio]))
    for name, prediction in ALL.items():
        target = prediction.target(pair, c.expand(x))
        # sigma' of a VP path is infinite at t = 0: no velocity exists there.
        exists = np.isfinite(np.asarray(target)).all(axis=1)
        assert exists[1:].all() and (exists[0] or name == "velocity"), name
        decoded = prediction.decode(target, x, c.expand(x))
        assert decoded.variance is None
        for part, got, want, allowed in zip(("x0", "noise"), decoded[:2], pair[:2], tolerance, strict=True):
            error = np.abs(np.asarray(got - want, np.float64)).max(axis=1)
            # Where x_t holds nothing of a part the allowed error is infinite; the answer must be a number all the same.
            assert np.isfinite(error[exists]).all(), (name, part, error)
            assert (error[exists] <= allowed[exists]).all(), (name, part, error / allowed)


@every_path
@both_dtypes
def test_gain_is_the_derivative_of_noise_by_output(problem, x64):
    _, x, c = problem
    ones = jnp.ones_like(x)
    for name, prediction in ALL.items():
        tangent = jax.jvp(lambda output, p=prediction: p.decode(output, x, c.expand(x)).noise, (ones,), (ones,))[1]
        gain = jnp.broadcast_to(expand(prediction.gain(c), x), x.shape)
        start = 1 if name == "velocity" else 0  # see above
        np.testing.assert_allclose(tangent[start:], gain[start:], rtol=8 * EPS[x64], err_msg=name)


@every_path
def test_edm_with_no_output_knows_gaussian_data(path):
    """F = 0 is the best denoiser of N(0, sigma_data^2 I): c_skip alone."""
    x, t = pairs().x0, jnp.asarray(TIMES)
    decoded = edm(0.3).decode(jnp.zeros_like(x), x, path.at(t).expand(x))
    exact = GaussianDenoiser(path, mean=0.0, std=0.3).estimate(x, t)
    np.testing.assert_allclose(decoded.x0, exact.x0, rtol=16 * EPS[False])
    np.testing.assert_allclose(decoded.noise, exact.noise, rtol=16 * EPS[False])


@every_path
def test_edm_is_table_1(path):
    """D = c_skip y + c_out F with y = x/alpha at noise level s = sigma/alpha, and F of unit variance."""
    (y, f, _), d = pairs(), 0.5
    c = path.at(jnp.clip(jnp.asarray(TIMES), 1e-5, 0.99)).expand(y)
    s = c.sigma / c.alpha
    skip, out = d**2 / (s**2 + d**2), s * d / jnp.sqrt(s**2 + d**2)
    np.testing.assert_allclose(edm(d).decode(f, c.alpha * y, c).x0, skip * y + out * f, rtol=1e-5, atol=1e-5)
    one, none = jnp.ones_like(y), jnp.zeros_like(y)
    on_x0, on_noise = edm(d).target(Estimate(one, none), c), edm(d).target(Estimate(none, one), c)
    np.testing.assert_allclose((d * on_x0) ** 2 + on_noise**2, 1.0, rtol=16 * EPS[False])


def test_edm_is_one_object_for_one_sigma_data():
    assert edm(0.7) is edm(0.7) and edm(0.7) is not edm(0.6) and edm() is PREDICTIONS["edm"]


def test_v_on_a_variance_preserving_path():
    """alpha^2 + sigma^2 = 1: v = alpha noise - sigma x0, x0 = alpha x - sigma v (Salimans & Ho); edm(1) is -v."""
    pair, path, t = pairs(), VP(), jnp.asarray(TIMES)
    x, c = path.perturb(*pair[:2], t), path.at(t).expand(pair.x0)
    target = v.target(pair, c)
    atol = 16 * EPS[False] * float(jnp.abs(x).max())
    np.testing.assert_allclose(v.decode(target, x, c).x0, c.alpha * x - c.sigma * target, atol=atol)
    np.testing.assert_allclose(v.decode(target, x, c).noise, c.sigma * x + c.alpha * target, atol=atol)
    np.testing.assert_allclose(edm(1.0).target(pair, c), -target, atol=atol)


@every_path
def test_the_velocity_is_the_derivative_of_the_interpolant(path):
    pair, t = pairs(), jnp.clip(jnp.asarray(TIMES), 1e-5, 1.0)
    moved = jax.jvp(lambda t: path.perturb(*pair[:2], t), (t,), (jnp.ones_like(t),))[1]
    c = path.at(t).expand(moved)
    size = jnp.abs(c.dalpha * pair.x0) + jnp.abs(c.dsigma * pair.noise)
    assert (jnp.abs(velocity.target(pair, c) - moved) <= 4 * EPS[False] * size).all()
