"""NCSN and NCSNv2: normalisations, interpolation, what they start as, and the names of published weights."""

import json
import math
import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from score_flow.errors import UserError
from score_flow.networks import ncsn, ncsnv2
from score_flow.networks.blocks import refinenet
from score_flow.networks.blocks.refinenet import Norm
from score_flow.pretrained.base import fill
from score_flow.pretrained.layouts import ncsn as ncsn_layout
from tests.discover import thinned
from tests.golden_data import golden_dir

EPS = float(jnp.finfo("float32").eps)
X = 3 + 2 * jax.random.normal(jax.random.key(0), (2, 4, 6, 5))
KEY = jax.random.key(1, impl="rbg")  # compiles in a quarter of threefry's time


@cache
def shapes(network, image_shape=(8, 8, 3)):
    """The parameters' shapes by path."""
    variables = jax.eval_shape(network.init, KEY, jnp.zeros((1, *image_shape)), jnp.zeros(1))
    return flatten_dict(variables["params"], sep="/")


def size(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@cache
def program(build, dtype):
    """A network in a dtype as a jaxpr of (x, time), traced and not computed."""
    network, x = build(width=4, dtype=dtype, interpolation="bilinear_align_corners"), np.zeros((2, 4, 4, 1), np.float32)
    wide = np.float64 if dtype == "float64" else np.float32
    params = {path: np.zeros(leaf.shape, wide) for path, leaf in shapes(build(width=4), x.shape[1:]).items()}
    apply = partial(network.apply, {"params": unflatten_dict(params, sep="/")})
    return jax.make_jaxpr(lambda x, time: apply(x, time))(x.astype(wide), np.zeros(2, wide))


OPS = golden_dir() / "score_sde/ops/layers_torch.npz"
ARRAYS = dict(np.load(OPS, allow_pickle=False)) if OPS.is_file() else {}


@pytest.mark.parametrize("output", [key for key in ARRAYS if "Norm" in key and key.endswith("_out")])
def test_normalisation_is_that_of_score_sde_pytorch(output):
    conditional, name, plus = re.fullmatch(r"(Conditional)?(\w+?)2d(Plus)?_out", output).groups()
    kind, theirs = name + "++" * bool(plus), output.removesuffix("_out")
    names = {"embedding": "embed.weight"} if conditional else ncsn_layout.TORCH[kind]
    params = {ours: ARRAYS[f"{theirs}.{name}"] for ours, name in names.items()}
    assert {f"{theirs}.{name}" for name in names.values()} == {k for k in ARRAYS if k.startswith(f"{theirs}.")}
    norm = Norm(kind, len(params["embedding"]) if conditional else 0, unbiased=True)
    level = jnp.asarray(ARRAYS["norm_y"], jnp.int32) if conditional else None
    y = jnp.moveaxis(norm.apply({"params": params}, jnp.moveaxis(jnp.asarray(ARRAYS["norm_x"]), 1, -1), level), -1, 1)
    # Two means, a difference, a root and three products, each rounded; theirs likewise.
    np.testing.assert_allclose(y, ARRAYS[output], rtol=0, atol=16 * EPS * np.abs(ARRAYS[output]).max())


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("kind", refinenet.COEFFICIENTS)
def test_normalisation_makes_the_moments_it_says(kind, unbiased):
    scale, alpha, bias = np.random.default_rng(0).standard_normal((3, X.shape[-1]))
    params = {k: {"scale": scale, "alpha": alpha, "bias": bias}[k] for k in refinenet.COEFFICIENTS[kind]}
    y = np.asarray(Norm(kind, unbiased=unbiased, epsilon=0.0).apply({"params": params}, X), np.float64)
    mean, deviation = y.mean(axis=(1, 2)), y.std(axis=(1, 2))
    means, pixels = np.asarray(X, np.float64).mean(axis=(1, 2)), X[0, ..., 0].size
    standard = (means - means.mean(axis=1, keepdims=True)) / means.std(axis=1, ddof=int(unbiased), keepdims=True)
    expected = {
        "InstanceNorm++": (scale * alpha * standard + bias, np.abs(scale)),
        "InstanceNorm": (bias, np.abs(scale)),
        # The variance of all pixels, by n - 1: that by n is a little less than 1.
        "VarianceNorm": (mean, np.abs(scale) * math.sqrt(1 - unbiased / pixels)),
        "NoneNorm": (scale * np.mean(X, axis=(1, 2)) + bias, np.abs(scale) * np.std(X, axis=(1, 2))),
    }[kind]
    # Means of order 3 hide differences of order .1 between the channels: rounding grows by 30.
    for value, reference in zip((mean, deviation), expected, strict=True):
        np.testing.assert_allclose(value, np.broadcast_to(reference, value.shape), atol=30 * 8 * EPS)


def test_a_level_is_a_row_of_scale_alpha_bias():
    rows = np.random.default_rng(0).standard_normal((4, 3 * X.shape[-1])).astype(np.float32)
    level = jnp.array([3, 1])
    y = Norm("InstanceNorm++", num_scales=4).apply({"params": {"embedding": rows}}, X, level)
    for i, row in enumerate(rows[level]):
        params = dict(zip(("scale", "alpha", "bias"), np.split(row, 3), strict=True))
        alone = Norm("InstanceNorm++").apply({"params": params}, X[i : i + 1])[0]
        np.testing.assert_allclose(y[i], alone, atol=8 * EPS * float(jnp.abs(y).max()))


def test_levels_are_the_nearest_numbers():
    time = jnp.array([-3.0, 0.0, 0.4, 0.6, 2.0, 2.9, 3.0, 3.2, 99.0])
    assert ncsn.build(num_scales=4).level(time).tolist() == [0, 0, 0, 1, 2, 3, 3, 3, 3]


@pytest.mark.parametrize("interpolation", ["bilinear", "bilinear_align_corners"])
def test_bilinear_upsampling_reproduces_bilinear_functions(interpolation):
    def grid(h, w):  # f(row, column) for the rows and columns of two channels
        row, column = h[:, None], w[None]
        return np.stack([2 + 3 * row - 5 * column + row * column, 1 - row * column], axis=-1)[None]

    def positions(n):  # of the 2 n points: both grids share their corners, or the outer edges of their pixels
        if interpolation == "bilinear_align_corners":
            return np.linspace(0, n - 1, 2 * n)
        return np.clip((np.arange(2 * n) + 0.5) / 2 - 0.5, 0, n - 1)

    h, w = 3, 4
    y = refinenet.upsample(jnp.asarray(grid(np.arange(h), np.arange(w)), jnp.float32), interpolation)
    expected = grid(positions(h), positions(w))
    np.testing.assert_allclose(y, expected, atol=4 * EPS * np.abs(expected).max())


def test_nearest_upsampling_repeats():
    y = refinenet.upsample(X, "nearest_neighbor")
    assert jnp.array_equal(y, jnp.repeat(jnp.repeat(X, 2, axis=1), 2, axis=2))


def test_pooling_of_5_by_5():
    ones = refinenet.average_pool(jnp.ones((1, 6, 7, 1), jnp.bfloat16), (5, 5))
    assert ones.dtype == jnp.bfloat16  # zeros outside count: 9 of 25 at a corner, 15 at an edge
    for value, (row, column) in {9: (0, 0), 15: (0, 3), 25: (2, 2)}.items():
        assert ones[0, row, column, 0] == jnp.bfloat16(value / 25)
    y = refinenet.max_pool(-X, (5, 5))  # nothing outside counts
    assert jnp.array_equal(y[:, 0, 0], -X[:, :3, :3].min(axis=(1, 2)))
    # The divergence of a likelihood takes it forward: the tangent of a maximum is that of its pixel.
    y, tangent = jax.jvp(lambda x: refinenet.max_pool(x, (5, 5)), (X,), (X**2,))
    assert jnp.array_equal(tangent, y**2)


# A module of every kind: most of the time is compilation of their draws.
SOME = ("conv_in", "stage_1_0", "stage_2_0/shortcut", "refine_1/fusion", "refine_1/pooling/conv_0", "norm_out")


@pytest.mark.parametrize("network", thinned([ncsnv2.build(width=32), ncsn.build(width=32)], 2), ids=["ncsnv2", "ncsn"])
def test_it_starts_as_published(network):
    @jax.jit
    def init(key):
        params = network.init(key, jnp.zeros((1, 4, 4, 3)), jnp.zeros(1))["params"]
        return {path: value for path, value in flatten_dict(params, sep="/").items() if path.startswith(SOME)}

    params = init(KEY)
    ones, zeros, uniform = [], [], []
    for path, value in params.items():
        module, _, name = path.rpartition("/")
        halves = module in ("stage_1_0/conv_1", "stage_1_0/shortcut")  # flax's default: variance 1 / fan_in, bias 0
        if name == "embedding":
            scale_alpha, bias = np.split(value, [2 * value.shape[1] // 3], axis=1)
            ones.append(np.ravel(scale_alpha))
            zeros.append(bias)
        elif halves and name == "kernel":
            assert abs(np.square(value).mean() * value[..., 0].size - 1) < 5 * math.sqrt(2 / value.size)
        elif halves or module.rpartition("/")[2].startswith("norm"):
            (zeros if name == "bias" else ones).append(value)
        else:
            uniform.append(np.ravel(value) * math.sqrt(params[f"{module}/kernel"][..., 0].size))
    ones, uniform = np.concatenate(ones), np.concatenate(uniform)
    assert not any(value.any() for value in zeros)
    # N(1, .02^2); U(-1, 1) in units of 1 / sqrt(fan_in), whose square has mean 1/3 and variance 4/45.
    assert abs(ones.mean() - 1) < 5 * 0.02 / math.sqrt(ones.size)
    assert abs(ones.std() / 0.02 - 1) < 5 / math.sqrt(2 * ones.size)
    assert np.abs(uniform).max() <= 1 + EPS
    assert abs(np.square(uniform).mean() - 1 / 3) < 5 * math.sqrt(4 / 45 / uniform.size)


@pytest.mark.parametrize(
    "network, parameters",
    [
        (ncsnv2.build(), 33_970_563),
        (ncsnv2.build(narrow_refinement=True), 29_694_083),  # score_sde_pytorch
        (ncsnv2.build(resolution=128), 83_445_379),
        (ncsnv2.build(resolution=256), 94_132_611),
        (ncsn.build(num_scales=10), 34_428_675),
        (ncsn.build(num_scales=232), 44_828_931),
    ],
)
@pytest.mark.slow
def test_published_sizes(network, parameters):
    # score_sde's own modules count as many; configs/ve/ncsn and ncsnv2, width 128, RGB.
    assert size(shapes(network)) == parameters


@pytest.mark.parametrize("build", [ncsnv2.build, pytest.param(ncsn.build, marks=pytest.mark.slow)])
def test_it_computes_in_the_dtype_it_is_told(build):
    with jax.enable_x64(True):
        assert not re.search(r"\b(f32|bf16)\b", str(program(build, "float64")))
    lines = str(program(build, "bfloat16")).splitlines()
    types = {kind: {line.split(":")[1][:3] for line in lines if f"= {kind}" in line} for kind in ("conv_", "sqrt")}
    assert types == {"conv_": {"bf1"}, "sqrt": {"f32"}}


@pytest.mark.parametrize("build", [ncsnv2.build, ncsn.build])
@pytest.mark.slow
def test_ncsnv2_ignores_time_and_ncsn_does_not(build):
    jaxpr = program(build, "bfloat16").jaxpr
    time = jaxpr.invars[1]
    assert build.ignores_time == (not any(time is v for equation in jaxpr.eqns for v in equation.invars))
    assert build.ignores_time == (build is ncsnv2.build)


@pytest.mark.parametrize(
    "build, fields, shape, message",
    [
        (ncsnv2.build, {"resolution": 32}, (8, 8, 3), "resolution is 32; allowed: 64, 128, 256"),
        (ncsnv2.build, {"normalization": "InstanceNorm+"}, (8, 8, 3), "Did you mean 'InstanceNorm"),
        (ncsn.build, {"interpolation": "nearest"}, (8, 8, 3), "NCSN.interpolation .*nearest_neighbor"),
        (ncsn.build, {"num_scales": 0}, (8, 8, 3), "num_scales is 0"),
        (ncsn.build, {}, (7, 8, 3), r"multiples of 2.*7, 8"),
        (ncsnv2.build, {"resolution": 128}, (6, 8, 3), r"multiples of 4.*6, 8"),
        (ncsnv2.build, {"resolution": 256}, (8, 12, 3), r"multiples of 8.*8, 12"),
    ],
)
def test_impossible_configs_are_refused(build, fields, shape, message):
    with pytest.raises(UserError, match=message):
        shapes(build(**fields), shape)


@pytest.mark.parametrize("kind", thinned(["torch", "flax"], 2))
@pytest.mark.parametrize(
    "network",
    [
        ncsnv2.build(width=4),
        ncsnv2.build(width=4, resolution=128, normalization="VarianceNorm"),
        ncsnv2.build(width=4, resolution=256, normalization="InstanceNorm"),
        ncsn.build(width=4, num_scales=3, narrow_refinement=True),
    ],
    ids=lambda network: f"{type(network).__name__}-{network.resolution}-{network.normalization}",
)
def test_layouts_put_every_tensor_in_its_place(kind, network):
    theirs = {("torch", "kernel"): lambda w: w.transpose(3, 2, 0, 1), ("flax", "norm"): lambda w: w[None, None, None]}
    random, params, tensors = np.random.default_rng(0), {}, {}
    layout = getattr(ncsn_layout, f"{kind}_layout")(network, (8, 8, 3))
    wanted = shapes(network)
    for path, leaf in layout.leaves.items():
        *_, module, name = path.split("/")
        part = "norm" if module.startswith("norm") and name != "embedding" else name
        if leaf.names:
            params[path] = random.standard_normal(wanted[path].shape).astype(np.float32)
            tensors[leaf.names[0]] = theirs.get((kind, part), lambda w: w)(params[path])
        else:  # PyTorch's InstanceNorm
            assert network.normalization == "InstanceNorm" and part == "norm"
            params[path] = np.full(wanted[path].shape, name == "scale", np.float32)
    filled = flatten_dict(fill(unflatten_dict(wanted, sep="/"), layout, tensors), sep="/")
    assert filled.keys() == params.keys()
    assert all(np.array_equal(filled[path], params[path]) for path in params)


@pytest.mark.parametrize(
    "fields, message", [({"num_classes": 3}, "num_classes is 3.*: 0"), ({"normalization": "NoneNorm"}, "'NoneNorm'")]
)
def test_networks_that_were_never_published_have_no_layout(fields, message):
    for layout in (ncsn_layout.torch_layout, ncsn_layout.flax_layout):
        with pytest.raises(UserError, match=message):
            layout(ncsnv2.build(width=4, **fields), (8, 8, 3))


def descriptions(folder):
    """The descriptions of this family's golden networks in a folder."""
    found = {file.stem: json.loads(file.read_text()) for file in sorted((golden_dir() / folder).glob("*.json"))}
    ours = {stem: d for stem, d in found.items() if re.match("ncsn(v2|$)", d["config"]["model"]["name"])}
    return pytest.mark.parametrize("description", ours.values(), ids=ours)


def described(config, **fields):
    """The network of a golden description, and the shape of its images."""
    model, data = config["model"], config["data"]
    name, _, resolution = model["name"].partition("_")
    fields |= {"num_scales": model["num_scales"]} if name == "ncsn" else {"resolution": int(resolution)}
    network = {"ncsn": ncsn, "ncsnv2": ncsnv2}[name].build(
        width=model["nf"], normalization=model["normalization"], nonlinearity=model["nonlinearity"], **fields
    )
    return network, (data["image_size"], data["image_size"], data["num_channels"])


@descriptions("score_sde/models")
def test_torch_names_are_those_of_the_state_dict(description):
    layout = ncsn_layout.torch_layout(*described(description["config"], narrow_refinement=True))
    names = {name for leaf in layout.leaves.values() for name in leaf.names} | set(layout.constants)
    # NCSN has no buffer of noise levels; a constant may be absent.
    assert names == {key.removeprefix("module.") for key in description["state_dict_keys"]} | {"sigmas"}


@descriptions("score_sde/models_jax")
@pytest.mark.slow
def test_flax_names_and_shapes_are_those_of_the_parameters(description):
    network, image_shape = described(description["config"])
    tensors = {}
    for line in description["param_names"]:  # "Conv_0/kernel (3, 3, 3, 4)"
        name, _, shape = line.partition(" ")
        tensors[name] = np.zeros([int(n) for n in re.findall(r"\d+", shape)])
    params = shapes(network, image_shape)
    filled = fill(unflatten_dict(params, sep="/"), ncsn_layout.flax_layout(network, image_shape), tensors)
    assert size(filled) == description["num_parameters"] == size(params)
