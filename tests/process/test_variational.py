"""The variational bound: its tables, the laws of a step, and that it bounds."""

import decimal
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from score_flow.errors import UserError
from score_flow.paths.ddpm import DDPM, cosine_betas, linear_betas
from score_flow.paths.linear import Linear
from score_flow.process.bound import VariationalBound, kl, tables
from score_flow.process.prediction import Estimate
from score_flow.process.transition import Gaussian
from score_flow.process.transition import kl as kl_of_gaussians
from tests.paths.variants import DEFAULTS, EPS

every_path = pytest.mark.parametrize("path", DEFAULTS.values(), ids=DEFAULTS.keys())
INNER = tuple(np.linspace(0.05, 0.95, 7).tolist())
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("schedule, betas", [("linear", linear_betas), ("cosine", cosine_betas)])
def test_tables_of_4000_steps_are_those_of_the_chain(schedule, betas):
    """Against products of the same float64 betas in 40 digits, built inside a jit in float32 mode.

    improved-diffusion's own tables, by a float64 product and 1 - abar, are off by up to 2e-12: eps over the first beta.
    """
    n = 4000
    path, beta = DDPM(schedule, n), betas(n)
    built = []
    jax.jit(lambda x: built.append(tables(path, tuple(path.times().tolist()))) or x)(0.0)
    with decimal.localcontext(prec=40):
        exact = [decimal.Decimal(float(b)) for b in beta]
        abar = list(itertools.accumulate((1 - b for b in exact), lambda a, b: a * b))
        before = [decimal.Decimal(1), *abar]
        rows = list(zip(exact, before, abar, strict=False))
        expected = {
            "on_x_t": [(1 - b).sqrt() * (1 - p) / (1 - a) for b, p, a in rows],
            "on_x0": [p.sqrt() * b / (1 - a) for b, p, a in rows],
            "log_large": [b.ln() for b in exact],
            "log_small": [(b * (1 - p) / (1 - a)).ln() for b, p, a in [rows[1], *rows[1:]]],
        }
    got = built[0]
    for name, values in expected.items():
        # An error of a logarithm is relative to what it is the logarithm of.
        rtol, atol = (1e-15, 1e-12) if name.startswith("log") else (1e-12, 0)
        reference = np.array([float(value) for value in values])
        np.testing.assert_allclose(getattr(got, name), reference, rtol, atol, err_msg=name)
    np.testing.assert_array_equal(got.log_fixed_large, np.append(got.log_small[0], got.log_large[1:]))


@every_path
def test_a_perfect_estimate_costs_nothing_but_its_decoder(path):
    """With x0 known and the posterior's variance every KL is exactly 0; with the forward one it is the closed form."""
    bound = VariationalBound(path, INNER, "small")
    step = jnp.arange(1, len(INNER))
    x0 = jnp.asarray(RNG.normal(size=(len(step), 3)), jnp.float32)
    x = path.perturb(x0, jnp.ones_like(x0), jnp.asarray(INNER, jnp.float32)[step])
    estimate = Estimate(x0, jnp.ones_like(x0))
    np.testing.assert_array_equal(bound.term(x0, x, estimate, step), 0.0)
    rows = tables(path, INNER)
    ratio = np.exp(rows.log_small - rows.log_large)[1:]
    large = VariationalBound(path, INNER, "large").term(x0, x, estimate, step)
    np.testing.assert_allclose(
        large, 0.5 * (ratio - 1 - np.log(ratio)) / np.log(2), rtol=64 * EPS[False], atol=EPS[False]
    )


@every_path
def test_learned_variances_meet_the_fixed_ones_at_both_ends_and_leave_their_place_in_the_logarithm(path):
    x, step = jnp.zeros((len(INNER), 2)), jnp.arange(len(INNER))
    bound, rows = VariationalBound(path, INNER, "range"), tables(path, INNER)
    for share, expected in (
        (-1.0, rows.log_small),
        (1.0, rows.log_large),
        (0.0, (rows.log_small + rows.log_large) / 2),
    ):
        got = bound.log_variance(jnp.full_like(x, share), x, step)
        np.testing.assert_allclose(got, np.stack([expected] * 2, axis=1), rtol=8 * EPS[False], atol=8 * EPS[False])
    channels = jnp.asarray(RNG.normal(size=x.shape), jnp.float32)
    np.testing.assert_array_equal(VariationalBound(path, INNER, "log").log_variance(channels, x, step), channels)
    with pytest.raises(UserError, match="learn_sigma"):
        bound.log_variance(None, x, step)


def test_divergence_is_that_of_gaussians():
    p, q = Gaussian(jnp.asarray([[0.3]]), jnp.asarray([[0.7]])), Gaussian(jnp.asarray([[-0.2]]), jnp.asarray([[1.9]]))
    got = kl(p.mean - q.mean, 2 * jnp.log(p.std), 2 * jnp.log(q.std))
    np.testing.assert_allclose(got, kl_of_gaussians(p, q), rtol=16 * EPS[False])


@pytest.mark.parametrize("decoder, error", [("exact", 1e-5), ("tanh", 1e-3)])
@pytest.mark.parametrize("levels, low", [(256, -1.0), (5, 0.0)])
def test_levels_have_the_probability_of_their_bins_and_exhaust_it(decoder, error, levels, low):
    bound = VariationalBound(Linear(), INNER, "small", decoder=decoder, low=low, high=1.0, levels=levels)
    x0 = jnp.linspace(low, 1.0, levels)[:, None]
    half = (1.0 - low) / (levels - 1) / 2
    for mean, std in ((0.3, 0.2), (1.4, 0.05), (-0.9, 0.5)):
        log_p = bound.log_likelihood(x0, jnp.full_like(x0, mean), jnp.full_like(x0, np.log(std)))
        edges = np.concatenate([[-np.inf], np.linspace(low, 1.0, levels)[1:] - half, [np.inf]])
        np.testing.assert_allclose(np.exp(log_p[:, 0]), np.diff(scipy.stats.norm.cdf(edges, mean, std)), atol=error)
        np.testing.assert_allclose(np.exp(np.asarray(log_p, np.float64)).sum(), 1.0, atol=1e-4)


def test_the_exact_decoder_is_exact_far_from_the_mean_and_the_published_one_has_a_floor():
    x0 = jnp.asarray([[-1.0], [0.0], [1.0]])
    mean, log_std = jnp.full_like(x0, 0.5), jnp.full_like(x0, np.log(0.01))
    bounds = {d: VariationalBound(Linear(), INNER, "small", decoder=d, levels=3) for d in ("exact", "tanh")}
    # the level 0 lies in (-0.5, 0.5): half of the law; -1 below -0.5, 100 deviations away; 1 the other half.
    exact = bounds["exact"].log_likelihood(x0, mean, log_std)[:, 0]
    np.testing.assert_allclose(exact, [scipy.stats.norm.logcdf(-100.0), np.log(0.5), np.log(0.5)], rtol=1e-5)
    assert np.isclose(bounds["tanh"].log_likelihood(x0, mean, log_std)[0, 0], np.log(1e-12))
    slope = jax.grad(lambda m: jnp.sum(bounds["exact"].log_likelihood(x0, m, log_std)))(mean)
    assert np.isfinite(slope).all() and slope[0, 0] < 0  # a mean nearer to the data is likelier


def test_the_sum_of_the_terms_bounds_the_negative_log_likelihood():
    """Three steps, one pixel of five levels, a model p that is not the data's: -log2 p by quadrature."""
    path, levels, n = DDPM("linear", 3, 0.6, 2.4), 5, 3
    bound = VariationalBound(path, tuple(path.times().tolist()), "small", decoder="exact", levels=levels)
    alpha, sigma = (np.asarray(f(jnp.asarray(bound.times)), np.float64) for f in (path.alpha, path.sigma))
    rows = tables(path, bound.times)

    def guess(x, i):  # of x0: not the posterior mean of anything
        return np.tanh(x * (1.0 - 0.2 * i))

    grid = np.linspace(-9, 9, 1201)
    density = scipy.stats.norm.pdf(grid, 0, sigma[-1])  # p(x_n)
    for i in range(n - 1, 0, -1):
        mean = rows.on_x_t[i] * grid + rows.on_x0[i] * guess(grid, i)
        kernel = scipy.stats.norm.pdf(grid[:, None], mean[None, :], np.exp(rows.log_small[i] / 2))
        density = scipy.integrate.trapezoid(kernel * density, grid, axis=1)
    assert abs(scipy.integrate.trapezoid(density, grid) - 1) < 1e-6
    # E_q of every term by Gauss-Hermite quadrature over x_t | x_0.
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    for level in np.linspace(-1, 1, levels):
        mean, log_std = guess(grid, 0)[:, None], np.full((len(grid), 1), rows.log_small[0] / 2)
        x0 = jnp.full((len(grid), 1), level, jnp.float32)
        log_p = bound.log_likelihood(x0, jnp.asarray(mean, jnp.float32), jnp.asarray(log_std, jnp.float32))[:, 0]
        exact = -np.log2(scipy.integrate.trapezoid(np.exp(np.asarray(log_p, np.float64)) * density, grid))
        total = float(bound.prior(x0)[0])
        for i in range(n):
            x = alpha[i] * level + sigma[i] * nodes[:, None]
            estimate = Estimate(jnp.asarray(guess(x, i), jnp.float32), jnp.zeros(x.shape))
            terms = bound.term(x0[: len(x)], jnp.asarray(x, jnp.float32), estimate, jnp.full(len(x), i))
            total += np.asarray(terms, np.float64) @ weights / weights.sum()
        print(f"level {level:4.1f}: -log2 p = {exact:.4f}, bound {total:.4f}")
        assert exact <= total < exact + 3


def test_the_prior_term_is_the_divergence_of_the_last_marginal():
    path, x0 = Linear(), jnp.asarray([[0.5, -1.0]])
    bound = VariationalBound(path, (0.3, 0.8), "small")
    squares = (0.2 * np.asarray(x0)) ** 2
    np.testing.assert_allclose(bound.prior(x0), [(squares / (2 * 0.64)).mean() / np.log(2)], rtol=1e-5)
    other = 0.5 * (squares + 0.64 - 1 - np.log(0.64))
    np.testing.assert_allclose(bound.prior(x0, std=1.0), [other.mean() / np.log(2)], rtol=1e-5)


@pytest.mark.parametrize(
    "times, complaint", [((0.5,), "two or more"), ((0.5, 0.2), "ascending"), ((0.0, 0.5), "stop short")]
)
def test_a_chain_without_a_bound_is_refused_in_one_line(times, complaint):
    with pytest.raises(UserError, match=complaint) as error:
        VariationalBound(Linear(), times)
    assert "\n" not in str(error.value)
