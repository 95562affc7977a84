"""The one loss: its weightings, its reductions, its labels, its ends, and the bounds of chains."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.build import build_conditioning, build_loss, build_model
from score_flow.config.loading import load
from score_flow.config.options import SCHEMA
from score_flow.data.preprocessing import Preprocessing
from score_flow.data.scaling import Scaling
from score_flow.errors import UserError
from score_flow.losses.hybrid import Hybrid
from score_flow.losses.vlb import ChainBound
from score_flow.losses.weightings import WEIGHTINGS, min_snr
from score_flow.model import Model, Preconditioning
from score_flow.networks.mlp import MLP
from score_flow.numerics import mean_flat
from score_flow.paths.gvp import GVP
from score_flow.paths.linear import Linear
from score_flow.paths.vp import VP
from score_flow.process.bound import VariationalBound
from score_flow.process.prediction import PREDICTIONS, Estimate
from score_flow.process.times import grid, uniform
from tests.paths.variants import DEFAULTS, EPS
from tests.test_model import MEAN, STD, Echo, drawn, perfect
from tests.toy_losses import denoising, of_chain

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
    return denoising(perfect(path, PREDICTIONS[prediction]), times, weighting, **fields)


SPACES = {"simple": "noise", "velocity": "velocity", "data": "data", "edm": "edm"}


@every_path
def test_weightings_are_mean_squares_in_their_spaces(path):
    c = path.at(T).expand(X0)
    pair, x = Estimate(X0, NOISE), path.perturb(X0, NOISE, T)

    def loss(name, weighting):
        model = Model(Echo(), path, PREDICTIONS[name], Preconditioning("t", 1.0))
        return denoising(model, uniform(path, T_MIN), weighting).at({}, X0, NOISE, T)

    output = x + T[:, None]  # of Echo
    for weighting, name in SPACES.items():
        plain = mean_flat((output - PREDICTIONS[name].target(pair, c)) ** 2)
        np.testing.assert_allclose(loss(name, weighting), plain, rtol=32 * EPS[False], err_msg=weighting)
    score = mean_flat(c.g2 * (output + NOISE / c.sigma) ** 2)
    np.testing.assert_allclose(loss("score", "likelihood"), score, rtol=32 * EPS[False])


def test_every_weighting_can_be_chosen():
    assert set(SCHEMA["training.weighting"].metadata["limits"].choices()) == set(WEIGHTINGS)


def test_reduction_is_the_mean_or_half_the_sum():
    losses = [objective(Linear(), "velocity", "simple", reduce=how) for how in ("mean", "sum")]
    mean, half_sum = (loss({}, (), KEY, {"image": X0})[0] for loss in losses)
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
    loss = denoising(model, uniform(Linear(), T_MIN), "simple", label_dropout=share, null_label=10)
    condition = {"label": jnp.arange(B) % 10, "other": jnp.arange(B)}
    loss({}, (), KEY, {"image": X0} | condition, train=train)
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


def loss_of(config, levels=256):
    """The loss of a config, for images of one channel in ten classes."""
    data, conditioning = config.data, build_conditioning(config, num_classes=10)
    scaling = Scaling(-1.0 if data.centered else 0.0, 1.0, levels)
    prepare = Preprocessing(scaling, conditioning, data.uniform_dequantization, data.random_flip)
    return build_loss(config, build_model(config, 1, conditioning), prepare)


def test_configs_hide_labels_behind_the_class_after_the_last():
    overrides = ["model.class_conditional=True", "training.label_dropout=0.2", "training.reduce_mean=False"]
    loss = loss_of(load("configs/digits.py", [f"--config.{override}" for override in overrides]))
    assert (loss.noising.label_dropout, loss.noising.null_label) == (0.2, 10)
    assert loss.reduce == "sum"


@pytest.mark.parametrize("path", [Linear(), GVP()], ids=["linear", "gvp"])
@pytest.mark.parametrize("weighting", SPACES)
def test_velocity_losses_and_gradients_exist_at_both_ends(path, weighting):
    """At t = 0 and t = 1 exactly; in the velocity's own space the loss is the plain mean square there too."""
    model = Model(MLP(width=8, depth=1), path, PREDICTIONS["velocity"], Preconditioning("t", 1.0))
    params, t = drawn(model, X0.shape), jnp.tile(jnp.asarray([0.0, 1.0]), 4)
    x0, noise = X0[: len(t)], NOISE[: len(t)]
    loss = denoising(model, uniform(path, 0.0), weighting)
    total = lambda params: (jnp.sum(losses := loss.at(params, x0, noise, t)), losses)  # noqa: E731
    (_, losses), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    assert np.isfinite(losses).all() and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    if weighting == "velocity":
        c = path.at(t).expand(x0)
        output = model.apply(params, path.perturb(x0, noise, t), t)
        plain = mean_flat((output - c.dalpha * x0 - c.dsigma * noise) ** 2)
        np.testing.assert_allclose(losses, plain, rtol=64 * EPS[False])


N = 5  # steps of a short chain: at i/6, short of where alpha may be 0


class Learner(nn.Module):
    """A network of one number for the mean and one for the variance's place in its range."""

    @nn.compact
    def __call__(self, x, time, condition=None, *, deterministic=True):
        mean, variance = (self.param(name, nn.initializers.zeros, ()) for name in ("mean", "variance"))
        return jnp.concatenate([mean * x, variance * jnp.cos(x)], axis=-1)


def on_a_chain(kind, model, variance, **fields):
    times = grid(model.path, 0.0, 0.9, n=N + 1)
    bound = VariationalBound(model.path, times.times, variance, decoder="exact", low=-3.0, high=4.0, levels=29)
    return of_chain(kind, model, times, bound, **fields)


@pytest.mark.slow
def test_the_bound_of_the_hybrid_trains_the_variance_alone():
    """Its gradient at the mean is that of the simple loss to the bit; at the variance it is the weighted bound's."""
    model = Model(Learner(), VP(), PREDICTIONS["noise"])
    params = {"mean": jnp.asarray(0.3), "variance": jnp.asarray(0.2)}
    x0 = X0[:64]

    def gradient(kind, **fields):
        loss = on_a_chain(kind, model, "range", **fields)
        return jax.grad(lambda params: loss(params, (), KEY, {"image": x0})[0])(params)

    simple, hybrid, vlb = gradient("simple"), gradient("hybrid", weight=0.5), gradient("vlb")
    assert hybrid["mean"] == simple["mean"] != 0
    assert simple["variance"] == 0 != vlb["mean"]
    np.testing.assert_allclose(hybrid["variance"], 0.5 * vlb["variance"], rtol=16 * EPS[False])


def test_half_sums_of_the_bound():
    model = perfect(VP(), PREDICTIONS["noise"])
    losses = [on_a_chain("vlb", model, "small", reduce=how) for how in ("mean", "sum")]
    mean, half_sum = (loss({}, (), KEY, {"image": X0})[0] for loss in losses)
    np.testing.assert_allclose(half_sum, 0.5 * D * mean, rtol=8 * EPS[False])


CHAINED = (
    "path.name=vp", "model.prediction=noise", "model.learn_sigma=True", "data.uniform_dequantization=False",
    "training.objective=hybrid", "training.time_sampler.name=grid",
)  # fmt: skip


def built(*overrides, levels=17):
    return loss_of(load("configs/base.py", [f"--config.{override}" for override in (*CHAINED, *overrides)]), levels)


def test_configs_build_the_bound_of_the_chain_that_they_draw_from():
    loss = built("data.centered=False", "training.vlb_weight=0.25", "training.decoder=exact")
    bound = loss.variational
    assert bound.times == loss.times.times and len(bound.times) == 1000
    assert (bound.low, bound.high, bound.levels) == (0.0, 1.0, 17)
    assert isinstance(loss, Hybrid) and (loss.weight, bound.decoder) == (0.25, "exact")
    loss = built(
        "training.time_sampler.name=loss_second_moment",
        "training.objective=vlb",
        "training.variance=log",
    )
    assert isinstance(loss, ChainBound) and loss.variational.variance == "log" and len(loss.variational.times) == 1000


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
    np.testing.assert_allclose(min_snr(c, min_snr_gamma=1.0), np.minimum(snr, 1) / snr, rtol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_clipped_velocity_is_the_loss_of_jit(scale):
    """|v' - v|^2 with v = (x0 - z)/max(1 - t, .05), z = t x0 + (1 - t) scale noise, of a network that predicts x0."""
    model = Model(Echo(), Linear(noise_scale=scale), PREDICTIONS["data"], Preconditioning("t", 1.0))
    t = jnp.asarray(np.linspace(0.001, 0.999, B), jnp.float32)
    got = denoising(model, uniform(model.path, 0.0), "clipped_velocity").at({}, X0, NOISE, t)
    data, to_noise = np.asarray(X0, np.float64), np.asarray(t, np.float64)[:, None]
    z = (1 - to_noise) * data + to_noise * scale * np.asarray(NOISE, np.float64)
    predicted, left = z + to_noise, np.maximum(to_noise, 0.05)  # of Echo
    expected = np.mean(((predicted - z) / left - (data - z) / left) ** 2, axis=-1)
    np.testing.assert_allclose(got, expected, rtol=1e-4)
