"""Transitions between two times of a path agree with the marginals, with one another and with the DDPM tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from score_flow.paths.ddpm import DDPM
from score_flow.process.transition import Gaussian, forward_step, kl, lost_fraction, posterior, posterior_coefficients
from tests.paths.variants import EPS, PATHS, TIMES, evaluate


def increasing_triples():
    """128 rows s < u < t out of TIMES: close neighbours, the end t = 0, the end t = 1, and any three."""
    rng, n = np.random.default_rng(0), len(TIMES)
    rows = [(i, i + 1, i + 2) for i in range(0, n - 2, 15)] + [(0, i, 100) for i in (1, 2, 50, 99)]
    rows += [(i, 120, n - 1) for i in (0, 1, 50, 119)] + [(0, i, n - 1) for i in range(1, n - 1, 18)]
    rows += [np.sort(rng.choice(n, 3, replace=False)) for _ in range(n - len(rows))]
    return TIMES[np.array(rows)].T


S, U, T = increasing_triples()

every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
both_dtypes = pytest.mark.parametrize("x64", [False, True], ids=["float32", "float64"])


@pytest.fixture
def times(path, x64):
    with jax.enable_x64(x64):
        yield tuple(jnp.asarray(t, float) for t in (S, U, T))


def rounding(path, s, t):
    """The relative error of 1 - SNR_t/SNR_s or of its complement, whichever is larger: eps x the logarithms in log SNR.

    Where alpha or sigma is 0 the fraction is exactly 1 and its logarithm costs nothing.
    """
    values = [np.asarray(f(u), np.float64) for f in (path.alpha, path.sigma) for u in (s, t)]
    logs = sum(np.abs(np.log(np.where(value > 0, value, 1.0))) for value in values)
    return 8 * float(jnp.finfo(s.dtype).eps) * (1 + logs)


def assert_close(got, want, tolerance):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    excess = np.abs(got - want) - np.asarray(tolerance, np.float64)
    assert (excess <= 0).all(), (got[excess > 0], want[excess > 0], S[excess > 0], T[excess > 0])


@every_path
@both_dtypes
def test_forward_step_carries_the_marginal_on(path, times):
    s, _, t = times
    scale, std = forward_step(path, s, t)
    tolerance = rounding(path, s, t)
    assert (np.asarray(std) > 0).all()
    assert_close(scale * path.alpha(s), path.alpha(t), tolerance * path.alpha(t))
    assert_close((scale * path.sigma(s)) ** 2 + std**2, path.sigma(t) ** 2, tolerance * path.sigma(t) ** 2)


@every_path
@both_dtypes
def test_two_forward_steps_are_one(path, times):
    s, u, t = times
    first, first_std = forward_step(path, s, u)
    second, second_std = forward_step(path, u, t)
    scale, std = forward_step(path, s, t)
    tolerance = rounding(path, s, u) + rounding(path, u, t) + rounding(path, s, t)
    assert_close(first * second, scale, tolerance * np.asarray(scale))
    assert_close((second * first_std) ** 2 + second_std**2, std**2, tolerance * np.asarray(path.sigma(t) ** 2))


@every_path
@both_dtypes
def test_the_posterior_mixed_over_x_t_is_the_marginal(path, times):
    """q(x_s | x_0) = integral of q(x_s | x_t, x_0) q(x_t | x_0)."""
    s, _, t = times
    on_x_t, on_x0, std = posterior_coefficients(path, s, t)
    tolerance = rounding(path, s, t)
    assert_close(on_x_t * path.alpha(t) + on_x0, path.alpha(s), tolerance * path.alpha(s))
    assert_close((on_x_t * path.sigma(t)) ** 2 + std**2, path.sigma(s) ** 2, tolerance * path.sigma(s) ** 2)


@every_path
@both_dtypes
def test_the_posterior_is_bayes_rule(path, times):
    """Precisions add: q(x_s | x_t, x_0) is proportional to q(x_t | x_s) q(x_s | x_0)."""
    s, _, t = times
    on_x_t, on_x0, std = posterior_coefficients(path, s, t)
    scale, step_std = forward_step(path, s, t)
    tolerance = rounding(path, s, t)
    gain = std**2 / step_std**2  # variances multiplied out: a vanishing one stays a number
    assert_close(on_x_t, gain * scale, tolerance * np.asarray(gain * scale))
    product = path.sigma(s) ** 2 * step_std**2
    assert_close(std**2 * (step_std**2 + scale**2 * path.sigma(s) ** 2), product, tolerance * product)
    assert_close(on_x0 * path.sigma(t) ** 2, path.alpha(s) * step_std**2, tolerance * path.alpha(s) * step_std**2)


@every_path
@both_dtypes
def test_nothing_is_left_to_draw_where_the_data_are_known(path, times):
    s, _, t = times
    lost = np.asarray(lost_fraction(path, s, t))
    assert ((lost > 0) & (lost <= 1)).all()
    known = np.asarray(path.sigma(s)) == 0
    on_x_t, on_x0, std = (np.asarray(value)[known] for value in posterior_coefficients(path, s, t))
    assert known.any() == (float(path.sigma(jnp.zeros(()))) == 0)  # VE is never without noise
    np.testing.assert_array_equal(on_x_t, 0.0)
    np.testing.assert_array_equal(std, 0.0)
    np.testing.assert_array_equal(on_x0, np.asarray(path.alpha(s))[known])


@every_path
def test_posterior_of_images(path):
    x_t, x0 = jnp.asarray(np.random.default_rng(0).normal(size=(2, len(S), 6)), jnp.float32)
    s, t = jnp.asarray(S), jnp.asarray(T)
    law = posterior(path, x_t, x0, s, t)
    on_x_t, on_x0, std = (np.asarray(value)[:, None] for value in posterior_coefficients(path, s, t))
    np.testing.assert_allclose(law.mean, on_x_t * x_t + on_x0 * x0, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(law.std, std)


def test_one_pair_of_times_serves_a_batch():
    x_t, x0 = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)
    once = posterior(PATHS["vp"], x_t, x0, jnp.asarray(0.2), jnp.asarray(0.7))
    each = posterior(PATHS["vp"], x_t, x0, jnp.full(3, 0.2), jnp.full(3, 0.7))
    np.testing.assert_allclose(once.mean, each.mean, rtol=1e-6)
    assert once.std.shape == () and each.std.shape == (3, 1)


CHAINS = {name: path for name, path in PATHS.items() if isinstance(path, DDPM)}


@pytest.mark.parametrize("path", CHAINS.values(), ids=CHAINS.keys())
def test_ddpm_tables(path):
    """beta_i, the posterior variance (Ho et al., eq. 7) and both weights of its mean, at s = i/n and t = (i+1)/n."""
    beta, t = path.table(), path.times()
    abar, s = np.cumprod(1 - beta), np.concatenate([[0.0], t[:-1]])
    before = np.concatenate([[1.0], abar[:-1]])
    scale, std = evaluate(lambda s, t: forward_step(path, s, t), s, t)
    on_x_t, on_x0, posterior_std = evaluate(lambda s, t: posterior_coefficients(path, s, t), s, t)
    # A small beta is a difference of two log SNR (below 20 here), and a rounding of t moves log alpha by n beta eps.
    rtol = 4 * EPS[True] * (len(beta) + 20 / beta.min())
    np.testing.assert_allclose(scale**2, 1 - beta, rtol=rtol)
    np.testing.assert_allclose(std**2, beta, rtol=rtol)
    np.testing.assert_allclose(posterior_std**2, (1 - before) / (1 - abar) * beta, rtol=rtol)
    np.testing.assert_allclose(on_x0, np.sqrt(before) * beta / (1 - abar), rtol=rtol)
    np.testing.assert_allclose(on_x_t, np.sqrt(1 - beta) * (1 - before) / (1 - abar), rtol=rtol)


def test_kl_is_the_integral():
    p = Gaussian(jnp.asarray([[0.3], [-1.0]]), jnp.asarray(0.7))
    q = Gaussian(jnp.asarray([[1.1], [0.5]]), jnp.asarray([[1.9], [0.4]]))
    expected = []
    for mean, q_mean, q_std in zip(p.mean[:, 0], q.mean[:, 0], q.std[:, 0], strict=True):
        ours, theirs = scipy.stats.norm(float(mean), 0.7), scipy.stats.norm(float(q_mean), float(q_std))
        integrand = lambda x, a=ours, b=theirs: a.pdf(x) * (a.logpdf(x) - b.logpdf(x))  # noqa: E731
        expected.append([scipy.integrate.quad(integrand, float(mean) - 8, float(mean) + 8)[0]])
    np.testing.assert_allclose(kl(p, q), expected, rtol=1e-5)
    np.testing.assert_allclose(kl(p, p), jnp.zeros((2, 1)), atol=EPS[False])
    assert (np.asarray(kl(p, q)) > 0).all() and not np.allclose(kl(p, q), kl(q, p))
