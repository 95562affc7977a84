"""NCSN++, DDPM++ and DDPM: published sizes, what they start as, what the options do, and the names of their weights."""

import math
import random
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from score_flow.config.hints import arguments_of, limits_of
from score_flow.errors import UserError
from score_flow.networks import ddpm, ncsnpp
from score_flow.networks.blocks import layers, resample
from score_flow.networks.blocks import ncsnpp as ncsnpp_blocks
from score_flow.pretrained.layouts import ncsnpp as ncsnpp_layout
from tests.discover import thinned
from tests.golden_data import golden_dir

EPS = float(jnp.finfo("float32").eps)
SMALL = {"width": 8, "channel_mult": (1, 1, 2), "num_res_blocks": 1, "attention_resolutions": (8,)}
CHOICES = {
    name: limits_of(parameter.annotation).choices()
    for name, parameter in arguments_of(ncsnpp.NCSNpp).items()
    if isinstance(parameter.default, str) and name != "remat"
}
OPTIONS = CHOICES | {
    "conditional": (True, False),
    "resamp_with_conv": (True, False),
    "fir": (True, False),
    "skip_rescale": (True, False),
    "remat": ("full", "none"),
    "groups": (None, 4),
}
draw = random.Random(1582)  # these draws hold nearly every pair of choices
COMBINATIONS = [{field: draw.choice(choices) for field, choices in OPTIONS.items()} for _ in range(9)]
every_combination = pytest.mark.parametrize("options", COMBINATIONS, ids=range(len(COMBINATIONS)))


LAYOUTS = ncsnpp_layout.torch_layout, ncsnpp_layout.flax_layout


def small(build=ncsnpp.build, **fields):
    return build(**SMALL | fields)


@cache
def shapes(network, image_shape=(16, 16, 3)):
    """The parameters' shapes by path; nothing is computed."""
    x, time = jnp.zeros((1, *image_shape)), jnp.zeros(1)
    return flatten_dict(jax.eval_shape(network.init, jax.random.key(0), x, time)["params"], sep="/")


def trace(network, dtype="float32"):
    """The program of a network with parameters of a dtype, as a jaxpr of (image, time)."""
    float32 = network.clone(dtype="float32")
    params = unflatten_dict({path: np.zeros(s.shape, dtype) for path, s in shapes(float32).items()}, sep="/")
    x, time = jnp.zeros((1, 16, 16, 3), dtype), jnp.zeros(1, dtype)
    return jax.make_jaxpr(partial(network.apply, {"params": params}))(x, time)


# --- What is published ---


@pytest.mark.parametrize(
    "network, side, parameters",
    [
        # CIFAR-10: NCSN++ cont. (62.8 M), deep (107.6 M) and DDPM (35.2 M); DDPM 256; NCSN++ 256 and 1024.
        (ncsnpp.build(embedding="fourier", fir=True, progressive_input="residual"), 32, 62_758_915),
        (ncsnpp.build(num_res_blocks=8, embedding="fourier", fir=True, progressive_input="residual"), 32, 107_587_075),
        (ddpm.build(), 32, 35_218_947),
        (ddpm.build(channel_mult=(1, 1, 2, 2, 4, 4)), 256, 111_569_923),
        (
            ncsnpp.build(
                channel_mult=(1, 1, 2, 2, 2, 2, 2),
                num_res_blocks=2,
                embedding="fourier",
                fir=True,
                progressive="output_skip",
                progressive_input="input_skip",
            ),
            256,
            65_574_549,
        ),
        (
            ncsnpp.build(
                width=16,
                channel_mult=(1, 2, 4, 8, 16, 32, 32, 32),
                num_res_blocks=1,
                embedding="fourier",
                fir=True,
                progressive="output_skip",
                progressive_input="input_skip",
            ),
            1024,
            105_785_896,
        ),
    ],
)
@pytest.mark.slow
def test_published_sizes(network, side, parameters):
    # The integers follow from the layers that score_sde_pytorch's constructors build.
    assert sum(math.prod(s.shape) for s in shapes(network, (side, side, 3)).values()) == parameters


OPS = golden_dir() / "score_sde/ops/layers_torch.npz"
EMBEDDINGS = (
    [key for key in np.load(OPS, allow_pickle=False) if key.startswith("timestep_emb")] if OPS.is_file() else []
)


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_time_embedding_is_that_of_score_sde_pytorch(name):
    arrays = np.load(OPS, allow_pickle=False)
    features = layers.ddpm_features(jnp.asarray(arrays["timesteps"]), int(name.rsplit("_", 1)[1]))
    # On both sides the angle is rounded to float32, after a power and a product.
    np.testing.assert_allclose(features, arrays[name], atol=3 * EPS * arrays["timesteps"].max())


@pytest.mark.skipif(not OPS.is_file(), reason="no reference numbers")
def test_fourier_features_are_those_of_score_sde_pytorch():
    x, w, out = (np.load(OPS, allow_pickle=False)[f"fourier_{key}"] for key in ("x", "W", "out"))
    features = layers.FourierFeatures(len(w)).apply({"params": {"w": w}}, jnp.asarray(x))
    np.testing.assert_allclose(features, out, atol=3 * EPS * 2 * np.pi * np.abs(np.outer(x, w)).max())


# --- What the networks start as ---


def initial_scale(network, path):
    """Variance of a kernel, times the mean of its fans, as score_sde has it."""
    first, layer = path[0], path[-2]
    last = first == "conv_out" or (first.startswith("conv_up") and network.progressive == "output_skip")
    if last or layer in ("conv_1", "out"):
        return network.init_scale or 1e-10
    is_nin = layer in ("query", "key", "value") or (layer == "shortcut" and network.resblock == "ddpm")
    return 0.1 if is_nin else 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    thinned([
        small(channel_mult=(1, 2), embedding="fourier", progressive="output_skip", progressive_input="input_skip"),
        small(ddpm.build, channel_mult=(1, 2), progressive="residual", progressive_input="residual", init_scale=0.5),
    ], 2),
    ids=["ncsnpp", "ddpm"],
)  # fmt: skip
def test_initial_weights(network):
    arguments = jax.random.key(1, impl="unsafe_rbg"), jnp.zeros((1, 16, 16, 3)), jnp.zeros(1)
    for path, values in flatten_dict(jax.jit(network.init)(*arguments)["params"]).items():
        n = values.size
        if path[-1] in ("bias", "scale"):
            assert (values == (path[-1] == "scale")).all()
        elif path[-1] == "w":  # a normal law: its sample variance has relative standard error sqrt(2 / n)
            assert abs(np.square(values).mean() / network.fourier_scale**2 - 1) < 5 * math.sqrt(2 / n)
        else:  # U(-a, a): kurtosis 9/5
            fans = math.prod(values.shape[:-2]) * np.mean(values.shape[-2:])
            variance = initial_scale(network, path) / fans
            assert np.abs(values).max() <= math.sqrt(3 * variance) * (1 + EPS), path
            assert abs(np.square(values).mean() / variance - 1) < 5 * math.sqrt(0.8 / n), path


# --- What the options do ---


@pytest.mark.parametrize("options", thinned(COMBINATIONS[:2], 2), ids=range(2))
def test_float64_is_float64_throughout(options):
    with jax.enable_x64(True):
        assert "f32[" not in str(trace(small(**options, dtype="float64"), "float64"))


def test_without_time_there_is_no_embedding():
    network = small(conditional=False)
    assert not [path for path in shapes(network) if "embedding" in path or "time" in path]
    program = trace(network).jaxpr
    assert not any(program.invars[1] is variable for equation in program.eqns for variable in equation.invars)


@pytest.mark.parametrize("channels, groups, expected", [(8, None, 2), (48, None, 12), (256, None, 32), (144, None, 24)])
def test_groups_are_a_quarter_of_the_channels_at_most_32(channels, groups, expected):
    # 144 channels: 32 do not divide them, 24 is the next number that does.
    assert ncsnpp_blocks.group_norm(channels, groups, name="norm").groups == expected


def test_ddpm_has_32_groups():
    assert {ncsnpp_blocks.group_norm(width, ddpm.build().groups, name="norm").groups for width in (32, 128, 512)} == {
        32
    }


def test_nonlinearities():
    x = jnp.array([-2.0, 0.0, 3.0])
    expected = {
        "relu": [0, 0, 3],
        "lrelu": [-0.4, 0, 3],
        "elu": [math.expm1(-2), 0, 3],
        "swish": [-2 / (1 + math.exp(2)), 0, 3 / (1 + math.exp(-3))],
    }
    assert expected.keys() == layers.NONLINEARITIES.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(layers.NONLINEARITIES[name](x), values, rtol=4 * EPS)


@pytest.mark.slow
def test_output_skip_sums_one_image_of_each_level():
    network = small(progressive="output_skip", fir=True, fir_kernel=(1, 2, 1), conditional=False)
    params = {path: jnp.zeros(s.shape) for path, s in shapes(network).items()}
    expected = None
    for level in (2, 1, 0):  # every layer is 0 but for the bias of the last one
        params[f"conv_up_{level}_output/bias"] = jnp.full(3, float(level + 1))
        image = jnp.full((1, 16 >> level, 16 >> level, 3), level + 1.0)
        expected = image if expected is None else resample.upsample(expected, (1, 2, 1)) + image
    x = jax.random.normal(jax.random.key(0), (1, 16, 16, 3))
    output = jax.jit(network.apply)({"params": unflatten_dict(params, sep="/")}, x, jnp.zeros(1))
    np.testing.assert_allclose(output, expected, rtol=8 * EPS)


@pytest.mark.slow
def test_rematerialisation_keeps_no_inside_of_a_block():
    x, time = jnp.ones((4, 16, 16, 3)), jnp.ones(4)

    def kept(network):  # numbers kept for the backward pass, parameters and all
        params = unflatten_dict({path: jnp.zeros(s.shape) for path, s in shapes(network).items()}, sep="/")
        run = partial(network.apply, deterministic=False, rngs={"dropout": jax.random.key(0)})
        residuals = jax.eval_shape(lambda p: jax.vjp(lambda p: run({"params": p}, x, time), p)[1], params)
        return sum(leaf.size for leaf in jax.tree.leaves(residuals))

    plain, remat = (small(channel_mult=(1,), dropout=0.5, remat=remat) for remat in ("none", "full"))
    assert shapes(plain) == shapes(remat)
    blocks = sum(path.endswith("conv_1/kernel") for path in shapes(plain))
    # Each block has at least the inputs of its convolutions and of its second norm.
    assert kept(plain) - kept(remat) > blocks * 3 * 4 * 16 * 16 * SMALL["width"]


@pytest.mark.parametrize("field", CHOICES)
def test_unknown_choices_are_refused(field):
    allowed = CHOICES[field]
    with pytest.raises(
        UserError, match=f"NCSNpp.{field} is '{allowed[0]}x'.*{allowed[-1]}.*Did you mean '{allowed[0]}'"
    ):
        small(**{field: f"{allowed[0]}x"})


@pytest.mark.parametrize(
    "fields, message",
    [({"num_classes": 3, "conditional": False}, "conditional=True"), ({"fir_kernel": (1, -1)}, r"\(1, -1\)")],
)
def test_impossible_options_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        small(**fields)


# --- The names of published weights ---


@pytest.mark.parametrize("options", thinned(COMBINATIONS, 3), ids=range(len(COMBINATIONS)))
def test_layouts_name_every_parameter_and_each_tensor_once(options):
    network = small(**options | {"attention_up": "last"})  # as both projects have it
    for layout_of in LAYOUTS:
        leaves, constants = layout_of(network, (16, 16, 3))
        names = [name for leaf in leaves.values() for name in leaf.names]
        assert set(leaves) == set(shapes(network))
        assert len(set(names)) == len(names) and not set(names) & set(constants)


def test_layouts_count_as_the_sources_do():
    # PyTorch numbers the modules of its list; flax those of a class, pyramids without parameters among them.
    fields = {"resblock": "ddpm", "progressive": "output_skip", "progressive_input": "input_skip"}
    torch, flax = (layout_of(small(**fields), (16, 16, 3)).leaves for layout_of in LAYOUTS)
    names = {path: (torch[path].names[0], flax[path].names[0]) for path in torch}
    assert names["conv_in/kernel"] == ("all_modules.2.weight", "Conv_0/kernel")
    assert names["down_0_0/conv_0/bias"] == ("all_modules.3.Conv_0.bias", "ResnetBlockDDPMpp_0/Conv_0/bias")
    assert names["down_1_resample/kernel"] == ("all_modules.4.Conv_0.weight", "Downsample_0/Conv_0/kernel")
    assert names["down_1_input/kernel"] == ("all_modules.5.Conv_0.weight", "Combine_0/Conv_0/kernel")
    assert names["down_1_0_attention/key/bias"] == ("all_modules.7.NIN_1.b", "AttnBlockpp_0/NIN_1/b")
    assert names["down_2_resample/kernel"] == ("all_modules.8.Conv_0.weight", "Downsample_2/Conv_0/kernel")
    assert names["up_1_resample/kernel"][1] == "Upsample_2/Conv_0/kernel"
    assert names["norm_up_1_output/scale"][1] == "GroupNorm_1/scale"
    fir = ncsnpp_layout.flax_layout(small(ddpm.build, fir=True), (16, 16, 3)).leaves
    assert fir["up_1_resample/kernel"].names == ("Upsample_1/Conv2d_0/weight",)
    assert fir["down_0_0/norm_0/scale"].names == ("ResnetBlockDDPM_0/GroupNorm_0/scale",)


def test_layouts_refuse_labels():
    for layout_of in LAYOUTS:
        with pytest.raises(UserError, match="num_classes must be 0, got 3"):
            layout_of(small(num_classes=3), (16, 16, 3))
