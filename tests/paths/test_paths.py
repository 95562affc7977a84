"""Properties of every path, and the published closed forms of each."""

import math

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.stats

from score_flow.errors import UserError
from score_flow.numerics import expand
from score_flow.paths.base import Path
from score_flow.paths.ddpm import DDPM
from score_flow.paths.gvp import GVP
from score_flow.paths.linear import Linear
from score_flow.paths.subvp import SubVP
from score_flow.paths.ve import VE
from score_flow.paths.vp import VP
from tests.paths.variants import EPS, INSIDE, PATHS, TIMES, coefficients, evaluate

every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
both_dtypes = pytest.mark.parametrize("x64", [False, True], ids=["float32", "float64"])


@every_path
@both_dtypes
def test_finite_and_from_data_to_noise(path, x64):
    alpha, sigma = evaluate(lambda t: (path.alpha(t), path.sigma(t)), TIMES, x64=x64)
    assert np.isfinite(alpha).all() and np.isfinite(sigma).all()
    assert (alpha >= 0).all() and (sigma >= 0).all()
    # A path may begin at a finite SNR: with all of the data but what so little noise takes the place of.
    assert abs(alpha[0] - 1) <= EPS[x64] + sigma[0] and not np.signbit(sigma[0])
    assert sigma[0] <= 0.02 * sigma[-1]
    assert alpha[-1] <= 0.15 * sigma[-1]


@every_path
def test_float32_agrees_with_float64(path):
    # A rounded t costs eps x the relative slope, a rounded logarithm eps x itself, an elementary function one eps.
    exact, single = coefficients(path, INSIDE), coefficients(path, INSIDE, x64=False)
    for name in ("alpha", "sigma"):
        condition = 1 + np.abs(np.log(exact[name])) + np.abs(INSIDE * exact["d" + name] / exact[name])
        assert np.max(np.abs(single[name] / exact[name] - 1) / condition) <= 4 * EPS[False], name


@pytest.mark.parametrize("path, alpha, sigma", [
    (Linear(), lambda t: 1 - t, lambda t: t),
    (Linear(noise_scale=2.0), lambda t: 1 - t, lambda t: 2 * t),
    (GVP(), lambda t: np.sin(np.pi / 2 * (1 - t)), lambda t: np.sin(np.pi / 2 * t)),
], ids=["linear", "linear-twice", "gvp"])  # fmt: skip
def test_interpolants_hold_their_relative_precision_at_the_end_where_they_vanish(path, alpha, sigma):
    single = coefficients(path, INSIDE, x64=False)
    np.testing.assert_allclose(single["alpha"], alpha(INSIDE.astype(np.float64)), rtol=4 * EPS[False])
    np.testing.assert_allclose(single["sigma"], sigma(INSIDE.astype(np.float64)), rtol=4 * EPS[False])


@every_path
@both_dtypes
def test_log_snr_decreases_and_is_inverted(path, x64):
    exact = coefficients(path, INSIDE)
    log_snr, of_coefficients = evaluate(lambda t: (path.log_snr(t), path.at(t).log_snr), INSIDE, x64=x64)
    np.testing.assert_array_equal(log_snr, of_coefficients)

    # What a rounding of t and of the two logarithms does to log SNR, and through its slope to the time.
    logs = np.abs(np.log(exact["alpha"])) + np.abs(np.log(exact["sigma"]))
    error = 4 * EPS[x64] * (1 + logs + INSIDE * exact["rate"])
    told_apart = np.diff(exact["log_snr"]) < -(error[1:] + error[:-1])
    assert told_apart.mean() > 0.95 and (np.diff(log_snr)[told_apart] < 0).all()
    t = evaluate(path.inverse_log_snr, log_snr, x64=x64)
    assert np.max(np.abs(t - INSIDE) / (error / exact["rate"] + EPS[x64] * INSIDE)) <= 1


def test_inverse_log_snr_out_of_range_gives_an_end():
    ends = VP().inverse_log_snr(jnp.asarray([np.inf, -np.inf]), 0.125, 0.75)
    np.testing.assert_allclose(ends, [0.125, 0.75], rtol=EPS[False])


@every_path
def test_moments_obey_the_sde(path):
    """d alpha/dt = f alpha and d sigma^2/dt = 2 f sigma^2 + g^2."""
    t = np.array([0.00345, 0.12345, 0.50045, 0.78945, 0.96045])  # between the knots of every chain
    c = coefficients(path, t)
    derivatives = {"alpha": c["drift"] * c["alpha"], "variance": 2 * c["drift"] * c["sigma"] ** 2 + c["g2"]}

    def moments(t):
        return evaluate(lambda t: {"alpha": path.alpha(t), "variance": path.sigma(t) ** 2}, t)

    h = 1e-5
    before, after, long_before, long_after = (moments(t + steps * h) for steps in (-1, 1, -2, 2))
    for name, derivative in derivatives.items():
        difference = (after[name] - before[name]) / (2 * h)
        # A step of 2h has four times the truncation error of h; rounding is eps |f| / h.
        truncation = np.abs(difference - (long_after[name] - long_before[name]) / (4 * h))
        error = truncation + 4 * EPS[True] * np.abs(after[name]) / h
        assert (np.abs(difference - derivative) <= error).all(), name
        assert (error <= 1e-6 * (1 + np.abs(derivative))).all(), name  # the comparison above means something


@every_path
@both_dtypes
def test_det_is_positive_and_g2_is_not_negative(path, x64):
    c = coefficients(path, TIMES[1:], x64)
    assert np.isfinite(c["det"]).all() and (c["det"] > 0).all()
    assert not np.isnan(c["g2"]).any() and (c["g2"] > 0).all()  # infinite at t = 1 of an interpolant


@every_path
def test_equal_paths_share_one_compilation(path):
    traces = []

    def twice(path, x):
        traces.append(path)
        return 2 * x

    jitted = jax.jit(twice, static_argnums=0)
    twin = type(path)(**{name: getattr(path, name) for name in path.__dataclass_fields__})
    assert twin is not path and twin == path and hash(twin) == hash(path)
    jitted(path, 1.0), jitted(twin, 1.0)
    assert len(traces) == 1
    assert all(path != other for other in PATHS.values() if other is not path)


@every_path
def test_derived_quantities_are_not_overridden(path):
    final = {name for name, value in vars(Path).items() if getattr(value, "__final__", False)}
    assert final == {"at", "log_snr", "inverse_log_snr", "perturb", "prior_sample", "prior_log_prob"}
    for name in final:
        assert getattr(type(path), name) is getattr(Path, name)


@every_path
def test_perturb_is_the_marginal(path):
    x0, noise = jnp.asarray(np.random.default_rng(0).normal(size=(2, len(TIMES), 6)), jnp.float32)
    t = jnp.asarray(TIMES)
    alpha, sigma = expand(path.alpha(t), x0), expand(path.sigma(t), x0)
    x = path.perturb(x0, noise, t)
    atol = 4 * EPS[False] * float(jnp.abs(x).max())
    np.testing.assert_allclose(x, alpha * x0 + sigma * noise, atol=atol)
    np.testing.assert_allclose(path.perturb(x0, noise, t[64])[64], x[64], atol=atol)  # one time for the batch


@every_path
@pytest.mark.parametrize("t_max", [1.0, 0.7])
def test_prior_log_prob_and_sample(path, t_max):
    with jax.enable_x64(True):
        sigma = float(path.sigma(jnp.asarray(t_max)))
        z = sigma * np.random.default_rng(0).normal(size=(3, 4, 5))
        expected = scipy.stats.norm.logpdf(z, scale=sigma).sum(axis=(1, 2))
        np.testing.assert_allclose(path.prior_log_prob(jnp.asarray(z), t_max), expected, rtol=1e-13)
    keys = jax.random.split(jax.random.key(0), 500)
    draws = np.asarray(path.prior_sample(keys, (4, 5), t_max))
    assert draws.shape == (500, 4, 5)
    assert abs(draws.mean() / sigma) <= 4 / math.sqrt(draws.size)
    assert abs(draws.std() / sigma - 1) <= 4 / math.sqrt(2 * draws.size)
    # A draw depends on its key only.
    np.testing.assert_array_equal(path.prior_sample(keys[3:4], (4, 5), t_max)[0], draws[3])


# The published forms.

BETAS = [(0.1, 20.0), (0.2, 15.0)]
T = np.linspace(0.01, 0.99, 50)


def assert_forms(path, alpha, sigma, drift, g2):
    c = coefficients(path, T)
    for name, expected in (("alpha", alpha), ("sigma", sigma), ("drift", drift), ("g2", g2)):
        np.testing.assert_allclose(c[name], np.broadcast_to(expected, T.shape), rtol=1e-11, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("low, high", BETAS)
def test_vp(low, high):
    beta, integral = low + T * (high - low), low * T + (high - low) * T**2 / 2
    assert_forms(VP(low, high), np.exp(-integral / 2), np.sqrt(1 - np.exp(-integral)), -beta / 2, beta)


@pytest.mark.parametrize("low, high", BETAS)
def test_subvp(low, high):
    beta, integral = low + T * (high - low), low * T + (high - low) * T**2 / 2
    g2 = beta * (1 - np.exp(-2 * integral))
    assert_forms(SubVP(low, high), np.exp(-integral / 2), 1 - np.exp(-integral), -beta / 2, g2)


@pytest.mark.parametrize("low, high", [(0.01, 50.0), (0.02, 7.0)])
def test_ve(low, high):
    sigma = low * (high / low) ** T
    assert_forms(VE(low, high), 1.0, sigma, 0.0, sigma**2 * 2 * math.log(high / low))
    sigma = low + T * (high - low)
    assert_forms(VE(low, high, "linear"), 1.0, sigma, 0.0, 2 * sigma * (high - low))


def test_interpolants():
    assert_forms(Linear(), 1 - T, T, -1 / (1 - T), 2 * T / (1 - T))
    tangent = np.tan(np.pi / 2 * T)
    assert_forms(GVP(), np.cos(np.pi / 2 * T), np.sin(np.pi / 2 * T), -np.pi / 2 * tangent, np.pi * tangent)
    for path, det in ((Linear(), 1.0), (GVP(), np.pi / 2)):
        np.testing.assert_allclose(coefficients(path, TIMES, x64=False)["det"], det, rtol=4 * EPS[False])


CHAINS = {name: path for name, path in PATHS.items() if isinstance(path, DDPM)}


@pytest.mark.parametrize("path", CHAINS.values(), ids=CHAINS.keys())
def test_ddpm_passes_through_the_chain(path):
    betas, times = path.table(), path.times()
    abar, n = np.cumprod(1 - betas), len(betas)
    # n logarithms are added, and a rounding of t moves log alpha by the slope of its interval, n beta/2 on average.
    rtol = 4 * EPS[True] * n * (1 - np.log(1 - betas))
    alpha, sigma = evaluate(lambda t: (path.alpha(t), path.sigma(t)), times)
    assert (np.abs(alpha**2 / abar - 1) <= rtol).all()
    assert (np.abs(sigma**2 / (1 - abar) - 1) <= rtol / (1 - abar)).all()
    # Between its knots log alpha is smooth and falls: the rate does not jump from one interval to the next.
    inner, h = times[:-1], 1e-9 / n
    left, right = (coefficients(path, inner + side)["g2"] for side in (-h, h))
    assert (left > 0).all() and (np.abs(right - left) <= 1e-6 * (right + left)).all()


def test_ddpm_tables():
    np.testing.assert_allclose(DDPM().table(), np.linspace(1e-4, 0.02, 1000), rtol=1e-14)
    np.testing.assert_allclose(DDPM(n=100).table(), np.linspace(1e-3, 0.2, 100), rtol=1e-14)
    cosine = DDPM(schedule="cosine", n=50).table()
    abar = np.cos((np.arange(51) / 50 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(np.cumprod(1 - cosine[:-1]), abar[1:-1] / abar[0], rtol=1e-12)
    assert cosine[-1] == 0.999
    own = DDPM(betas=(0.1, 0.3), schedule="cosine", n=7)
    np.testing.assert_array_equal(own.table(), [0.1, 0.3])
    np.testing.assert_array_equal(own.times(), [0.5, 1.0])


@pytest.fixture
def unchecked_types():
    """Without the run-time checks of annotations, as in a real run: a Literal field reaches its own check."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("make, named", [
    (lambda: DDPM(schedule="cosin"), "'cosin'"),
    (lambda: DDPM(n=0), "n is 0"),
    (lambda: DDPM(n=20), "(0, 1)"),
    (lambda: DDPM(betas=(0.1, 1.5)), "1.5"),
    (lambda: VE(schedule="quadratic"), "'quadratic'"),
    (lambda: VE(sigma_min=2.0, sigma_max=1.0), "2.0 and 1.0"),
], ids=["schedule", "no-steps", "short", "betas", "ve-schedule", "sigmas"])  # fmt: skip
def test_wrong_fields_are_refused_in_one_line(make, named, unchecked_types):
    with pytest.raises(UserError) as caught:
        make()
    assert named in str(caught.value) and "\n" not in str(caught.value)
