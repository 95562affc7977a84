"""The U-Net of improved DDPM: what it starts as, where it attends, how it resamples."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from score_flow.errors import UserError
from score_flow.networks import adm

# Every kind of module; few of each, as most of the time here is compilation.
SMALL = {"width": 32, "channel_mult": (1, 2), "num_res_blocks": 0, "attention_resolutions": (4,), "num_heads": 2}
X = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
TIME = jnp.array([3.5, 900.0])
LOW_RES = jax.random.normal(jax.random.key(1), (2, 4, 2, 3))
EPS = float(jnp.finfo("float32").eps)


def shapes(network, shape, condition=None):
    key = jax.random.key(0)
    return jax.eval_shape(partial(network.init, condition=condition), key, jnp.zeros(shape), jnp.zeros(shape[0]))


def trained(params, seed=0):
    """Parameters as after some training: no layer is zero and every activation is of order 1."""
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = random.standard_normal(leaf.shape, np.float32)
        fan_in = math.prod(leaf.shape[:-1])
        return {"kernel": noise / math.sqrt(fan_in), "scale": 1 + 0.1 * noise}.get(path[-1].key, 0.1 * noise)

    return jax.tree_util.tree_map_with_path(draw, params)


def outputs(network, params, names, condition=None):
    """The outputs of some submodules; what they do not need is not computed."""

    @jax.jit
    def run(params):
        _, state = network.apply({"params": params}, X, TIME, condition, capture_intermediates=True)
        return [state["intermediates"][name]["__call__"][0] for name in names]

    return run(params)


@pytest.mark.slow
def test_it_starts_as_published():
    key = jax.random.key(1, impl="rbg")  # compiles in a quarter of threefry's time
    params = flatten_dict(jax.jit(adm.build(**SMALL).init)(key, X, TIME)["params"], sep="/")
    zero = {name for name, value in params.items() if not value.any()}
    modules = {name.rpartition("/")[0] for name in params}
    last = {m for m in modules if m.endswith(("conv_1", "attention/out", "conv_out"))}  # of each branch, of it all
    norms = {name.removesuffix("/scale") for name in params if name.endswith("scale")}
    time = {"embedding/time_0", "embedding/time_1"}  # layers.Embedding: biases start at zero
    whole = {f"{module}/{kind}" for module in last for kind in ("kernel", "bias")}
    assert zero == whole | {f"{module}/bias" for module in norms | time}
    assert all((params[f"{module}/scale"] == 1).all() for module in norms)

    # The others are U(-b, b), b = 1 / sqrt(fan_in), weights and biases alike: in units of b, the mean of the square is
    # 1/3 with a standard error of sqrt(4 / 45 n).
    units = {"kernel": [], "bias": []}
    for name in set(params) - zero - {f"{module}/scale" for module in norms}:
        module, kind = name.rsplit("/", 1)
        units[kind].append(np.ravel(params[name]) * math.sqrt(math.prod(params[f"{module}/kernel"].shape[:-1])))
    for value in [*units["kernel"], np.concatenate(units["bias"])]:
        assert np.abs(value).max() <= 1 + EPS
        assert abs(np.square(value).mean() - 1 / 3) < 5 * math.sqrt(4 / 45 / value.size)


@pytest.mark.parametrize("resolutions, levels", [((16, 4), (0, 2)), ((), ())])
def test_it_attends_after_every_block_of_the_asked_heights(resolutions, levels):
    network = adm.build(width=8, num_res_blocks=2, channel_mult=(1, 1, 1), attention_resolutions=resolutions)
    names = set(shapes(network, (1, 16, 8, 1))["params"])
    down = {f"down_{level}_{block}_attention" for level in levels for block in range(2)}
    up = {f"up_{level}_{block}_attention" for level in levels for block in range(3)}
    assert {name for name in names if name.endswith("attention")} == down | up | {"middle_attention"}


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_channels_are_heads_of_query_key_value(heads):
    block = adm.AttentionBlock(heads, "float32")
    x = jax.random.normal(jax.random.key(0), (2, 2, 3, 8))
    params = trained(jax.eval_shape(block.init, jax.random.key(0), x)["params"])
    params["norm"] = {"scale": jnp.ones(8), "bias": jnp.zeros(8)}
    d, h = 8 // heads, np.asarray(x, np.float64).reshape(2, 6, 8)
    # 8 channels in 8 groups: each is standardised over the image.
    normal = (h - h.mean(axis=1, keepdims=True)) / np.sqrt(h.var(axis=1, keepdims=True) + 1e-5)
    qkv = normal @ np.float64(params["qkv"]["kernel"]) + params["qkv"]["bias"]
    mixed = []
    for head in np.split(qkv, heads, axis=-1):
        q, k, v = head[..., :d], head[..., d : 2 * d], head[..., 2 * d :]
        weights = np.exp(np.einsum("bnd,bmd->bnm", q * d**-0.25, k * d**-0.25))
        mixed.append(weights / weights.sum(axis=-1, keepdims=True) @ v)
    expected = h + np.concatenate(mixed, axis=-1) @ np.float64(params["out"]["kernel"]) + params["out"]["bias"]
    output = np.asarray(block.apply({"params": params}, x)).reshape(h.shape)
    assert np.linalg.norm(output - expected) < 10 * EPS * np.linalg.norm(expected)


def test_downsampling_is_centred_on_even_pixels():
    network = adm.build(**SMALL)
    params = trained(shapes(network, X.shape)["params"])
    centre = np.zeros((3, 3, 32, 32), np.float32)
    centre[1, 1] = np.eye(32)
    params["down_1_resample"] = {"kernel": centre, "bias": np.zeros(32, np.float32)}
    before, after = outputs(network, params, ["conv_in", "down_1_resample"])
    np.testing.assert_array_equal(after, before[:, ::2, ::2])


def test_plain_resampling_has_no_parameters():
    learned, plain = (set(shapes(adm.build(**SMALL, conv_resample=c), X.shape)["params"]) for c in (True, False))
    assert learned - plain == {"down_1_resample", "up_1_resample"} and plain < learned


def test_low_resolution_image_joins_bilinearly():
    network = adm.build(**SMALL, super_resolution=True)
    condition = {"low_res": LOW_RES}
    params = trained(shapes(network, X.shape, condition)["params"])
    kernel = np.zeros((3, 3, 6, 32), np.float32)
    kernel[1, 1, :, :6] = np.eye(6)  # the input's channels, as they are
    params["conv_in"] = {"kernel": kernel, "bias": np.zeros(32, np.float32)}
    (joined,) = outputs(network, params, ["conv_in"], condition)

    def enlarge(line, n):  # between centres of pixels, constant beyond the outermost
        return np.interp((np.arange(n) + 0.5) * len(line) / n - 0.5, np.arange(len(line)), line)

    columns = np.apply_along_axis(enlarge, 1, LOW_RES, 8)
    expected = np.concatenate([X, np.apply_along_axis(enlarge, 2, columns, 8)], axis=-1)
    np.testing.assert_allclose(joined[..., :6], expected, atol=4 * EPS * np.abs(expected).max())


@pytest.mark.slow
def test_rematerialisation_computes_the_same_and_keeps_less():
    small = SMALL | {"channel_mult": (1,), "attention_resolutions": (8,)}
    params = trained(shapes(adm.build(**small), X.shape)["params"])

    def run(remat):
        return lambda params: adm.build(**small, remat=remat).apply({"params": params}, X, TIME)

    def kept(remat):  # numbers kept for the backward pass
        residuals = jax.eval_shape(lambda params: jax.vjp(run(remat), params)[1], params)
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(residuals))

    blocks, image = 3, X[..., 0].size * SMALL["width"]  # two in the middle, one up
    assert kept("none") - kept("full") > 4 * blocks * image  # each has two norms and two swishes
    same, plain = (jax.jit(run(remat))(params) for remat in ("full", "none"))
    assert jnp.linalg.norm(same - plain) < 100 * EPS * jnp.linalg.norm(plain)


@pytest.mark.slow
def test_heads_on_the_way_up_may_differ():
    def program(**fields):
        network = adm.build(**SMALL | {"channel_mult": (1,), "attention_resolutions": (8,)}, **fields)
        return str(jax.make_jaxpr(network.apply)(shapes(network, X.shape), X, TIME))

    assert program() == program(num_heads_upsample=-1) == program(num_heads_upsample=SMALL["num_heads"])
    assert program() != program(num_heads_upsample=4)


@pytest.mark.parametrize(
    "fields, shape, message",
    [
        ({"channel_mult": (1, 1, 1)}, (1, 8, 6, 3), r"multiples of 4.*8, 6"),
        ({"num_heads": 3}, (1, 8, 8, 3), r"3 heads.*32 channels"),
        ({"super_resolution": True}, (1, 8, 8, 3), r"low_res.*nothing"),
    ],
)
def test_impossible_requests_are_refused(fields, shape, message):
    with pytest.raises(UserError, match=message):
        shapes(adm.build(**SMALL | fields), shape)
