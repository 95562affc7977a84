"""EDM2's weight: it comes to the logarithm of the error at each time, and leaves what is learnt at each as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from score_flow.losses.uncertainty import CHANNELS, Uncertain
from score_flow.model import OWN
from score_flow.process.prediction import PREDICTIONS
from score_flow.process.times import uniform
from tests.losses.test_least_loss import least_at
from tests.losses.test_objective import KEY, T_MAX, T_MIN, X0
from tests.paths.variants import DEFAULTS
from tests.test_model import perfect
from tests.toy_losses import denoising

PATH = DEFAULTS["vp"]
BEGINS = {OWN: {"heights": jnp.zeros(CHANNELS)}}


def uncertain(prediction="noise", weighting="simple"):
    return Uncertain(denoising(perfect(PATH, PREDICTIONS[prediction]), uniform(PATH, T_MIN, T_MAX), weighting))


def test_it_begins_as_the_squared_error_and_evaluates_that():
    loss = uncertain()
    np.testing.assert_allclose(loss(BEGINS, (), KEY, {"image": X0})[0], loss.simple({}, (), KEY, {"image": X0})[0])
    some = {OWN: {"heights": jnp.ones(CHANNELS)}}
    noise, t = jnp.ones_like(X0), jnp.linspace(0.1, 0.9, len(X0))
    assert jnp.array_equal(loss.at(some, X0, noise, t), loss.simple.at({}, X0, noise, t))
    assert jax.tree.map(jnp.shape, loss.own((2, 2, 1))) == {"heights": (CHANNELS,)}


def test_examples_are_weighed_by_it():
    loss = uncertain()
    some = {OWN: {"heights": jnp.asarray(np.random.default_rng(0).normal(size=CHANNELS), jnp.float32)}}
    drawn, _ = loss.draw((), KEY, {"image": X0}, True)
    u = loss.log_error(some, drawn.t)
    assert float(jnp.std(u)) > 0.1
    np.testing.assert_allclose(
        loss.examples(some, drawn), jnp.exp(-u) * loss.simple.examples({}, drawn) + u, rtol=1e-5, atol=1e-6
    )


def test_the_least_of_it_is_the_logarithm_of_the_error():
    """The perfect network's error at each time is known; u is brought to its least over times that are dense."""
    loss, t = uncertain(), jnp.linspace(T_MIN, T_MAX, 400)
    error = jnp.asarray(least_at(PATH, "simple", np.asarray(t)), jnp.float32)
    optimiser = optax.adam(0.1)

    def value(params):
        u = loss.log_error(params, t)
        return jnp.mean(jnp.exp(-u) * error + u)

    def step(carry, _):
        params, state = carry
        updates, state = optimiser.update(jax.grad(value)(params), state)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=1500))((BEGINS, optimiser.init(BEGINS)))
    ratio = jnp.exp(loss.log_error(params, t)) / error
    assert float(error.max() / error.min()) > 5
    assert float(jnp.abs(jnp.log(ratio)).max()) < 0.1


def test_far_ends_of_log_snr_are_finite():
    path = DEFAULTS["linear"]
    loss = Uncertain(denoising(perfect(path, PREDICTIONS["velocity"]), uniform(path, 0.0), "velocity"))
    some = {OWN: {"heights": jnp.ones(CHANNELS)}}
    ends = loss.log_error(some, jnp.array([0.0, 1e-9, 1.0, 1 - 1e-6]))
    assert jnp.isfinite(ends).all() and ends[0] == ends[1]
