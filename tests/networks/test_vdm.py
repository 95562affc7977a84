"""VDM's network: the published size, what it adds to its input and to its output."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from score_flow.networks import vdm

EPS = float(jnp.finfo("float32").eps)
PUBLISHED = 30_578_179  # of the score model of its CIFAR-10, by its own code


def shapes(network, shape):
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(shape[0]))["params"]


@pytest.mark.slow
def test_the_default_has_the_published_size():
    """Ours has a bias in the map of the embedding of each block, theirs a row for a condition that is 0."""
    leaves = flatten_dict(shapes(vdm.build(), (1, 32, 32, 3)), sep="/")
    ours = sum(math.prod(leaf.shape) for leaf in leaves.values())
    biases = [math.prod(leaf.shape) for path, leaf in leaves.items() if path.endswith("/embedding/bias")]
    assert len(biases) == 32 + 2 + 33
    assert ours - sum(biases) + 4 * 128 == PUBLISHED
    assert leaves["conv_in/kernel"].shape == (3, 3, 3 * (1 + 2 * 2), 128)


def test_features_are_sines_and_cosines_of_the_input_by_channel():
    x = jax.random.uniform(jax.random.key(0), (2, 3, 4, 2), minval=-1.0)
    angles = 2 * np.pi * np.asarray(x, np.float64)[..., None] * 2.0 ** np.arange(6, 8)
    angles = angles.reshape(2, 3, 4, 4)  # (channel, power)
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    found = vdm.fourier_features(x, (6, 7))
    np.testing.assert_allclose(found, expected, atol=2 * np.pi * 2**7 * EPS)
    assert vdm.fourier_features(x.astype(jnp.bfloat16), (6, 7)).dtype == jnp.float32


@pytest.mark.slow
def test_an_untrained_network_returns_its_input_at_any_size():
    network = vdm.build(width=8, num_res_blocks=1, groups=4, out_channels=4)
    x = jax.random.normal(jax.random.key(0), (1, 5, 7, 2))
    key = jax.random.key(1, impl="rbg")
    out, _ = jax.jit(network.init_with_output)(key, x, jnp.array([300.0]))
    assert out.shape == (1, 5, 7, 4)
    np.testing.assert_allclose(out[..., :2], x, atol=1e-4)  # the last layer starts at 1e-5 of its usual size
    assert float(jnp.abs(out[..., 2:]).max()) < 1e-4
