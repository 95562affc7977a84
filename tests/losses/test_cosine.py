"""The cosine beside the squared error: its value, that it is of training alone, and what its minimiser is not."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.build import experiment
from score_flow.errors import UserError
from score_flow.model import Model, Preconditioning
from score_flow.numerics import cosine
from score_flow.paths.linear import Linear
from score_flow.process.prediction import PREDICTIONS
from score_flow.process.times import uniform
from tests.losses.test_losses import settings
from tests.losses.test_objective import KEY
from tests.toy_losses import denoising

RNG = np.random.default_rng(3)
IMAGES = jnp.asarray(RNG.normal(size=(5, 2, 3, 4)), jnp.float32)
NOISE = jnp.asarray(RNG.normal(size=(5, 2, 3, 4)), jnp.float32)
T = jnp.linspace(0.1, 0.9, 5)
THREE = "data.image_shape=(8, 8, 3)"


class Longer(nn.Module):
    """Returns a multiple of its input."""

    @nn.compact
    def __call__(self, x, time, condition=None, *, deterministic=True):
        return 1.5 * x


def loss_of(share):
    model = Model(Longer(), Linear(), PREDICTIONS["velocity"], Preconditioning("t", 1.0))
    return denoising(model, uniform(Linear(), 0.0), "velocity").replace(cosine=share)


def test_its_value_is_a_mean_over_pixels_and_of_training_alone():
    x0, noise, t = (np.asarray(part, np.float64) for part in (IMAGES, NOISE, T))
    t = t[:, None, None, None]
    output, v = 1.5 * ((1 - t) * x0 + t * noise), noise - x0
    dot, lengths = (output * v).sum(-1), [np.linalg.norm(part, axis=-1) for part in (output, v)]
    share = 0.7 * (1 - dot / np.prod(lengths, axis=0)).mean(axis=(1, 2))
    square = ((output - v) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(loss_of(0.7).at({}, IMAGES, NOISE, T, key=KEY), square + share, rtol=1e-5)
    for loss, key in ((loss_of(0.7), None), (loss_of(0.0), KEY)):
        np.testing.assert_array_equal(loss.at({}, IMAGES, NOISE, T, key=key), loss_of(0.0).at({}, IMAGES, NOISE, T))


def test_a_vector_of_no_length_has_no_angle():
    value, gradient = jax.value_and_grad(lambda x: cosine(x, jnp.ones(3)))(jnp.zeros(3))
    assert value == 0 and jnp.isfinite(gradient).all()


def test_the_mean_of_velocities_is_not_its_minimiser():
    """At the mean m its gradient is the part of -E[v/|v|] across m, over |m|."""
    v = jnp.array([[1.0, 0.0], [0.0, 3.0]])
    m, towards = v.mean(axis=0), (v / jnp.linalg.norm(v, axis=1, keepdims=True)).mean(axis=0)
    gradient = jax.grad(lambda x: jnp.mean((v - x) ** 2) + jnp.mean(1 - cosine(jnp.broadcast_to(x, v.shape), v)))(m)
    unit = m / jnp.linalg.norm(m)
    np.testing.assert_allclose(gradient, -(towards - (towards @ unit) * unit) / jnp.linalg.norm(m), rtol=1e-5)
    assert jnp.linalg.norm(gradient) > 0.1


@pytest.mark.parametrize("objective, flags, said", [
    ("simple", (THREE, "model.prediction=noise"), "cosine is 1.0, which is of velocities"),
    ("contrastive", (THREE,), "cosine is 1.0, which training.objective = contrastive has no use for"),
    ("uncertainty", (THREE,), "cosine is 1.0, which training.objective = uncertainty has no use for"),
    ("simple", (), "cosine is 1.0, but images have one channel"),
])  # fmt: skip
def test_what_has_no_use_for_it_is_refused(objective, flags, said):
    with pytest.raises(UserError, match=said):
        experiment(settings("training.cosine=1.0", *flags, objective=objective))
