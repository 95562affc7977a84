"""Contrastive flow matching: what it is least for, and that nobody who reads the network sees its shift."""

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evaluation.weights import MODEL
from score_flow.build import experiment
from score_flow.errors import UserError
from score_flow.losses.base import Noising
from score_flow.losses.contrastive import Contrastive
from score_flow.model import OWN, Model, Preconditioning
from score_flow.process.prediction import PREDICTIONS, Prediction, velocity
from score_flow.process.times import uniform
from score_flow.training.accepting import FIXED
from score_flow.training.saver import refuse_other_config
from tests.discover import thinned
from tests.exact import GaussianDenoiser
from tests.losses.test_losses import settings
from tests.losses.test_objective import KEY, T_MAX, T_MIN, B, D, every_path
from tests.paths.variants import DEFAULTS, EPS
from tests.test_model import MEAN, STD
from tests.toy_losses import as_given, denoising

SHARE = 0.3  # of the contrastive term: as published it is .05, and hard to see
OF_DATA = {OWN: {"mean": jnp.full(D, MEAN)}}
X0 = jnp.asarray(MEAN + STD * np.random.default_rng(5).normal(size=(B, D)), jnp.float32)


class Shifted(nn.Module):
    """The minimiser for N(MEAN, STD^2 I), (E[v | x_t] - share E v)/(1 - share), stretched and moved by parameters."""

    denoiser: GaussianDenoiser
    prediction: Prediction
    share: float

    @nn.compact
    def __call__(self, x, time, condition=None, *, deterministic=True):
        c = self.denoiser.path.at(time).expand(x)
        v = (self.denoiser.velocity(x, time) - self.share * c.dalpha * MEAN) / (1 - self.share)
        stretch, move = (self.param(name, nn.initializers.zeros, ()) for name in ("stretch", "move"))
        v = (1 + stretch) * v + move
        return self.prediction.target(velocity.decode(v, x, c), c)


def model_of(path, prediction="velocity", share=SHARE):
    network = Shifted(GaussianDenoiser(path, MEAN, STD), PREDICTIONS[prediction], SHARE)
    return Model(network, path, PREDICTIONS[prediction], Preconditioning("t", 1.0), contrast=share)


def params_of(stretch=0.0, move=0.0):
    return {"stretch": jnp.float32(stretch), "move": jnp.float32(move)} | OF_DATA


def loss_of(path, **fields):
    model = model_of(path, **fields)
    return Contrastive(denoising(model, uniform(path, T_MIN, T_MAX), "velocity"))


@every_path
@pytest.mark.parametrize("prediction", thinned(PREDICTIONS, 7))
def test_the_posterior_means_of_the_minimiser_are_exact(path, prediction):
    """On every path, whatever is predicted: score, velocity and likelihood are made of them."""
    x = jnp.asarray(np.random.default_rng(1).normal(size=(6, D)), jnp.float32)
    t = jnp.asarray([0.02, 0.2, 0.4, 0.6, 0.8, 0.98])
    got = model_of(path, prediction).bind(params_of()).estimate(x, t)
    exact = GaussianDenoiser(path, MEAN, STD).estimate(x, t)
    c = path.at(t).expand(x)
    # Roundings of the output, carried to x0 and noise by way of the velocity and back.
    condition = 64 * EPS[False] * float(jnp.abs(c.dsigma).max() + jnp.abs(c.dalpha).max()) / float(c.det.min())
    for ours, theirs in zip(got[:2], exact[:2], strict=True):
        scale = 1 + float(jnp.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, atol=max(1e-4, condition) * scale)


@pytest.mark.slow
@pytest.mark.parametrize("name", thinned(["linear", "gvp", "vp"], 3))
def test_the_shifted_velocity_is_its_minimiser(name):
    """Its gradient by stretch and move is 0 within five standard errors; without the contrast it is not."""
    path = DEFAULTS[name]
    loss = loss_of(path)
    drawn, _ = loss.draw((), KEY, {"image": X0}, True)
    weighted = lambda params: loss.examples(params, drawn)  # noqa: E731
    per_example = jax.jit(jax.jacfwd(weighted))(params_of())
    for name in ("stretch", "move"):
        gradient = np.asarray(per_example[name], np.float64)
        # An example is in two terms, its own and that of the next.
        assert abs(gradient.mean()) < 5 * np.sqrt(2) * gradient.std() / B**0.5, name
    # Without the contrast it is too long: what is least then is the velocity itself.
    plain = jax.grad(lambda params: loss_of(path, share=0.0).examples(params, drawn).mean())(params_of())
    assert abs(plain["stretch"]) > 0.05


def test_value_is_the_two_squares_and_the_mean_of_the_data_adds_nothing():
    loss = loss_of(DEFAULTS["linear"])
    drawn, _ = loss.draw((), KEY, {"image": X0}, True)
    x0, noise = (np.asarray(part, np.float64) for part in drawn[:2])
    v, other = noise - x0, np.roll(noise - x0, 1, axis=0)
    params = params_of(stretch=0.2, move=-0.1)
    x = loss.model.path.perturb(drawn.x0, drawn.noise, drawn.t)
    output = np.asarray(loss.model.apply(params, x, drawn.t), np.float64)
    expected = np.mean((output - v) ** 2, axis=1) - SHARE * np.mean((output - other) ** 2, axis=1)
    np.testing.assert_allclose(loss.examples(params, drawn), expected, rtol=1e-4, atol=1e-4)
    off = {"mean": jnp.asarray([0.0, 1.0, 2.0, 3.0])}
    np.testing.assert_allclose(loss.examples(params | {OWN: off}, drawn), expected, rtol=1e-4, atol=1e-4)
    # ... but is learnt: its gradient is that of the mean of |mean - x0|^2 over numbers.
    gradient = jax.grad(lambda params: loss.examples(params, drawn).mean())(params | {OWN: off})[OWN]["mean"]
    np.testing.assert_allclose(gradient, 2 * (off["mean"] - x0.mean(axis=0)) / D, rtol=1e-3)


def test_what_is_evaluated_is_the_error_of_the_velocity_itself():
    path = DEFAULTS["linear"]
    noise, t = jnp.ones_like(X0), jnp.linspace(0.1, 0.9, B)
    got = loss_of(path).at(params_of(), X0, noise, t)
    x = path.perturb(X0, noise, t)
    exact = GaussianDenoiser(path, MEAN, STD).velocity(x, t)
    np.testing.assert_allclose(got, jnp.mean((exact - (noise - X0)) ** 2, axis=1), rtol=1e-3)


def test_mean_begins_as_that_of_the_first_batch():
    loss = loss_of(DEFAULTS["linear"])
    assert loss.own((2, 3, 1))["mean"].shape == (6,)
    noising = Noising(as_given, uniform(DEFAULTS["linear"], T_MIN))
    loss = Contrastive(dataclasses.replace(loss.simple, noising=noising))
    np.testing.assert_allclose(loss.init(KEY, {"image": X0})[OWN]["mean"], X0.mean(axis=0), rtol=1e-5)


def test_a_state_is_read_with_the_contrast_it_was_trained_with_only():
    saved, now = (settings(f"training.contrast={share}", objective="contrastive").to_dict() for share in (0.1, 0.2))
    refuse_other_config(saved, saved, MODEL, Path("run"))
    for sections in (MODEL, FIXED):
        with pytest.raises(UserError, match="training.contrast: 0.1 -> 0.2"):
            refuse_other_config(saved, now, sections, Path("run"))


@pytest.mark.parametrize("flags, objective, message", [
    (("training.batch_size=1",), "contrastive", "batch_size is 1.*compares examples"),
    (("training.coupling=ot",), "contrastive", "coupling is 'ot'.*needs 'independent'"),
    (("training.contrast=0.1",), "simple", "contrast is 0.1, which training.objective = simple has no use for"),
    (("training.contrast=1.0",), "contrastive", "contrast.*below 1"),
    (("training.reduce_mean=False",), "uncertainty", "reduce_mean is False.*leave it True"),
])  # fmt: skip
def test_what_cannot_be_is_refused(flags, objective, message):
    with pytest.raises(UserError, match=message):
        experiment(settings(*flags, objective=objective))
