"""The one loss: its minimum, its weightings, its estimators, and its ends."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.build import build_conditioning, build_model, build_objective
from score_flow.config import CHOICES, load
from score_flow.model import Model, Preconditioning
from score_flow.networks.mlp import MLP
from score_flow.numerics import mean_flat
from score_flow.objective import WEIGHTINGS, Objective, min_snr
from score_flow.paths.gvp import GVP
from score_flow.paths.linear import Linear
from score_flow.paths.vp import VP
from score_flow.prediction import PREDICTIONS, Estimate
from score_flow.times import grid, log_snr, uniform
from score_flow.types import UserError
from score_flow.variational import VariationalBound, tables
from tests.paths.variants import DEFAULTS, EPS
from tests.test_model import MEAN, STD, Echo, drawn, perfect

every_path = pytest.mark.parametrize("path", DEFAULTS.values(), ids=DEFAULTS.keys())

T_MIN, T_MAX, B, D = 1e-2, 0.99, 4096, 4
RNG = np.random.default_rng(0)
X0 = jnp.asarray(MEAN + STD * RNG.normal(size=(B, D)), jnp.float32)
NOISE = jnp.asarray(RNG.normal(size=(B, D)), jnp.float32)
T = jnp.asarray(RNG.uniform(T_MIN, T_MAX, size=B), jnp.float32)
KEY = jax.random.key(0)


def objective(path, prediction, weighting, times=None, **fields):
    """The loss of the perfect network for X0."""
    times = times or uniform(path, T_MIN, T_MAX)
    return Objective(perfect(path, PREDICTIONS[prediction]), times, WEIGHTINGS[weighting], **fields)


@functools.cache
def quadrature(path, t_min, t_max):
    """(times, coefficients), dense where weights are large."""
    t = t_min * (t_max / t_min) ** np.linspace(0, 1, 1000)
    return t, jax.jit(path.at)(t)


def least(path, weighting, t_min, t_max) -> float:
    """The minimum of the loss on N(m, s^2 I): the mean over t of weight alpha^2 s^2 / (alpha^2 s^2 + sigma^2)."""
    t, c = quadrature(path, t_min, t_max)
    variance = (c.alpha * STD) ** 2
    return np.trapezoid(WEIGHTINGS[weighting](c) * variance / (variance + c.sigma**2), t) / (t_max - t_min)


@every_path
def test_the_perfect_network_has_the_least_loss(path):
    for weighting in WEIGHTINGS:
        loss, aux = objective(path, "noise", weighting)({}, (), KEY, X0)
        losses = np.asarray(aux.losses, np.float64)
        assert aux.t.min() >= T_MIN and aux.t.max() <= T_MAX and losses.shape == (B,)
        np.testing.assert_allclose(loss, losses.mean(), rtol=16 * EPS[False])
        error = losses.std() / B**0.5
        assert abs(losses.mean() - least(path, weighting, T_MIN, T_MAX)) <= 3 * error, weighting


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


SPACES = {"simple": "noise", "velocity": "velocity", "data": "data"}


@every_path
def test_weightings_are_mean_squares_in_their_spaces(path):
    c = path.at(T).expand(X0)
    pair, x = Estimate(X0, NOISE), path.perturb(X0, NOISE, T)

    def loss(name, weighting):
        model = Model(Echo(), path, PREDICTIONS[name], Preconditioning("t", 1.0))
        return Objective(model, uniform(path, T_MIN), WEIGHTINGS[weighting]).at({}, X0, NOISE, T)

    output = x + T[:, None]  # of Echo
    for weighting, name in SPACES.items():
        plain = mean_flat((output - PREDICTIONS[name].target(pair, c)) ** 2)
        np.testing.assert_allclose(loss(name, weighting), plain, rtol=32 * EPS[False], err_msg=weighting)
    score = mean_flat(c.g2 * (output + NOISE / c.sigma) ** 2)
    np.testing.assert_allclose(loss("score", "likelihood"), score, rtol=32 * EPS[False])


def test_every_weighting_can_be_chosen():
    assert set(CHOICES["training.weighting"]) == set(WEIGHTINGS)


def test_importance_sampling_leaves_the_likelihood_loss_and_cuts_its_variance():
    path, t_min, n, b = VP(), 1e-3, 64, 256
    losses = [objective(path, "noise", "likelihood", times(path, t_min)) for times in (uniform, log_snr)]
    x0 = jnp.asarray(MEAN + STD * RNG.normal(size=(n, b, D)), jnp.float32)
    batches = jax.jit(jax.vmap(lambda key, x0: [loss({}, (), key, x0)[0] for loss in losses]))
    plain, importance = (np.asarray(values, np.float64) for values in batches(jax.random.split(KEY, n), x0))
    errors = [values.std(ddof=1) / n**0.5 for values in (plain, importance)]
    exact = least(path, "likelihood", t_min, 1.0)
    assert abs(plain.mean() - exact) <= 3 * errors[0] and abs(importance.mean() - exact) <= 3 * errors[1]
    assert abs(plain.mean() - importance.mean()) <= 3 * np.hypot(*errors)
    ratio = plain.var(ddof=1) / importance.var(ddof=1)
    print(f"variance of a batch of {b}: uniform / log_snr = {ratio:.1f}")
    assert ratio > 2  # weights of at most 1/t_min against weights that are nearly constant


def test_reduction_is_the_mean_or_half_the_sum():
    losses = [objective(Linear(), "velocity", "simple", reduce=how) for how in ("mean", "sum")]
    mean, half_sum = (loss({}, (), KEY, X0)[0] for loss in losses)
    np.testing.assert_allclose(half_sum, 0.5 * D * mean, rtol=8 * EPS[False])


class Spy(nn.Module):
    """Notes what it is told; outside jit."""

    seen = []  # noqa: RUF012 - not a field

    @nn.compact
    def __call__(self, x, time, condition=None, *, deterministic=True):
        self.seen.append((np.asarray(condition["label"]), np.asarray(condition["other"]), deterministic))
        return x


def told(train, share):
    """(labels, other conditions, whether dropout is off) that the network is told."""
    model = Model(Spy(), Linear(), PREDICTIONS["velocity"])
    loss = Objective(model, uniform(Linear(), T_MIN), WEIGHTINGS["simple"], label_dropout=share, null_label=10)
    condition = {"label": jnp.arange(B) % 10, "other": jnp.arange(B)}
    loss({}, (), KEY, X0, condition, train=train)
    return Spy.seen.pop()


def test_label_dropout_hides_its_share_of_labels_in_training_only():
    share, labels = 0.3, np.arange(B) % 10
    got, other, deterministic = told(train=True, share=share)
    hidden = got == 10
    assert abs(hidden.mean() - share) <= 3 * np.sqrt(share * (1 - share) / B)
    np.testing.assert_array_equal(got[~hidden], labels[~hidden])
    np.testing.assert_array_equal(other, np.arange(B))
    assert not deterministic
    got, _, deterministic = told(train=False, share=share)
    np.testing.assert_array_equal(got, labels)
    assert deterministic
    np.testing.assert_array_equal(told(train=True, share=0.0)[0], labels)


@pytest.mark.parametrize("conditional", [True, False])
def test_configs_hide_labels_behind_the_class_after_the_last(conditional):
    overrides = [f"model.class_conditional={conditional}", "training.label_dropout=0.2", "training.reduce_mean=False"]
    config = load("configs/digits.py", [f"--config.{override}" for override in overrides])
    loss = build_objective(config, build_model(config, 1, build_conditioning(config, num_classes=10)))
    assert (loss.label_dropout, loss.null_label) == ((0.2, 10) if conditional else (0.0, 0))
    assert loss.reduce == "sum"


@pytest.mark.parametrize("path", [Linear(), GVP()], ids=["linear", "gvp"])
@pytest.mark.parametrize("weighting", SPACES)
def test_velocity_losses_and_gradients_exist_at_both_ends(path, weighting):
    """At t = 0 and t = 1 exactly; in the velocity's own space the loss is the plain mean square there too."""
    model = Model(MLP(width=8, depth=1), path, PREDICTIONS["velocity"], Preconditioning("t", 1.0))
    params, t = drawn(model, X0.shape), jnp.tile(jnp.asarray([0.0, 1.0]), 4)
    x0, noise = X0[: len(t)], NOISE[: len(t)]
    loss = Objective(model, uniform(path, 0.0), WEIGHTINGS[weighting])
    total = lambda params: (jnp.sum(losses := loss.at(params, x0, noise, t)), losses)  # noqa: E731
    (_, losses), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    assert np.isfinite(losses).all() and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    if weighting == "velocity":
        c = path.at(t).expand(x0)
        output = model.apply(params, path.perturb(x0, noise, t), t)
        plain = mean_flat((output - c.dalpha * x0 - c.dsigma * noise) ** 2)
        np.testing.assert_allclose(losses, plain, rtol=64 * EPS[False])


N = 5  # steps of a short chain


class Learner(nn.Module):
    """A network of one number for the mean and one for the variance's place in its range."""

    @nn.compact
    def __call__(self, x, time, condition=None, *, deterministic=True):
        mean, variance = (self.param(name, nn.initializers.zeros, ()) for name in ("mean", "variance"))
        return jnp.concatenate([mean * x, variance * jnp.cos(x)], axis=-1)


def on_a_chain(kind, model, variance, **fields):
    times = grid(model.path, 0.0, n=N)
    bound = VariationalBound(model.path, times.times, variance)
    return Objective(model, times, WEIGHTINGS["simple"], kind=kind, bound=bound, **fields)


def test_the_bound_of_the_hybrid_trains_the_variance_alone():
    """Its gradient at the mean is that of the simple loss to the bit; at the variance it is the weighted bound's."""
    model = Model(Learner(), VP(), PREDICTIONS["noise"])
    params = {"mean": jnp.asarray(0.3), "variance": jnp.asarray(0.2)}
    x0 = X0[:64]

    def gradient(kind, **fields):
        loss = on_a_chain(kind, model, "range", **fields)
        return jax.grad(lambda params: loss(params, (), KEY, x0)[0])(params)

    simple, hybrid, vlb = gradient("simple"), gradient("hybrid", vlb_weight=0.5), gradient("vlb")
    assert hybrid["mean"] == simple["mean"] != 0
    assert simple["variance"] == 0 != vlb["mean"]
    np.testing.assert_allclose(hybrid["variance"], 0.5 * vlb["variance"], rtol=16 * EPS[False])


def test_the_bound_of_the_perfect_network_is_its_known_minimum():
    """Inner steps, at the forward or posterior variance: the variances' part, and on_x0^2 var(x0 | x_t) / (2 var p)."""
    path = VP()
    for variance in ("small", "large"):
        loss = on_a_chain("vlb", perfect(path, PREDICTIONS["noise"]), variance)
        rows = tables(path, loss.bound.times)
        log_model = rows.log_small if variance == "small" else rows.log_fixed_large
        for i in range(1, N):
            t = jnp.full(B, loss.bound.times[i])
            alpha, sigma = (float(f(t[0])) for f in (path.alpha, path.sigma))
            spread = rows.on_x0[i] ** 2 / (1 / STD**2 + (alpha / sigma) ** 2)
            ratio = rows.log_small[i] - log_model[i]
            least = 0.5 * (np.expm1(ratio) - ratio + spread * np.exp(-log_model[i])) * N / np.log(2)
            losses = np.asarray(loss.at({}, X0, NOISE, t), np.float64)
            assert abs(losses.mean() - least) <= 3 * losses.std() / B**0.5, (variance, i)


def test_half_sums_of_the_bound():
    model = perfect(VP(), PREDICTIONS["noise"])
    mean, half_sum = (on_a_chain("vlb", model, "small", reduce=how)({}, (), KEY, X0)[0] for how in ("mean", "sum"))
    np.testing.assert_allclose(half_sum, 0.5 * D * mean, rtol=8 * EPS[False])


CHAINED = (
    "path.name=vp", "model.prediction=noise", "model.learn_sigma=True", "data.uniform_dequantization=False",
    "training.objective=hybrid", "training.time_sampler.name=grid",
)  # fmt: skip


def built(*overrides, levels=17):
    config = load("configs/base.py", [f"--config.{override}" for override in (*CHAINED, *overrides)])
    return build_objective(config, build_model(config, 1, build_conditioning(config, num_classes=10)), levels)


def test_configs_build_the_bound_of_the_chain_that_they_draw_from():
    loss = built("data.centered=False", "training.vlb_weight=0.25", "training.decoder=exact")
    assert loss.bound.times == loss.times.times and len(loss.bound.times) == 1000
    assert (loss.bound.low, loss.bound.high, loss.bound.levels) == (0.0, 1.0, 17)
    assert (loss.kind, loss.vlb_weight, loss.bound.decoder) == ("hybrid", 0.25, "exact")
    loss = built(
        "training.time_sampler.name=loss_second_moment",
        "training.objective=vlb",
        "training.variance=log",
    )
    assert loss.kind == "vlb" and loss.bound.variance == "log" and len(loss.bound.times) == 1000


@pytest.mark.parametrize("override, complaint", [
    ("training.time_sampler.name=uniform", "needs a chain"),
    ("data.uniform_dequantization=True", "bounds the likelihood of levels"),
    ("model.learn_sigma=False", "small or large"),
    ("training.variance=small", "range or log"),
    ("training.objective=hybird", "Did you mean 'hybrid'"),
])  # fmt: skip
def test_a_bound_that_cannot_be_is_refused_in_one_line(override, complaint):
    with pytest.raises(UserError, match=complaint) as error:
        built(override)
    assert "\n" not in str(error.value)


def test_min_snr_caps_the_signal_to_noise_ratio_of_data_errors():
    """min(SNR, 5) |x0 error|^2, |noise error|^2 = SNR |x0 error|^2."""
    c = VP().at(jnp.linspace(0.01, 0.99, 50))
    snr = np.exp(np.asarray(c.log_snr, np.float64))
    assert snr.min() < 5 < snr.max()
    np.testing.assert_allclose(WEIGHTINGS["min_snr"](c), np.minimum(snr, 5) / snr, rtol=1e-4)
    np.testing.assert_allclose(min_snr(1.0)(c), np.minimum(snr, 1) / snr, rtol=1e-4)
