"""What DiT adds to a transformer over patches: each option does what it says, and sizes are the published ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from score_flow.errors import UserError
from score_flow.networks import dit
from score_flow.networks.blocks import transformer
from tests.networks.test_networks import CLASSES, LABEL, TIME, X, apply, relative_error, shapes, size, small

JIT = {"num_classes": 1000, "class_tokens": 32}
CONTEXT = {"class_tokens": 3, "register_tokens": 2, "context_start": 1}


@pytest.mark.parametrize("fields, shape, millions", [
    (JIT | {"width": 1664, "depth": 40, "num_heads": 16, "patch_size": 16, "bottleneck": 256, "context_start": 10},
     (1, 256, 256, 3), 2007),  # JiT-G/16, "2 B"; the others are recipes
    ({"num_classes": 1000, "width": 768, "num_heads": 12, "norm": "layer", "mlp": "gelu", "qk_norm": False},
     (1, 32, 32, 4), 130),  # DiT-B/2 without its fixed positions and the variances
])  # fmt: skip
def test_published_sizes(fields, shape, millions):
    params, output = shapes(dit.build(**fields), shape, {"label": jnp.zeros(1, jnp.int32)})
    assert int(size(params) / 1e6) == millions and output.shape == shape


def trained(network):
    """Parameters of which none is zero."""
    given = LABEL if network.num_classes else None
    drawn = jax.jit(network.init)(jax.random.key(1, impl="rbg"), X, TIME, given)["params"]
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + 0.1 * random.standard_normal(leaf.shape, np.float32), drawn)


def test_tokens_in_context_change_what_comes_after_them_alone():
    """Blocks before them are those of a network without; with no labels registers stay."""
    network = small("dit", **CONTEXT)
    params = trained(network)
    assert params["context"].shape == (5, 24)
    assert {len(params[name]["qkv"]["kernel"]) for name in ("blocks", "context_blocks")} == {1}
    before = apply(network, params)
    for rows in (slice(0, 3), slice(3, 5)):
        moved = params | {"context": params["context"].at[rows].add(1.0)}
        assert relative_error(apply(network, moved), before) > 1e-4
    unlabelled, _ = shapes(small("dit", num_classes=0, register_tokens=2), X.shape)
    assert unlabelled["context"].shape == (2, 24)


def test_a_third_of_the_blocks_comes_before_the_tokens():
    assert [dit.build(depth=depth, register_tokens=1).n_before for depth in (12, 24, 32)] == [4, 8, 10]  # JiT's
    assert dit.build(depth=12).n_before == 12


def test_rotations_see_differences_of_places_alone():
    """q R(a) . k R(b) depends on a - b, along rows and along columns."""
    angles = transformer.rotations(4, 4, 8)
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    turned = [transformer.turned(jnp.broadcast_to(part, (1, 16, 1, 8)), angles)[0, :, 0] for part in (q, k)]
    products = np.asarray(turned[0] @ turned[1].T).reshape(4, 4, 4, 4)  # row, column of q and of k
    np.testing.assert_allclose(products[:3, :3, :3, :3], products[1:, 1:, 1:, 1:], atol=1e-5)
    assert abs(products[0, 0, 0, 1] - products[0, 0, 1, 0]) > 1e-3
    assert not transformer.rotations(2, 2, 8, unmoved=3)[:3].any()


def test_rms_norm():
    x = jax.random.normal(jax.random.key(0), (3, 7)) * 5
    got = transformer.RMSNorm().apply({"params": {"scale": jnp.arange(7.0)}}, x)
    expected = np.asarray(x) / np.sqrt(np.mean(np.asarray(x, np.float64) ** 2, axis=-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(got, expected * np.arange(7.0), rtol=1e-5)


def test_dropout_of_the_middle_half_leaves_the_others():
    """Of four blocks the second and the third: with their gates shut it does nothing."""
    network = small("dit", depth=4, dropout=0.5, dropout_blocks="middle", num_classes=0)
    params, key = trained(network), jax.random.key(3, impl="rbg")
    ran = apply(network, params, condition=None)
    assert relative_error(apply(network, params, condition=None, key=key), ran) > 1e-3
    width = network.width
    gates = np.ones((4, 6 * width), np.float32)
    gates[1:3, 2 * width : 3 * width] = gates[1:3, 5 * width :] = 0
    dense = params["blocks"]["modulation"]
    shut = {"kernel": dense["kernel"] * gates[:, None], "bias": dense["bias"] * gates}
    params = params | {"blocks": params["blocks"] | {"modulation": shut}}
    args = (network, params), {"condition": None}
    assert relative_error(apply(*args[0], **args[1], key=key), apply(*args[0], **args[1])) < 1e-5


def test_options_take_their_parameters_away():
    all_of_them = set(flatten_dict(shapes(small("dit"), X.shape, LABEL)[0]))
    without = {"norm": "layer", "qk_norm": False}
    left = set(flatten_dict(shapes(small("dit", **without), X.shape, LABEL)[0]))
    assert {path[-2] for path in all_of_them - left} == {"norm_0", "norm_1", "norm_out", "query_norm", "key_norm"}
    params, _ = shapes(small("dit", shift=False, mlp="gelu", bottleneck=5), X.shape, LABEL)
    assert params["blocks"]["modulation"]["kernel"].shape == (2, 24, 4 * 24)
    assert params["blocks"]["mlp_0"]["kernel"].shape == (2, 24, 96)
    assert params["patches_input"]["kernel"].shape == (2 * 2 * 2, 5) and "bias" not in params["patches_input"]


@pytest.mark.parametrize("fields, message", [
    ({"class_tokens": 2, "num_classes": 0}, "use register_tokens"),
    ({"width": 36, "num_heads": 6}, "heads of a multiple of 4"),
    ({"register_tokens": 1, "context_start": 3}, "context_start is 3, of 2 blocks"),
    ({"patch_size": 3}, "patch_size=3.*16, 16"),
    ({"norm": "rmsnorm"}, "allowed: rms, layer|layer, rms"),
])  # fmt: skip
def test_impossible_ones_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        shapes(small("dit", **({"num_classes": CLASSES} | fields)), X.shape, LABEL)
