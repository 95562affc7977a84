"""DINOv2 against the authors' own code, by numbers that it made of drawn weights, and what its parts are."""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.model import count_parameters
from score_flow.networks.dinov2 import SIZES, DINOv2, cubic, resized
from score_flow.pretrained.dinov2 import from_tensors, said
from tests.golden_data import COMMITTED
from tests.pretrained.drawn_weights import drawn

FOLDER = COMMITTED / "dinov2"
CASES = json.loads((FOLDER / "meta.json").read_text())["cases"]
COUNTS = {"S": 22_056_576, "B": 86_580_480, "L": 304_368_640, "g": 1_136_480_768}


@cache
def golden():
    with np.load(FOLDER / "io.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def error(value, reference):
    return np.linalg.norm(value - reference) / np.linalg.norm(reference)


@pytest.mark.slow  # in make test the FD-DINOv2 of such features is EDM2's
@pytest.mark.parametrize("case", ["plain", "gated_registers"])
def test_float64_is_the_sources(case):
    """Of images enlarged and reduced, and of those that it is given as it sees them, whose sides differ."""
    arrays = golden()
    with jax.enable_x64(True):
        network, params = from_tensors(drawn(CASES[case]["shapes"]), "float64")
        apply = jax.jit(network.apply, static_argnames="method")
        for image in ("small", "large"):
            found = apply({"params": params}, jnp.asarray(arrays[f"image_{image}"], "float64"))
            assert error(found.token, arrays[f"{case}_{image}_token"]) < 1e-9
            assert error(found.patches[:, ::37], arrays[f"{case}_{image}_patches"]) < 1e-9
        found = apply({"params": params}, arrays[f"{case}_x"], method="tokens")
        assert error(found.token, arrays[f"{case}_x_token"]) < 1e-9


@pytest.mark.slow
def test_float32_is_near():
    case, arrays = next(iter(CASES)), golden()
    network, params = from_tensors(drawn(CASES[case]["shapes"]))
    with jax.default_matmul_precision("highest"):
        found = jax.jit(network.apply)({"params": params}, jnp.asarray(arrays["image_small"], "float32"))
    assert found.token.dtype == jnp.float32 and error(found.token, arrays[f"{case}_small_token"]) < 1e-5


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_the_published(size):
    """With the token of hidden patches, which the published counts have and no feature depends on."""
    network = DINOv2(*SIZES[size])
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 14, 14, 3)))["params"]
    assert count_parameters(shapes) + network.width == COUNTS[size]
    assert said(network) == f"ViT-{size}/14"


def test_weights_of_pixels_sum_to_one():
    for way in ({"antialias": True}, {"offset": 0.1}, {}):
        for n, size in ((37, 16), (32, 224), (500, 224), (224, 224)):
            np.testing.assert_allclose(cubic(n, size, **way).sum(axis=1), 1, atol=1e-12)


def test_an_image_of_the_size_stays_as_it_is():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 12, 12, 3)), jnp.float32)
    for way in ({"antialias": True}, {}):
        weights = cubic(12, 12, **way)
        np.testing.assert_allclose(weights, np.eye(12), atol=1e-12)
        np.testing.assert_allclose(resized(x, weights, weights), x, atol=1e-6)
