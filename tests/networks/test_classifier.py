"""The classifier of noisy images: score_sde's numbers and size, its interface, and that it can learn."""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from score_flow.errors import UserError
from score_flow.model import count_parameters
from score_flow.networks.classifier import WideResNet
from score_flow.pretrained import base
from score_flow.pretrained.layouts.classifier import flax_layout, published

SMALL = WideResNet(blocks_per_group=1, channel_multiplier=1, num_classes=2)
X = np.random.default_rng(0).standard_normal((3, 8, 8, 3), np.float32)
TIME = np.array([-4.0, 0.0, 3.0], np.float32)
EPS = np.finfo("float32").eps

# Logits of score_sde's models/wideresnet_noise_conditional.py in float64: 2 blocks a group, twice the width, 4 classes.
REFERENCE = [
    [0.723637986942127, 0.349293442609997, -0.813647060889795, -0.139625554419215],
    [0.746710129263885, 0.342867470667660, -0.835063301001017, -0.127680853223193],
]


def wave(shape, shift):
    return np.cos(1.7 * np.arange(math.prod(shape)) + shift).reshape(shape)


def weight(name, shape):
    """Weights that anyone can make, one for each of score_sde's names."""
    w = wave(shape, len(name))
    return {"kernel": w / math.sqrt(math.prod(shape[:-1])), "scale": 1 + 0.1 * w}.get(name.rpartition("/")[2], w)


def shapes(network, side=8):
    x = jnp.zeros((1, side, side, 3))
    return jax.eval_shape(network.init, jax.random.key(0), x, jnp.zeros(1))["params"]


def tensors(network, weight):
    """score_sde's tensors by name, each of which is one parameter of ours as it is."""
    sizes = {"/".join(path): leaf.shape for path, leaf in flatten_dict(shapes(network)).items()}
    return {leaf.names[0]: weight(leaf.names[0], sizes[ours]) for ours, leaf in flax_layout(network).leaves.items()}


def test_logits_are_score_sdes():
    network = published().clone(blocks_per_group=2, channel_multiplier=2, num_classes=4, dtype="float64")
    with jax.enable_x64(True):
        filled = base.fill(shapes(network), flax_layout(network), tensors(network, weight))
        params = base.as_dtype(filled, "float64")
        x, time = jnp.asarray(wave((2, 8, 8, 3), 0.0)), jnp.array([-1.5, 2.25])
        logits = jax.jit(network.apply)({"params": params}, x, time)
        assert logits.dtype == jnp.float64
        assert np.linalg.norm(logits - np.array(REFERENCE)) < 1e-12 * np.linalg.norm(REFERENCE)


def test_published_size_and_names():
    network = published()
    assert count_parameters(shapes(network, 32)) == 38_913_242  # of score_sde's own module
    # Every name once; a GroupNorm's vectors may have the axes that flax once gave them.
    small = SMALL.clone(blocks_per_group=2)
    values = tensors(small, lambda name, shape: np.full(shape, len(name), np.float32))
    values = {name: w[None, None, None] if "bn" in name else w for name, w in values.items()}
    params = base.fill(shapes(small), flax_layout(small), values)
    assert count_parameters(params) == sum(w.size for w in values.values())
    assert params["group_1_0"]["conv_1"]["kernel"][0, 0, 0, 0] == len(
        "WideResnetGroup_1/WideResnetBlock_0/conv2/kernel"
    )


@cache
def params_of(network):
    return jax.jit(network.init)(jax.random.key(0, impl="rbg"), X, TIME)["params"]


@partial(jax.jit, static_argnums=0)
def apply(network, params, x, time, key=None):
    rngs = {} if key is None else {"dropout": key}
    return network.apply({"params": params}, x, time, deterministic=key is None, rngs=rngs)


def test_time_changes_the_logits_and_examples_do_not_mix():
    logits = apply(SMALL, params_of(SMALL), X, TIME)
    tolerance = 100 * EPS * float(jnp.abs(logits).max())
    later = apply(SMALL, params_of(SMALL), X, TIME + np.float32([1, 0, 0]))
    assert jnp.abs(later[0] - logits[0]).max() > tolerance
    np.testing.assert_allclose(later[1:], logits[1:], rtol=0, atol=tolerance)
    other = apply(SMALL, params_of(SMALL), np.concatenate([X[:1] ** 2, X[1:]]), TIME)
    assert jnp.abs(other[0] - logits[0]).max() > tolerance
    np.testing.assert_allclose(other[1:], logits[1:], rtol=0, atol=tolerance)


def test_brightness_and_contrast_do_not_matter():
    # Each image is standardised; the last step of all layers before it is linear in x.
    logits = apply(SMALL, params_of(SMALL), X, TIME)
    np.testing.assert_allclose(apply(SMALL, params_of(SMALL), 3 * X + 5, TIME), logits, rtol=0, atol=1e3 * EPS)


def test_dropout_is_active_only_when_asked():
    network = SMALL.clone(dropout=0.5)
    keys = [jax.random.key(seed, impl="rbg") for seed in (1, 1, 2)]
    draw, again, other = (apply(network, params_of(SMALL), X, TIME, key) for key in keys)
    assert jnp.array_equal(draw, again) and not jnp.allclose(draw, other)
    # Deterministic, it is the same program as without dropout.
    with_dropout, without = (apply.trace(n, params_of(SMALL), X, TIME).jaxpr for n in (network, SMALL))
    assert str(with_dropout) == str(without)


@pytest.mark.slow
def test_gradient_is_finite_even_for_one_colour():
    x = jnp.ones((1, 8, 8, 3))
    gradient = jax.grad(lambda x: apply(SMALL, params_of(SMALL), x, jnp.zeros(1))[0, 0])(x)
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_output_is_float32(dtype):
    network = SMALL.clone(dtype=dtype, num_classes=7)
    output = jax.eval_shape(network.apply, {"params": shapes(network)}, X, TIME)
    assert (output.shape, output.dtype) == ((3, 7), jnp.float32)


@pytest.mark.parametrize(
    "fields, shape, message",
    [
        ({}, (1, 6, 8, 3), r"multiples of 4, got shape \(1, 6, 8, 3\)"),
        ({"data_mean": (0.5, 0.5)}, (1, 8, 8, 3), r"data_mean is \(0\.5, 0\.5\); allowed: 1 or 3 numbers"),
    ],
)
def test_impossible_ones_are_refused(fields, shape, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(SMALL.clone(**fields).init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(1))


def stripes(key, n):
    """(noisy images, log sigma, labels): horizontal or vertical stripes of random phase, sigma in [0.01, 1]."""
    label_key, phase_key, time_key, noise_key = jax.random.split(key, 4)
    label = jax.random.bernoulli(label_key, shape=(n,)).astype(jnp.int32)
    phase = 2 * jnp.pi * jax.random.uniform(phase_key, (n, 1))
    wave = jnp.sign(jnp.sin(jnp.arange(8) * jnp.pi / 2 + phase))
    image = jnp.where(label[:, None, None] == 0, wave[:, :, None], wave[:, None, :])[..., None]
    time = jax.random.uniform(time_key, (n,), minval=math.log(0.01), maxval=0.0)
    noise = jax.random.normal(noise_key, (n, 8, 8, 3))
    return image + jnp.exp(time)[:, None, None, None] * noise, time, label


@pytest.mark.slow
def test_it_learns_to_tell_noisy_stripes_apart():
    optimiser = optax.adam(1e-3)

    def loss_of(params, x, time, label):
        return optax.softmax_cross_entropy_with_integer_labels(apply(SMALL, params, x, time), label).mean()

    @jax.jit
    def step(params, state, batch):
        gradient = jax.grad(loss_of)(params, *batch)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, updates), state

    draw = jax.jit(stripes, static_argnums=1)
    fresh = draw(jax.random.key(99), 256)
    params = params_of(SMALL)
    state = optimiser.init(params)
    for i in range(16):
        params, state = step(params, state, draw(jax.random.key(i), 32))
    correct = apply(SMALL, params, *fresh[:2]).argmax(axis=-1) == fresh[2]
    # A guess is right half the time, with a standard error of 1/32 on 256 images.
    assert correct.mean() > 0.9
