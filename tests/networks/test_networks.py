"""Every network of the directory keeps one interface; the published ones have the published sizes."""

import dataclasses
import importlib
import math
import pkgutil
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from score_flow import networks
from score_flow.errors import UserError
from score_flow.networks import ncsnpp, sit
from score_flow.networks.blocks import layers, transformer

NAMES = [module.name for module in pkgutil.iter_modules(networks.__path__)]
MODULES = {name: importlib.import_module(f"{networks.__name__}.{name}") for name in NAMES}
slow = pytest.mark.slow
NETWORKS = sorted(name for name, module in MODULES.items() if hasattr(module, "build"))


def is_preset(name):
    """Whether a network is another plug-in's with other defaults or one more thing."""
    return any(other != name and issubclass(MODULES[name].build, MODULES[other].build) for other in NETWORKS)


def networks_of(quick):  # the others with make test-all
    return pytest.mark.parametrize("name", [pytest.param(n, marks=() if quick(n) else slow) for n in NETWORKS])


every_network = networks_of(lambda name: not is_preset(name) and name != "edm2")  # edm2 compiles for long
few_networks = networks_of(lambda name: name in ("ddpm", "mlp", "sit"))

# For networks that offer these fields.
SMALL = {"width": 24, "depth": 2, "num_res_blocks": 1, "channel_mult": (1, 2), "num_scales": 1000}
CLASSES = 3
X = jax.random.normal(jax.random.key(0), (4, 16, 16, 2))
TIME = jnp.array([0.5, 20.0, 400.0, 999.0])
LABEL = {"label": jnp.array([0, 1, 2, CLASSES])}  # the last is the null class


def small(name, **fields):
    build = MODULES[name].build
    offered = {field.name for field in dataclasses.fields(build)}
    return build(**{k: v for k, v in SMALL.items() if k in offered} | {"num_classes": CLASSES} | fields)


@partial(jax.jit, static_argnums=0)
def _apply(network, params, x, time, condition, key):
    rngs = {} if key is None else {"dropout": key}
    return network.apply({"params": params}, x, time, condition, deterministic=key is None, rngs=rngs)


def apply(network, params, x=X, time=TIME, condition=LABEL, key=None):
    return _apply(network, params, x, time, condition, key)


@cache
def params_of(name):
    """Parameters as after some training: no layer is zero and every activation is of order 1."""
    random = np.random.default_rng(0)

    def draw(path, leaf):
        noise = random.standard_normal(leaf.shape, np.float32)
        fan_in = math.prod(leaf.shape[:-1])
        return {"kernel": noise / math.sqrt(fan_in), "scale": 1 + 0.1 * noise}.get(path[-1].key, 0.1 * noise)

    return jax.tree_util.tree_map_with_path(draw, shapes(small(name), X.shape, LABEL)[0])


def shapes(network, shape, condition=None):
    """Shapes of (parameters, output); nothing is computed."""
    x, time = jnp.zeros(shape), jnp.zeros(shape[0])
    output, variables = jax.eval_shape(lambda key: network.init_with_output(key, x, time, condition), jax.random.key(0))
    return variables.get("params", {}), output


def size(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def relative_error(a, b):
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


def rounding(params, dtype):
    """Relative error of n layers in a row that each round by at most eps / 2, independently, times a margin of 2."""
    n = sum(SMALL["depth"] if "blocks" in path else 1 for path in flatten_dict(params) if path[-1] == "kernel")
    return float(jnp.finfo(dtype).eps) * math.sqrt(n)


def test_the_directory_is_the_registry():
    assert {"mlp", "ncsnpp", "sit"} <= set(NETWORKS)


@few_networks
@pytest.mark.parametrize("dtype, out_channels", [
    ("float32", None), ("bfloat16", 5),
    pytest.param("float32", 5, marks=slow), pytest.param("bfloat16", None, marks=slow),
])  # fmt: skip
def test_output_and_parameters_are_float32_of_the_given_shape(name, out_channels, dtype):
    params, output = shapes(small(name, out_channels=out_channels, dtype=dtype), X.shape, LABEL)
    assert (output.shape, output.dtype) == ((*X.shape[:-1], out_channels or X.shape[-1]), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@few_networks
def test_bfloat16_computes_the_same_function_up_to_rounding(name):
    params = params_of(name)
    error = relative_error(apply(small(name, dtype="bfloat16"), params), apply(small(name), params))
    assert 0 < error < rounding(params, jnp.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NETWORKS if getattr(MODULES[name].build, "casts", False)])
def test_what_may_be_sent_in_bfloat16_is_used_in_it_alone(name):
    """Rounding it before changes no bit."""
    params, network = params_of(name), small(name, dtype="bfloat16")
    every_rounding = {"xla_allow_excess_precision": False}  # XLA leaves some out otherwise
    exact = _apply.lower(network, params, X, TIME, LABEL, None).compile(every_rounding)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(leaf.dtype) if leaf.ndim > 1 else leaf, params)
    np.testing.assert_array_equal(exact(rounded, X, TIME, LABEL, None), exact(params, X, TIME, LABEL, None))


@few_networks
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_time_changes_the_output(name, dtype):
    # In bfloat16, 998 and 999 are one number: features of time must be computed in float32.
    run = partial(apply, small(name, dtype=dtype), params_of(name))
    early, late = (run(time=jnp.full_like(TIME, t)) for t in (998.0, 999.0))
    if getattr(MODULES[name].build, "ignores_time", False):  # NCSNv2
        assert jnp.array_equal(early, late)
    else:
        assert relative_error(early, late) > rounding(params_of(name), jnp.float32)


@every_network
def test_label_changes_the_output_of_its_example_only(name):
    params = params_of(name)
    before = apply(small(name), params)
    after = apply(small(name), params, condition={"label": LABEL["label"].at[0].set(1)})
    assert relative_error(after[0], before[0]) > rounding(params, jnp.float32)
    assert relative_error(after[1:], before[1:]) < rounding(params, jnp.float32)


@few_networks
def test_conditional_network_refuses_a_missing_label_and_unconditional_has_no_table(name):
    with pytest.raises(UserError, match="label"):
        shapes(small(name), X.shape)
    unconditional, _ = shapes(small(name, num_classes=0), X.shape)
    conditional, _ = shapes(small(name), X.shape, LABEL)
    extra = set(flatten_dict(conditional)) - set(flatten_dict(unconditional))
    extra = [path for path in extra if "tokens" not in path[-1]]
    assert [flatten_dict(conditional)[path].shape[0] for path in extra] == [CLASSES + 1]


@few_networks
def test_dropout_is_active_only_when_asked(name):
    network, params = small(name, dropout=0.5), params_of(name)
    draw, again, other = (apply(network, params, key=jax.random.key(seed, impl="rbg")) for seed in (3, 3, 4))
    assert jnp.array_equal(draw, again)
    assert min(relative_error(draw, o) for o in (other, apply(small(name), params))) > rounding(params, jnp.float32)
    # Deterministic, it is the same program as without dropout.
    with_dropout, without = (_apply.trace(n, params, X, TIME, LABEL, None).jaxpr for n in (network, small(name)))
    assert str(with_dropout) == str(without)


@every_network
def test_examples_do_not_mix(name):
    run, order = partial(apply, small(name), params_of(name)), jnp.array([2, 0, 3, 1])
    permuted = run(X[order].at[0].set(7.0), TIME[order].at[0].set(3.0), {"label": LABEL["label"][order]})
    assert relative_error(permuted[1:], run()[order][1:]) < rounding(params_of(name), jnp.float32)


@few_networks
def test_equal_configs_are_one_compilation(name):
    assert hash(small(name)) == hash(small(name)) and small(name) == small(name)
    assert small(name) != small(name, dropout=0.25)
    traced = []

    @partial(jax.jit, static_argnums=0)
    def run(network, x):
        traced.append(x.shape)
        return network.apply({"params": params_of(name)}, x, TIME[: len(x)], {"label": LABEL["label"][: len(x)]})

    for x in (X, X + 1, X[:2], X):
        run.eval_shape(small(name), x)
    assert traced == [X.shape, X[:2].shape]


@pytest.mark.parametrize("name, bound", [("mlp", 1e-3), pytest.param("ncsnpp", 1e-3, marks=slow), ("sit", 0.0)])
def test_initial_output_is_zero(name, bound):
    # Variance 1e-10 leaves a factor 1e-5, times activations of order 1 to 10; SiT's last layer is exactly zero.
    network = small(name, **({"channel_mult": (1,)} if name == "ncsnpp" else {}))
    key = jax.random.key(1, impl="rbg")  # compiles in a quarter of threefry's time
    output, _ = jax.jit(network.init_with_output)(key, X, TIME, LABEL)
    assert float(jnp.abs(output).max()) <= bound


@pytest.mark.parametrize(
    "width, depth, num_heads, millions", [(384, 12, 6, 32.96), (768, 12, 12, 130.51), (1152, 28, 16, 675.13)]
)
def test_sit_has_the_published_sizes(width, depth, num_heads, millions):
    # Ma et al. 2024, S/2, B/2 and XL/2: their counts include the 256 fixed positions, which are no parameters here.
    network = sit.build(width=width, depth=depth, num_heads=num_heads, num_classes=1000, out_channels=8)
    params, output = shapes(network, (1, 32, 32, 4), {"label": jnp.zeros(1, jnp.int32)})
    assert round((size(params) + 256 * width) / 1e6, 2) == millions
    assert output.shape == (1, 32, 32, 8)


@pytest.mark.parametrize(
    "name, fields, shape",
    [
        ("mlp", {"embedding": "fourier"}, (5, 1)),
        ("ncsnpp", {"embedding": "fourier", "resblock": "ddpm"}, (2, 16, 8, 3)),
        ("ncsnpp", {"channel_mult": (1,)}, (2, 3, 5, 1)),
        ("ncsnpp", {"width": 48}, (2, 8, 8, 1)),  # joins 144 channels, which min(144 // 4, 32) groups do not divide
        ("sit", {"patch_size": 4}, (1, 8, 16, 1)),
    ],
)
def test_variants(name, fields, shape):
    assert shapes(small(name, num_classes=0, **fields), shape)[1].shape == shape


def test_ncsnpp_attends_at_the_asked_resolutions():
    params, _ = shapes(ncsnpp.build(width=8, num_res_blocks=2, attention_resolutions=(16, 4)), (1, 16, 16, 1))
    attention = {path[0] for path in flatten_dict(params) if "query" in path}
    expected = {"up_0_attention", "up_2_attention", "middle_attention"}
    assert attention == expected | {f"down_{level}_{block}_attention" for level in (0, 2) for block in (0, 1)}


def test_sit_starts_as_published():
    """Xavier-uniform maps, N(0, .02^2) embeddings, zero modulations and output (arXiv:2212.09748, sec. 3.2)."""
    network = sit.build(width=64, depth=3, num_heads=4, num_classes=50, mlp_ratio=4.0)
    x, condition = jnp.zeros((1, 8, 8, 4)), {"label": jnp.zeros(1, jnp.int32)}
    params = jax.jit(network.init)(jax.random.key(0, impl="rbg"), x, jnp.zeros(1), condition)["params"]
    for path, leaf in flatten_dict(params).items():
        name = "/".join(path)
        if path[-1] == "bias" or "modulation" in name or path[0] == "out":
            assert not leaf.any(), name
            continue
        fans = leaf.shape[-2:]
        std = 0.02 if path[0] == "embedding" else math.sqrt(2 / sum(fans))
        # A standard deviation from n draws errs by std sqrt((kurtosis - 1) / 4 n) <= std / sqrt(2 n): five of these.
        assert abs(float(leaf.std()) / std - 1) < 5 / math.sqrt(2 * leaf.size), name
        if path[0] != "embedding":
            assert float(jnp.abs(leaf).max()) <= math.sqrt(6 / sum(fans)), name


def test_sit_positions_are_sines_and_cosines_of_columns_then_rows():
    for i, position in enumerate(transformer.sincos_positions(2, 3, width=8)):
        row, column = divmod(i, 3)
        halves = [[math.sin(p), math.sin(p / 100), math.cos(p), math.cos(p / 100)] for p in (column, row)]
        np.testing.assert_allclose(position, np.ravel(halves), atol=np.finfo("float32").eps)


def test_sit_patches_are_blocks_of_the_image():
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
    patches = transformer.patchify(x, 2)
    assert jnp.array_equal(patches[:, 4].reshape(2, 2, 2, 3), x[:, 2:4, 2:4])  # second row, second column
    assert jnp.array_equal(transformer.unpatchify(patches, 2, 3, 2), x)


@pytest.mark.slow
def test_sit_rematerialisation_keeps_one_activation_per_block():
    def kept(remat):  # numbers kept for the backward pass besides the parameters
        run = partial(apply, small("sit", remat=remat))
        residuals = jax.eval_shape(lambda params: jax.vjp(run, params)[1], params_of("sit"))
        return size(residuals) - size(params_of("sit"))

    width, depth, tokens = 24, SMALL["depth"], 4 * 64  # 4 images of 16 x 16 in patches of 2 x 2
    dense_outputs = tokens * (3 + 1 + 4 + 1) * width
    assert kept("dots") - kept("full") >= depth * dense_outputs
    assert kept("dots") < depth * (dense_outputs + 8 * tokens * width)  # no n x n matrix of attention


@pytest.mark.parametrize(
    "build, fields, shape, message",
    [
        (ncsnpp.build, {}, (1, 12, 16, 3), r"multiples of 8.*12, 16"),
        (ncsnpp.build, {"embedding": "positionl"}, (1, 8, 8, 3), "Did you mean 'positional'"),
        (ncsnpp.build, {"resblock": "adm"}, (1, 8, 8, 3), "allowed: biggan, ddpm"),
        (sit.build, {"patch_size": 4}, (1, 10, 16, 1), r"patch_size=4.*10, 16"),
        (sit.build, {"width": 100, "num_heads": 6}, (1, 8, 8, 1), "width=100"),
    ],
)
def test_impossible_configs_are_refused(build, fields, shape, message):
    with pytest.raises(UserError, match=message):
        shapes(build(**fields), shape)


@pytest.mark.parametrize(
    "features, first, second, divisor",
    [(layers.ddpm_features, np.sin, np.cos, 3), (layers.transformer_features, np.cos, np.sin, 4)],
)
def test_time_features(features, first, second, divisor):
    time = np.array([0.0, 0.3, 999.0])
    angles = time[:, None] * 10_000.0 ** (-np.arange(4) / divisor)
    expected = np.concatenate([first(angles), second(angles), np.zeros((3, 1))], axis=-1)
    # The angle itself is rounded to float32, after a power and a product.
    np.testing.assert_allclose(features(jnp.asarray(time), 9), expected, atol=3 * 999 * np.finfo("float32").eps)


def test_fourier_features_are_fixed():
    time = jnp.array([0.1, -0.7])
    module = layers.FourierFeatures(5, scale=2.0)
    variables = module.init(jax.random.key(0), time)
    angles = 2 * np.pi * np.outer(time, variables["params"]["w"])
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    tolerance = 3 * np.finfo("float32").eps * np.abs(angles).max()
    np.testing.assert_allclose(module.apply(variables, time), expected, atol=tolerance)
    assert not jax.grad(lambda v: module.apply(v, time).sum())(variables)["params"]["w"].any()


def test_group_norm_standardises_each_group():
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (2, 4, 4, 6))
    params = {"scale": jnp.arange(1.0, 7.0), "bias": jnp.arange(6.0)}
    groups = np.asarray(x, np.float64).reshape(2, 16, 3, 2)
    mean, variance = groups.mean(axis=(1, 3), keepdims=True), groups.var(axis=(1, 3), keepdims=True)
    expected = ((groups - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape) * params["scale"] + params["bias"]
    # E[x^2] - E[x]^2 loses a factor E[x^2] / variance = (9 + 4) / 4 of the precision.
    tolerance = 13 / 4 * 8 * np.finfo("float32").eps
    y = layers.GroupNorm(3).apply({"params": params}, x)
    np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance * float(jnp.abs(y).max()))
    assert layers.GroupNorm(3).apply({"params": params}, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@slow
def test_group_norm_has_the_derivatives_of_its_formula():
    """Forward, backward, and forward of backward: those of the textbook's formula in float32."""
    x, dx = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 6)) + 1
    params = {"scale": jnp.arange(1.0, 7.0), "bias": jnp.arange(6.0)}

    def textbook(params, x):
        y = x.reshape(2, 16, 3, 2)
        y = (y - y.mean((1, 3), keepdims=True)) / jnp.sqrt(y.var((1, 3), keepdims=True) + 1e-6)
        return y.reshape(x.shape) * params["scale"] + params["bias"]

    def derivatives(norm):
        gradient = jax.grad(lambda params, x: jnp.sum(jnp.sin(norm(params, x))), argnums=(0, 1))
        forward = jax.jvp(partial(norm, params), (x,), (dx,))[1]
        return forward, gradient(params, x), jax.jvp(partial(gradient, params), (x,), (dx,))[1]

    ours = derivatives(lambda params, x: layers.GroupNorm(3).apply({"params": params}, x))
    for got, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(derivatives(textbook)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * float(jnp.abs(expected).max()))
