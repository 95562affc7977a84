"""The loss of the exact score is its known minimum: for every weighting, prediction, path, law of time and bound."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from score_flow.losses.weightings import WEIGHTINGS
from score_flow.process.bound import tables
from score_flow.process.prediction import PREDICTIONS, Estimate
from score_flow.process.times import TIME_SAMPLERS, LossHistory, log_snr, uniform
from tests.discover import thinned
from tests.losses.test_objective import KEY, NOISE, T_MAX, T_MIN, X0, B, D, N, T, every_path, objective, on_a_chain
from tests.paths.variants import DEFAULTS, EPS, evaluate
from tests.test_model import MEAN, STD, perfect


def least_at(path, weighting, t):
    """The least loss on N(m, s^2 I) at each time, weight alpha^2 s^2 / (alpha^2 s^2 + sigma^2), in float64."""

    def at(t):
        c = path.at(t)
        variance = (c.alpha * STD) ** 2
        return WEIGHTINGS[weighting](c) * variance / (variance + c.sigma**2)

    return evaluate(at, t)


def least(path, weighting, t_min, t_max) -> float:
    """The minimum of the loss: its mean over t."""
    t = t_min * (t_max / t_min) ** np.linspace(0, 1, 1000)  # dense where weights are large
    return np.trapezoid(least_at(path, weighting, t), t) / (t_max - t_min)


@every_path
def test_the_perfect_network_has_the_least_loss(path):
    for weighting in WEIGHTINGS:
        loss, aux = objective(path, "noise", weighting)({}, (), KEY, {"image": X0})
        losses = np.asarray(aux.losses, np.float64)
        assert aux.t.min() >= T_MIN and aux.t.max() <= T_MAX and losses.shape == (B,)
        np.testing.assert_allclose(loss, losses.mean(), rtol=16 * EPS[False])
        error = losses.std() / B**0.5
        assert abs(losses.mean() - least(path, weighting, T_MIN, T_MAX)) <= 3 * error, weighting


@pytest.mark.slow
@every_path
def test_every_prediction_has_the_same_loss(path):
    """At given times and noise, to the rounding of outputs and targets: | |a| - |b| | <= |a - b|, times the gain."""
    c = path.at(T)
    reference = np.sqrt(objective(path, "noise", "simple").at({}, X0, NOISE, T))
    for name, prediction in PREDICTIONS.items():
        zero = jnp.zeros_like(X0)
        parts = [prediction.target(Estimate(*pair), c.expand(X0)) for pair in ((X0, zero), (zero, NOISE))]
        size = sum(np.abs(part).max(axis=1) for part in parts)
        rounding = np.abs(prediction.gain(c)) * size + np.abs(NOISE).max(axis=1)
        for weighting, weight in WEIGHTINGS.items():
            root = np.sqrt(objective(path, name, weighting).at({}, X0, NOISE, T) / weight(c))
            assert (np.abs(root - reference) <= 16 * EPS[False] * rounding).all(), (name, weighting)


OWN_LAWS = ("lognormal", "logit_normal", "shifted")  # part of the objective; of all others the base law is uniform


@pytest.mark.parametrize("path", thinned(DEFAULTS.values(), 3), ids=DEFAULTS)
@pytest.mark.parametrize("name", TIME_SAMPLERS)
def test_every_time_sampler_leads_to_the_least_loss(path, name):
    """Its mean over [t_min, t_max], over a chain's times, or under a law of its own."""
    times = TIME_SAMPLERS[name](path, T_MIN, T_MAX)
    state, error = times.init(), 0.0
    if name in OWN_LAWS:
        values = least_at(path, "likelihood", times.sample(state, jax.random.key(1), B)[0])
        expected, error = values.mean(), values.std() / B**0.5
    elif times.times:
        values = least_at(path, "likelihood", times.times)
        expected = values.mean()
    else:
        expected = least(path, "likelihood", T_MIN, T_MAX)
    if name == "loss_second_moment":  # its weights are 1 until every time has had 10 losses
        state = LossHistory(jnp.tile(jnp.asarray(values[:, None], jnp.float32), 10), jnp.full(len(values), 10))
    loss = objective(path, "noise", "likelihood", times)
    losses = np.asarray(loss({}, state, KEY, {"image": X0})[1].losses, np.float64)
    assert abs(losses.mean() - expected) <= 3 * np.hypot(losses.std() / B**0.5, error)


@pytest.mark.parametrize("name, factor", [("vp", 2), ("subvp", 2), ("ve", 1)])
def test_importance_sampling_leaves_the_likelihood_loss_and_cuts_its_variance(name, factor):
    """Weights like 1/t against weights nearly constant; log SNR of VE is linear in t, where only the cells help."""
    path, t_min, n, b = DEFAULTS[name], 1e-3, 64, 256
    losses = [objective(path, "noise", "likelihood", times(path, t_min)) for times in (uniform, log_snr)]
    x0 = jnp.asarray(MEAN + STD * np.random.default_rng(1).normal(size=(n, b, D)), jnp.float32)
    batches = jax.jit(jax.vmap(lambda key, x0: [loss({}, (), key, {"image": x0})[0] for loss in losses]))
    plain, importance = (np.asarray(values, np.float64) for values in batches(jax.random.split(KEY, n), x0))
    errors = [values.std(ddof=1) / n**0.5 for values in (plain, importance)]
    exact = least(path, "likelihood", t_min, 1.0)
    assert abs(plain.mean() - exact) <= 3 * errors[0] and abs(importance.mean() - exact) <= 3 * errors[1]
    assert abs(plain.mean() - importance.mean()) <= 3 * np.hypot(*errors)
    ratio = plain.var(ddof=1) / importance.var(ddof=1)
    print(f"variance of a batch of {b} on {name}: uniform / log_snr = {ratio:.1f}")
    assert ratio > factor


class Learned(nn.Module):
    """The perfect network, and half of the channels for the variance: SHARE everywhere."""

    readout: nn.Module

    @nn.compact
    def __call__(self, x, time, condition=None, *, deterministic=True):
        output = self.readout(x, time)
        return jnp.concatenate([output, jnp.full_like(output, SHARE)], axis=-1)


SHARE = -0.4  # of "range" it is the place between small (-1) and large (1), of "log" the log variance itself


def least_bound(bound):
    """n L_t of every step in bits: variances' part and on_x0^2 V / (2 var p), V = var(x0 | x_t); first, of the decoder.

    There x0 is off the mean by N(0, V), and -log2 of its bin is integrated over that.
    """
    rows = tables(bound.path, bound.times)
    place = (1 + SHARE) / 2
    log_model = {
        "small": rows.log_small, "large": rows.log_fixed_large, "log": np.full(N, SHARE),
        "range": place * rows.log_large + (1 - place) * rows.log_small,
    }[bound.variance]  # fmt: skip
    left = evaluate(lambda t: 1 / (1 / STD**2 + jnp.exp(bound.path.log_snr(t))), np.array(bound.times))
    ratio = rows.log_small - log_model
    nats = 0.5 * (np.expm1(ratio) - ratio + rows.on_x0**2 * left * np.exp(-log_model))
    half, std = (bound.high - bound.low) / (bound.levels - 1) / 2, np.exp(log_model[0] / 2)
    off, weights = np.polynomial.hermite_e.hermegauss(60)
    edges = (off * left[0] ** 0.5 + np.array([[-half], [half]])) / std
    low, high = np.where(edges.sum(0) > 0, -edges[::-1], edges)  # both in the lower tail
    log_low, log_high = scipy.stats.norm.logcdf(low), scipy.stats.norm.logcdf(high)
    nats[0] = -weights @ (log_high + np.log(-np.expm1(log_low - log_high))) / weights.sum()
    return N * nats / np.log(2)


@pytest.mark.parametrize("path", thinned(DEFAULTS.values(), 3), ids=DEFAULTS)
@pytest.mark.parametrize("kind, variance", [
    ("vlb", "small"), ("vlb", "large"), ("vlb", "range"), ("vlb", "log"), ("hybrid", "range"), ("hybrid", "log"),
])  # fmt: skip
def test_the_bound_of_the_perfect_network_is_its_known_minimum(path, kind, variance):
    """Step by step: five numbers within 3 standard errors, as one chi-squared statistic of the same chance, 0.0027."""
    model = perfect(path, PREDICTIONS["noise"])
    if variance in ("range", "log"):
        model = dataclasses.replace(model, network=Learned(model.network))
    loss = on_a_chain(kind, model, variance, weight=0.1)
    expected = least_bound(loss.variational)
    if kind == "hybrid":
        expected = least_at(path, "simple", loss.variational.times) + 0.1 * expected
    aux = loss({}, (), KEY, {"image": X0})[1]
    steps, losses = np.asarray(loss.variational.step(aux.t)), np.asarray(aux.losses, np.float64)
    groups = [losses[steps == i] for i in range(N)]
    z = [
        (group.mean() - least) / max(group.std() / len(group) ** 0.5, EPS[False])  # a certain level costs no bits
        for group, least in zip(groups, expected, strict=True)
    ]
    assert np.square(z).sum() < scipy.stats.chi2.isf(2 * scipy.stats.norm.sf(3), N), z
