"""log p by the probability-flow ODE against densities known in closed form."""

import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.stats import multivariate_normal, norm

from sampling.base import example_keys
from sampling.flow import METHODS, SAFETY, Solver, flow, solve_flow
from sampling.likelihood import bits_per_dim, log_likelihood, probes
from score_flow.config.loading import load
from score_flow.config.options import Config, EvalOptions
from score_flow.data.scaling import Scaling
from score_flow.numerics import value_and_divergence
from score_flow.paths.gvp import GVP
from score_flow.paths.linear import Linear
from score_flow.paths.vp import VP
from tests.discover import builds, thinned
from tests.exact import CorrelatedDenoiser, GaussianDenoiser, MixtureDenoiser

KEYS, FINE = example_keys(0, jnp.arange(16)), Solver("tsit5", 1e-5, 1e-5)
PATHS = builds("score_flow.paths")


def bits_of_a_gaussian(name, solver):
    """(bits/dim by the whole likelihood path, by the closed form of the flow, of the density at t_min)."""
    path, t_min = PATHS[name](), 1e-4
    t_max = 0.999 if name == "ddpm" else 1.0
    denoiser = GaussianDenoiser(path)
    (m0, s0), (m1, s1) = denoiser.marginal(t_min), denoiser.marginal(t_max)
    x0 = m0 + s0 * jax.random.normal(jax.random.key(1), (16, 4, 4, 1))
    f = partial(log_likelihood, KEYS, denoiser, solver=solver, t_min=t_min, t_max=t_max)
    result = jax.jit(f)(x0)
    assert np.asarray(result.ok).all()
    x, sigma = np.asarray(x0, np.float64), float(path.sigma(jnp.asarray(t_max)))
    z = m1 + s1 / s0 * (x - m0)
    expected = norm.logpdf(z, 0, sigma) + math.log(s1 / s0), norm.logpdf(x, m0, s0)
    found = bits_per_dim(np.asarray(result.log_prob, np.float64), 16, 0.0)
    closed, density = (bits_per_dim(values.sum(axis=(1, 2, 3)), 16, 0.0) for values in expected)
    print(f"{name}: largest error {np.abs(found - closed).max():.1e} bits/dim, {int(result.n_evaluations)} calls")
    return found, closed, density


@pytest.mark.parametrize("name", thinned(PATHS, 2))
def test_bits_of_a_gaussian(name):
    """N(mu, s^2 I) through the whole likelihood path at 1e-5 tolerances: error <= 1e-5 bits/dim, for every path.

    The closed form holds the solver to account alone: where the path ends short of pure noise, the exact latent is
    scored under the same prior, N(0, sigma(1)^2 I).
    """
    found, closed, density = bits_of_a_gaussian(name, FINE)
    # Where log SNR is linear the flow changes exponentially in t, and a tolerance of every step is added to the next.
    assert abs((found - closed).mean()) <= (2e-5 if name == "log_snr" else 1e-5)
    if name in ("linear", "gvp"):  # these end in pure noise: no prior mismatch, the density itself comes out
        assert abs((found - density).mean()) <= 1e-5


@pytest.mark.parametrize("name", thinned(PATHS, 2))
def test_the_default_on_a_gaussian(name):
    """What an evaluation solves with where its config is silent: 5e-4 bits/dim rms an image, as of trained networks.

    On ve, where x grows by a factor of 167, each step adds a tolerance of it to the prior's exponent.
    """
    solver = Solver(**EvalOptions().solver.to_dict())
    assert solver == Solver()
    found, closed, _ = bits_of_a_gaussian(name, solver)
    assert np.sqrt(np.mean((found - closed) ** 2)) <= (2e-3 if name == "ve" else 5e-4)


def test_a_run_keeps_the_solver_of_its_config(tmp_path):
    """The default was tsit5 at 1e-5 in all runs whose config.json says so."""
    settings = Config().to_dict()
    settings["eval"]["solver"] |= {"method": "tsit5", "rtol": 1e-5, "atol": 1e-5}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    kept = load(str(tmp_path / "config.json"), []).eval.solver
    assert Solver(**kept.to_dict()) == FINE != Solver()


@pytest.mark.parametrize("path", thinned([GVP(), VP()], 2), ids=["gvp", "vp"])
def test_correlated_gaussian_with_exact_divergence(path):
    """Within 1e-4 bits/dim for every point, and Hutchinson probes agree within 3 standard errors."""
    d = 16
    rotation = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (d, d)))[0]
    denoiser = CorrelatedDenoiser(path, rotation, jnp.geomspace(0.02, 1.0, d))
    alpha, sigma = (float(f(jnp.asarray(1e-4))) for f in (path.alpha, path.sigma))
    covariance = np.asarray(rotation * (alpha**2 * denoiser.variances + sigma**2) @ rotation.T, np.float64)
    x0 = jax.random.normal(jax.random.key(1), (16, d)) @ jnp.linalg.cholesky(jnp.asarray(covariance)).T
    expected = multivariate_normal(cov=covariance).logpdf(np.asarray(x0, np.float64))

    def estimate(probe, n):
        f = jax.jit(partial(log_likelihood, KEYS, denoiser, solver=FINE, t_min=1e-4, probe=probe, n_probes=n))
        return np.asarray(f(x0).log_prob, np.float64)

    exact = estimate("exact", 1)  # 16 points x 16 probes below: 256 in all
    mismatch = (
        2e-4 if isinstance(path, VP) else 0.0
    )  # VP keeps alpha(1)^2 = 4e-5 of the data: nats a dimension, at most
    assert np.abs(exact - expected).max() / d / math.log(2) <= 1e-4 + mismatch
    for probe in ("rademacher", "gaussian"):
        error = estimate(probe, 16) - exact
        assert abs(error.mean()) < 3 * error.std(ddof=1) / math.sqrt(len(error))


def test_mixture_with_exact_divergence():
    means = 0.7 * jax.random.rademacher(jax.random.key(0), (3, 16), jnp.float32)
    denoiser = MixtureDenoiser(Linear(), means)
    x0 = means[jnp.arange(16) % 3] + 0.2 * jax.random.normal(jax.random.key(1), (16, 16))
    result = jax.jit(partial(log_likelihood, KEYS, denoiser, solver=FINE, t_min=1e-4, probe="exact"))(x0)
    assert np.abs(np.asarray(result.log_prob - denoiser.log_prob(x0, 1e-4))).max() / 16 / math.log(2) <= 1e-4


def test_end_state_agrees_with_scipy():
    """Against scipy's RK45 (the same Dormand-Prince pair) at equal tolerances, in float64: states to 1e-5, calls alike.

    In float32 these tolerances are a few roundings, which then decide about steps.
    """
    tolerance = 1e-6
    solver = Solver("dopri5", tolerance, tolerance, per_example=False, control="integral")
    with jax.enable_x64(True):
        denoiser = MixtureDenoiser(VP(), jnp.asarray([[0.5] * 8, [-0.5] * 8]))
        x0, velocity = jax.random.normal(jax.random.key(0), (4, 8)), jax.jit(lambda x, t: denoiser.velocity(x, t))
        ours, stats = flow(denoiser, x0, solver, t0=1e-2, t1=1.0)

        def rhs(t, y):
            return np.asarray(velocity(jnp.asarray(y).reshape(4, 8), jnp.asarray(t))).ravel()

        ends = (1e-2, 1.0)
        theirs = solve_ivp(rhs, ends, np.asarray(x0).ravel(), rtol=tolerance, atol=tolerance, method="RK45")
    assert ours.dtype == np.float64
    np.testing.assert_allclose(np.asarray(ours).ravel(), theirs.y[:, -1], atol=1e-5)
    print(f"calls: ours {int(stats.n_evaluations)}, scipy {theirs.nfev}")
    assert int(stats.n_evaluations) <= 0.9 / SAFETY * theirs.nfev  # steps as long as scipy's but for its safety of 0.9


@pytest.mark.parametrize("method", thinned(METHODS, 3))
def test_calls_are_counted(method):
    """The count of right-hand sides is the number of times that they ran, rejected steps included."""
    calls = []

    def field(t, y, args):
        jax.debug.callback(lambda: calls.append(1))
        return -8.0 * y * jnp.cos(20.0 * t)

    for n_steps in (7,) if method == "euler" else (7, 0):
        calls.clear()
        solver = Solver(method, 1e-3, 1e-3, n_steps=n_steps, per_example=False)
        _, stats = solve_flow(field, Linear(), jnp.ones((2, 3)), solver=solver, t0=1.0, t1=0.1)
        jax.effects_barrier()
        assert int(stats.n_evaluations) == len(calls)


def test_divergence_of_a_linear_map():
    """trace(A) exactly from the basis, and without bias from probes."""
    a = jax.random.normal(jax.random.key(0), (6, 6))
    x = jax.random.normal(jax.random.key(1), (16, 6))
    value, divergence = value_and_divergence(lambda x: x @ a.T, x, probes(KEYS, "exact", 1, shape=(6,)))
    np.testing.assert_allclose(value, x @ a.T, rtol=1e-6)
    np.testing.assert_allclose(divergence, jnp.full(16, jnp.trace(a)), rtol=1e-5)
    for kind in ("rademacher", "gaussian"):
        _, estimates = value_and_divergence(lambda x: x @ a.T, x, probes(KEYS, kind, 64, shape=(6,)))
        error = np.asarray(estimates) - float(jnp.trace(a))
        assert abs(error.mean()) < 3 * error.std(ddof=1) / 4


def test_offset_does_not_depend_on_the_range():
    """The same images in [0, 1] and in [-1, 1] have the same bits/dim to 1e-6: the offset undoes the scaling."""
    x01 = np.random.RandomState(0).rand(100, 64)
    log_prob01 = norm.logpdf(x01, 0.5, 0.2).sum(axis=1)
    log_prob11 = norm.logpdf(2 * x01 - 1, 0.0, 0.4).sum(axis=1)
    bits = [
        bits_per_dim(lp, 64, Scaling(low, 1.0, 17).bits_offset) for lp, low in ((log_prob01, 0.0), (log_prob11, -1.0))
    ]
    np.testing.assert_allclose(bits[0], bits[1], atol=1e-6)


def test_result_does_not_depend_on_the_batch():
    """Per-example steps: an image alone and among others, to 1e-5 bits/dim (rounding can move a step by a hair)."""
    denoiser = GaussianDenoiser(VP())
    x0 = 0.5 + jnp.geomspace(0.01, 1.0, 16)[:, None] * jnp.ones((16, 5))
    f = jax.jit(lambda keys, x: log_likelihood(keys, denoiser, x, solver=FINE).log_prob)
    together, alone = f(KEYS, x0), jnp.concatenate([f(KEYS[i : i + 1], x0[i : i + 1]) for i in (0, 7, 15)])
    difference = np.abs(np.asarray(together[jnp.array([0, 7, 15])] - alone)) / 5 / math.log(2)
    print(f"largest difference {difference.max():.1e} bits/dim")
    assert difference.max() <= 1e-5


def test_failure_is_reported_not_raised_inside_jit():
    denoiser = GaussianDenoiser(VP())
    result = jax.jit(lambda x: log_likelihood(KEYS, denoiser, x, solver=Solver(max_steps=2)))(jnp.ones((16, 4)))
    assert not np.asarray(result.ok).any()
