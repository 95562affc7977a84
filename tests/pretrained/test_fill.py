"""Weights fill a network exactly, or are refused with the name of every tensor that is not what it should be."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from score_flow.errors import UserError
from score_flow.pretrained.base import SHOWN, Layout, Leaf, as_dtype, conv, dense, fill, pointwise, same, stacked

IMAGE = (2, 5, 4, 3)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.tanh(nn.Dense(4, name="dense")(x)), None


class Tiny(nn.Module):
    """One of each: a convolution, a 1 x 1 convolution, layers in a scan, a linear map, a scale."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3), name="conv_in")(x)
        x = nn.Dense(4, name="mix")(x)
        x, _ = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)(name="layers")(
            x, None
        )
        x = x * self.param("scale", nn.initializers.ones, (4,))
        return nn.Dense(5, name="head")(x.mean((1, 2)))


SHAPES = {  # of the source, which is torch's
    "conv_in.weight": (6, 3, 3, 3),
    "conv_in.bias": (6,),
    "mix.weight": (4, 6, 1, 1),
    "mix.bias": (4,),
    **{f"layers.{i}.weight": (4, 4) for i in range(3)},
    **{f"layers.{i}.bias": (4,) for i in range(3)},
    "scale": (4,),
    "head.weight": (5, 4),
    "head.bias": (5,),
}
SIGMAS = np.geomspace(50.0, 0.01, 7)
LAYOUT = Layout(
    leaves={
        "conv_in/kernel": Leaf(("conv_in.weight",), conv),
        "conv_in/bias": Leaf(("conv_in.bias",), same),
        "mix/kernel": Leaf(("mix.weight",), pointwise),
        "mix/bias": Leaf(("mix.bias",), same),
        "layers/dense/kernel": Leaf(tuple(f"layers.{i}.weight" for i in range(3)), stacked(dense)),
        "layers/dense/bias": Leaf(tuple(f"layers.{i}.bias" for i in range(3)), stacked(same)),
        "scale": Leaf(("scale",), same),
        "head/kernel": Leaf(("head.weight",), dense),
        "head/bias": Leaf(("head.bias",), same),
    },
    constants={"sigmas": SIGMAS, "counter": None},
)


@pytest.fixture(scope="module")
def shapes():
    return jax.eval_shape(Tiny().init, jax.random.key(0, impl="rbg"), np.zeros(IMAGE, np.float32))["params"]


@pytest.fixture
def tensors():
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}
    return weights | {"sigmas": SIGMAS.astype(np.float32), "counter": np.array(7)}


def faults(shapes, tensors) -> list[str]:
    with pytest.raises(UserError) as error:
        fill(shapes, LAYOUT, tensors)
    message = str(error.value)
    assert "\n" not in message and message.startswith("the weights do not fit the network: ")
    return message.removeprefix("the weights do not fit the network: ").removesuffix(".").split("; ")


def of_torch(w, x):
    """What torch computes with these weights, channels first."""
    padded = np.pad(x.transpose(0, 3, 1, 2), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    x = np.einsum("bihwyx,oiyx->bohw", windows, w["conv_in.weight"]) + w["conv_in.bias"][:, None, None]
    x = np.einsum("bihw,oi->bhwo", x, w["mix.weight"][:, :, 0, 0]) + w["mix.bias"]
    for i in range(3):
        x = np.tanh(x @ w[f"layers.{i}.weight"].T + w[f"layers.{i}.bias"])
    return (x * w["scale"]).mean((1, 2)) @ w["head.weight"].T + w["head.bias"]


def test_the_right_weights_fill_exactly(shapes, tensors):
    params = fill(shapes, LAYOUT, tensors)
    assert jax.tree.map(lambda leaf: leaf.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert all(leaf.flags.c_contiguous for leaf in jax.tree.leaves(params))
    np.testing.assert_array_equal(params["conv_in"]["kernel"][0, 2, 1], tensors["conv_in.weight"][:, 1, 0, 2])
    np.testing.assert_array_equal(params["layers"]["dense"]["kernel"][1], tensors["layers.1.weight"].T)
    np.testing.assert_array_equal(params["head"]["kernel"], tensors["head.weight"].T)


def test_the_filled_network_is_the_source(shapes, tensors):
    x = np.random.default_rng(1).standard_normal(IMAGE)
    with jax.enable_x64(True):
        params = as_dtype(fill(shapes, LAYOUT, tensors), "float64")
        got = jax.jit(Tiny().apply)({"params": params}, x)
    expected = of_torch({name: w.astype(np.float64) for name, w in tensors.items()}, x)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)  # 100 roundings of float64, of numbers near 1


def test_buffers_may_be_absent_and_in_another_precision(shapes, tensors):
    for sigmas in ({}, {"sigmas": SIGMAS}, {"sigmas": SIGMAS.astype(np.float32)}):
        rest = {name: w for name, w in tensors.items() if name not in ("sigmas", "counter")}
        assert jax.tree.structure(fill(shapes, LAYOUT, rest | sigmas)) == jax.tree.structure(shapes)


# ---- mutations


def renamed(tensors, name):
    return {("module." + key if key == name else key): w for key, w in tensors.items()}


def missing(tensors, name):
    return {key: w for key, w in tensors.items() if key != name}


def extra(tensors, name):
    return tensors | {f"{name}.1": tensors[name]}


def longer(tensors, name):
    return tensors | {name: np.concatenate([tensors[name], tensors[name][:1]])}


def flat(tensors, name):
    return tensors | {name: tensors[name].reshape(-1, 1)}


def transposed(tensors, name):
    return tensors | {name: tensors[name].T}


def with_value(tensors, name, value):
    mutant = tensors[name].copy()
    mutant.flat[-1] = value
    return tensors | {name: mutant}


def nan(tensors, name):
    return with_value(tensors, name, np.nan)


def infinite(tensors, name):
    return with_value(tensors, name, -np.inf)


SQUARE = [name for name in SHAPES if name.startswith("layers.") and name.endswith("weight")]
MUTATIONS = [
    *((mutate, name, f"{name} is missing") for mutate in (renamed, missing) for name in SHAPES),
    *((extra, name, f"{name}.1 is not part of this network") for name in SHAPES),
    *((mutate, name, f"{name} has shape ") for mutate in (longer, flat) for name in SHAPES),
    *((transposed, name, f"{name} has shape ") for name, s in SHAPES.items() if len(s) > 1 and name not in SQUARE),
    *((mutate, name, f"{name} is not finite") for mutate in (nan, infinite) for name in SHAPES),
]


def case(mutate, name, said):
    return pytest.param(mutate, name, said, id=f"{mutate.__name__}-{name}")


@pytest.mark.parametrize(("mutate", "name", "said"), [case(*mutation) for mutation in MUTATIONS])
def test_a_mutated_tensor_is_refused_by_name(shapes, tensors, mutate, name, said):
    found = faults(shapes, mutate(tensors, name))
    assert any(fault.startswith(said) for fault in found), found
    assert len(found) == (2 if mutate is renamed else 1)  # and nothing else is accused


@pytest.mark.parametrize(
    "sigmas",
    [SIGMAS[::-1], SIGMAS * 1.001, SIGMAS[:6], np.append(SIGMAS, 0.0), with_value({"s": SIGMAS}, "s", np.nan)["s"]],
)
def test_another_constant_is_refused_by_name(shapes, tensors, sigmas):
    assert faults(shapes, tensors | {"sigmas": sigmas}) == ["sigmas is not what this network has fixed"]


def test_a_renamed_tensor_is_named_both_ways(shapes, tensors):
    found = faults(shapes, renamed(tensors, "head.bias"))
    assert found == ["head.bias is missing", "module.head.bias is not part of this network"]


def test_many_faults_are_counted(shapes):
    found = faults(shapes, {})
    assert len(found) == SHOWN + 1 and found[-1] == f"and {len(SHAPES) - SHOWN} more"


def test_a_layout_of_another_network_is_our_mistake(shapes, tensors):
    leaves = {path: leaf for path, leaf in LAYOUT.leaves.items() if path != "scale"}
    with pytest.raises(AssertionError, match="scale"):
        fill(shapes, LAYOUT._replace(leaves=leaves), tensors)
    with pytest.raises(AssertionError):
        fill(shapes, LAYOUT._replace(constants={"head.bias": None}), tensors)
