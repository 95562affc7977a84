"""The variational bound against densities known in closed form, on every path; and as a job."""

import dataclasses
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from evaluation.jobs import bound
from evaluation.jobs.bound import bound_terms, time_sampler
from sampling.base import example_keys
from sampling.flow import Solver
from sampling.likelihood import log_likelihood
from score_flow.errors import UserError
from score_flow.numerics import mean_and_error
from score_flow.paths.linear import Linear
from score_flow.paths.vp import VP
from score_flow.process.grid import noisy_end
from score_flow.process.prediction import Estimate
from score_flow.process.times import TimeSampler
from tests.discover import thinned
from tests.exact import CorrelatedDenoiser, GaussianDenoiser, MixtureDenoiser
from tests.launch import run
from tests.paths.variants import PATHS

T_MIN, DATA_STD = 1e-4, 0.5


def quadrature(path, t_min, t_max, n):
    """Gauss-Legendre nodes in log SNR as a sampler of times: its weighted mean is the integral's, not an estimate."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    high, low = (float(path.log_snr(jnp.asarray(t))) for t in (t_min, t_max))
    t = path.inverse_log_snr(jnp.asarray(low + (high - low) * (1 + nodes) / 2), t_min, t_max)
    c = path.at(t)
    weight = (high - low) / 2 * n * jnp.asarray(weights) / ((t_max - t_min) * c.g2 / c.sigma**2)
    return TimeSampler(lambda: (), lambda state, key, b: (t, weight), lambda state, t, losses: state)


def correlated(path, d=4):
    rotation = jnp.linalg.qr(jnp.asarray(np.random.RandomState(0).randn(d, d), float))[0]
    return CorrelatedDenoiser(path, rotation, jnp.geomspace(0.02, 1.0, d))


def gaps(denoiser, x0, noise, t_min, t_max):
    """Nats that the bound of exact Gaussian posterior means is above -log p(x0), at x_eps and x_T of some noise.

    p_T is not quite the prior, and p(x0 | x_eps) has not quite the covariance (sigma/alpha)^2 I.
    """
    path, d = denoiser.path, x0.shape[1]
    covariance = np.asarray(denoiser.rotation * denoiser.variances @ denoiser.rotation.T, np.float64)

    def at(t):
        alpha, sigma = (float(f(jnp.asarray(t, float))) for f in (path.alpha, path.sigma))
        return alpha, sigma, alpha * np.asarray(x0) + sigma * np.asarray(noise)

    alpha, sigma, x = at(t_max)
    of_data = multivariate_normal(cov=alpha**2 * covariance + sigma**2 * np.eye(d)).logpdf(x)
    prior = of_data - multivariate_normal(cov=sigma**2 * np.eye(d)).logpdf(x)
    alpha, sigma, x = at(t_min)
    gain = alpha * covariance @ np.linalg.inv(alpha**2 * covariance + sigma**2 * np.eye(d))
    error = np.asarray(x0) - x @ gain.T
    exact = multivariate_normal(cov=covariance - alpha * gain @ covariance).logpdf(error)
    return prior + exact - multivariate_normal(cov=(sigma / alpha) ** 2 * np.eye(d)).logpdf(error)


@pytest.mark.parametrize("case", thinned(itertools.product((True, False), PATHS), 15), ids=str)
def test_exact_scores_give_the_likelihood(case, monkeypatch):
    """A correlated Gaussian by quadrature: both forms, to 1e-9 bits/dim in float64 and 1e-5 in float32.

    Every term is quadratic in the noise: its mean is that over +-sqrt(d) e_i.
    """
    x64, name = case
    with jax.enable_x64(x64), monkeypatch.context() as patch:
        path, d, n = PATHS[name], 4, 3
        denoiser, t_max = correlated(path, d), noisy_end(path, 1.0)
        x0 = jnp.repeat(jnp.asarray(np.random.RandomState(1).randn(n, d), float) * 0.5, 2 * d, axis=0)
        noise = jnp.tile(math.sqrt(d) * jnp.concatenate([jnp.eye(d, dtype=float), -jnp.eye(d, dtype=float)]), (n, 1))
        patch.setattr(bound, "normal", lambda keys, shape, i: noise)
        keys, times = example_keys(0, jnp.arange(len(x0))), quadrature(path, T_MIN, t_max, 160)

        def both(x0):
            args = {"times": times, "t_min": T_MIN, "t_max": t_max, "n_times": 160, "data_std": DATA_STD}
            return [sum(bound_terms(keys, denoiser, x0, **args, form=form, probe="exact")) for form in ("dsm", "ssm")]

        covariance = np.asarray(denoiser.rotation * denoiser.variances @ denoiser.rotation.T, np.float64)
        exact = gaps(denoiser, x0, noise, T_MIN, t_max) - multivariate_normal(cov=covariance).logpdf(np.asarray(x0))
        for form, nats in zip(("dsm", "ssm"), jax.jit(both)(x0), strict=True):
            error = (np.asarray(nats, np.float64) - exact).reshape(n, -1).mean(axis=1) / d / math.log(2)
            print(f"{name} {form}: {np.abs(error).max():.1e} bits/dim")
            assert np.abs(error).max() <= (1e-9 if x64 else 1e-5)


@pytest.mark.slow
def test_estimators_agree_and_importance_has_less_variance():
    """A mixture in 16 dimensions: all means are -log p(x0) within 3 standard errors; known parts pay in variance."""
    means = 0.7 * jax.random.rademacher(jax.random.key(0), (3, 16), jnp.float32)
    denoiser = MixtureDenoiser(VP(), means)
    x0 = means[jnp.arange(256) % 3] + 0.2 * jax.random.normal(jax.random.key(1), (256, 16))
    keys, exact = example_keys(0, jnp.arange(len(x0))), np.asarray(-denoiser.log_prob(x0, 0.0), np.float64)
    samplers = {importance: time_sampler(VP(), T_MIN, 1.0, importance=importance) for importance in (True, False)}
    cases = [("dsm", True, DATA_STD), ("dsm", False, DATA_STD), ("dsm", True, 1e4), ("ssm", True, DATA_STD)]

    def nats(x0, form, importance, data_std):
        settings = {"n_times": 16, "data_std": data_std, "form": form}
        return sum(bound_terms(keys, denoiser, x0, times=samplers[importance], t_min=T_MIN, t_max=1.0, **settings))

    spread = {}
    for case, got in zip(cases, jax.jit(lambda x0: [nats(x0, *settings) for settings in cases])(x0), strict=True):
        error = (np.asarray(got, np.float64) - exact) / 16 / math.log(2)
        spread[case] = error.std(ddof=1)
        print(f"{case}: {error.mean():.4f} +- {spread[case] / 16:.4f} bits/dim")
        assert abs(error.mean()) < 3 * spread[case] / 16
    assert spread["dsm", True, DATA_STD] < 0.7 * spread["dsm", False, DATA_STD]
    assert spread["dsm", True, DATA_STD] < 0.5 * spread["dsm", True, 1e4]


@dataclasses.dataclass(frozen=True)
class Wavering(GaussianDenoiser):
    """One whose guesses are off by a ripple that turns with log SNR: the ODE averages it out, the bound does not."""

    def estimate(self, x, t):
        c = self.path.at(t).expand(x)
        noise = super().estimate(x, t).noise + 0.5 * c.alpha * jnp.sin(2 * x + 8 * c.log_snr)
        return Estimate((x - c.sigma * noise) / c.alpha, noise)


def test_a_wrong_model_is_bounded_from_above():
    """The bound is above the likelihood by the ODE."""
    denoiser, d = Wavering(VP()), 4
    keys, times = example_keys(0, jnp.arange(256)), time_sampler(VP(), T_MIN, 1.0, importance=True)
    x0 = denoiser.mean + denoiser.std * jax.random.normal(jax.random.key(1), (256, d))
    settings = {"times": times, "t_min": T_MIN, "t_max": 1.0, "n_times": 64, "data_std": DATA_STD}
    terms = jax.jit(lambda x0: bound_terms(keys, denoiser, x0, **settings))(x0)
    solver = Solver("heun", n_steps=300, grid="log_snr", per_example=False)
    ode = jax.jit(lambda x0: log_likelihood(keys, denoiser, x0, solver=solver, t_min=T_MIN, probe="exact").log_prob)(x0)
    gap, error = mean_and_error(np.asarray(sum(terms) + ode, np.float64) / d / math.log(2))
    print(f"{gap:.3f} +- {error:.3f} bits/dim")
    assert gap > 3 * error


def test_ends():
    """Paths that end in pure noise stop where e^-10 of the signal is left; one that starts at the data is refused."""
    for path in PATHS.values():
        t_max = noisy_end(path, 1.0)
        assert t_max == 1.0 or abs(float(path.log_snr(jnp.asarray(t_max))) + 10) < 1e-2
    assert noisy_end(Linear(), 1.0) < 1.0 == noisy_end(VP(), 1.0)
    with pytest.raises(UserError, match="t_min"):
        time_sampler(VP(), 0.0, 1.0, importance=True)


def test_prior_is_the_paths_own():
    """The mean over x_T = alpha x_0 +- sigma of log q(x_T | x_0) - log p(x_T), in float64."""
    with jax.enable_x64(True):
        for path in (VP(), PATHS["ve"], PATHS["ve-linear"]):
            x0, one = jnp.asarray(np.random.RandomState(0).randn(3, 4)), jnp.ones(3)
            log_p = sum(path.prior_log_prob(path.perturb(x0, sign * jnp.ones_like(x0), one)) for sign in (1, -1)) / 2
            entropy = 2 * (1 + jnp.log(2 * jnp.pi * path.sigma(jnp.asarray(1.0)) ** 2))
            np.testing.assert_allclose(bound.prior(path, x0, 1.0), -entropy - log_p, rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("bound")
    run(workdir, "--config.training.n_iters=10")
    return workdir


def evaluated(workdir, folder, *flags, expected=0):
    flags = [*flags, "--config.eval.jobs=('bound',)", "--config.training.n_iters=10", f"--eval_folder={folder}"]
    flags += [f"--config.eval.enable_{job}=False" for job in ("loss", "sampling", "bpd")]
    output = run(workdir, *flags, mode="eval", expected=expected)
    return output if expected else json.loads((workdir / folder / "10/bound/result.json").read_text())


@pytest.mark.slow
def test_job(trained):
    """On a path that ends in pure noise; batches of two sizes: the same figures, which are those of the kept images."""
    settings = ("--config.eval.bound_times=4", "--config.eval.num_repeats=2")
    one, other = (evaluated(trained, f"b{b}", *settings, f"--config.eval.batch_size={b}") for b in (64, 100))
    with np.load(trained / "b64/10/bound/bound.npz", allow_pickle=False) as arrays:
        bits, total = arrays["bits"], sum(arrays[name] for name in (*bound.Terms._fields, "levels"))
        assert bits.shape == (2, one["n_images"]) and np.ptp(bits, axis=0).min() > 0
        np.testing.assert_allclose(bits, total, rtol=1e-12)
        np.testing.assert_allclose(arrays["levels"], math.log2(17 / 2), rtol=1e-6)  # the digits' levels on [-1, 1]
        np.testing.assert_allclose(bits.mean(), one["bits_per_dim"], rtol=1e-12)
        np.testing.assert_allclose((bits - arrays["offset"]).mean(), one["bits_without_offset"], rtol=1e-9)
    np.testing.assert_allclose(other["bits_per_dim"], one["bits_per_dim"], rtol=1e-5)
    for flag in ("smallest_time=0.0", "dequantizer=decoder"):
        refused = evaluated(trained, "none", f"--config.eval.{flag}", expected=2)
        assert f"config.eval.{flag.split('=')[0]}" in refused.strip().splitlines()[-1]
