"""Names of the published Flow++ dequantisers' tensors."""

from functools import partial

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from score_flow.errors import UserError
from score_flow.networks import flowpp
from score_flow.networks.blocks.flowpp import Conv
from score_flow.pretrained import base
from score_flow.pretrained.layouts.flowpp import flax_layout
from tests.networks.test_flowpp import SHAPE, SMALL, batch, every_preset, init, small, trained


def given(*names, weights="W"):
    return {f"{name}_{w}" for name in names for w in (*weights, "b")}


BLOCK = {"block0_conv_a_proj", "block0_conv_c2"}
NORMS = {"norm0_g", "norm0_b", "norm1_g", "norm1_b"}
SOURCE_NAMES = {  # with one block and one coupling
    "cifar10": {
        "ShallowProcessor_0": given("proj", "c0_c1", "c0_c2"),
        "Norm_0": NORMS,
        "Pointwise_0": {"W0", "W1"},
        "MixLogisticAttnCoupling_0": given("proj_in", "block0_conv_c1", *BLOCK, "block0_proj_out")
        | given("block0_ln1", "block0_ln2", weights="g")
        | given("block0_attn_proj1", "block0_attn_proj2")
        | {"pos_emb"},
    },
    "imagenet32": {
        "DeepProcessor_0": given("proj", "c0_c1", "c0_c2", weights="Vg")
        | given("dqln0", "ln0", weights="g")
        | given("dqattn0_proj1", "dqattn0_proj2")
        | {"pos_emb_dq"},
        "Norm_0": NORMS,
        "MixLogisticAttnCoupling_0": given("c1", "block0_conv_c1", "block0_c2", weights="Vg")
        | given(*BLOCK, "block0_attn_proj1", "block0_attn_proj2")
        | given("block0_ln1", "block0_ln2", weights="g")
        | {"pos_emb"},
    },
    "imagenet64": {
        "DeepProcessor_0": given("proj", "c0_c1", "c0_c2") | given("dqln0", weights="g") | {"pos_emb_dq"},
        "Norm_0": NORMS,
        "MixLogisticCoupling_0": given("c1", "block0_conv_c1", *BLOCK, "block0_c2")
        | given("block0_ln1", weights="g")
        | {"pos_emb"},
    },
}


@every_preset
def test_layout_names_every_tensor_of_the_source_and_every_parameter(name):
    network = flowpp.PRESETS[name].clone(**SMALL | {"couplings": 1})
    layout = flax_layout(network)
    shapes, _ = jax.eval_shape(partial(init, network), *batch(1))
    assert set(layout.leaves) == {"/".join(path) for path in flatten_dict(shapes)}
    names = [n for leaf in layout.leaves.values() for n in leaf.names] + list(layout.constants)
    expected = {f"{module}/{n}" for module, tensors in SOURCE_NAMES[name].items() for n in tensors}
    assert set(names) == expected and len(names) == len(expected)


@pytest.mark.parametrize("name, tensors", [("cifar10", 170), ("imagenet32", 1164), ("imagenet64", 229)])
def test_layout_of_the_published_networks(name, tensors):
    layout = flax_layout(flowpp.PRESETS[name])
    assert len(layout.leaves) + len(layout.constants) == tensors  # counted as the sizes above


@every_preset
def test_source_tensors_become_parameters(name):
    network = small(name)
    params, layout = trained(network), flax_layout(network)
    flat = {"/".join(path): value for path, value in flatten_dict(params).items()}

    def theirs(path):
        value, leaf = flat[path], path.split("/")[-1]
        if leaf == "kernel":
            return value[0, 0] if value.shape[0] == 1 else value.swapaxes(0, 1)
        return value.reshape(1, 1, 1, -1) if "_norm_" in path else value

    tensors = {leaf.names[0]: theirs(path) for path, leaf in layout.leaves.items()}
    tensors |= {unread: np.zeros(SHAPE) for unread in layout.constants}
    jax.tree.map(np.testing.assert_array_equal, base.fill(params, layout, tensors), params)


def test_plain_kernels_lie_on_their_side_in_the_source():
    x, w = batch(2)[0], np.random.default_rng(0).standard_normal((3, 3, 2, 4), np.float32)
    numbers = ("NWHC", "HWIO", "NWHC")  # what the source calls the axes of an image
    source = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)
    read = flax_layout(flowpp.PRESETS["cifar10"]).leaves["context/conv_in/kernel"].read
    ours = jax.jit(Conv(4).apply)({"params": {"kernel": read(w), "bias": np.zeros(4, "float32")}}, x)
    np.testing.assert_allclose(ours, source, atol=18 * np.finfo("float32").eps * np.abs(w).max())


def test_layout_refuses_blocks_without_names():
    with pytest.raises(UserError, match="begin like"):
        flax_layout(flowpp.PRESETS["cifar10"].clone(block=("norm", "conv")))
