"""Flow++'s dequantisers are densities over the unit cube, exactly: change of variables, inverse, mass, bound."""

import math
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from score_flow.errors import UserError
from score_flow.networks import flowpp
from score_flow.networks.blocks.flowpp import Conv, LogisticMixture
from tests.discover import thinned

every_preset = pytest.mark.parametrize("name", thinned(flowpp.PRESETS, 3))
SMALL = {"width": 4, "components": 2, "couplings": 2, "blocks": 1, "context_width": 4, "context_blocks": 1, "heads": 2}
SHAPE = (2, 4, 2)  # of an image


def small(name, **fields):
    return flowpp.PRESETS[name].clone(**SMALL, **fields)


def batch(n, shape=SHAPE, dtype="float32"):
    """n images in [0, 1], and noise."""
    rng = np.random.default_rng(n)
    return rng.integers(0, 256, (n, *shape)).astype(dtype) / 255, rng.standard_normal((n, *shape)).astype(dtype)


@partial(jax.jit, static_argnums=0)
def init(network, x, noise):
    """Parameters made from a batch, and the outputs on it of every convolution and affine map."""
    kept = lambda module, method: isinstance(module, (Conv, flowpp.Affine)) and method == "__call__"  # noqa: E731
    key = jax.random.key(0, impl="rbg")
    variables = network.init_with_output(key, x, noise, mutable=True, capture_intermediates=kept)[1]
    return variables["params"], variables["intermediates"]


@partial(jax.jit, static_argnums=0)
def run(network, params, x, noise, key=None):
    rngs = {} if key is None else {"dropout": key}
    return network.apply({"params": params}, x, noise, deterministic=key is None, rngs=rngs)


@partial(jax.jit, static_argnums=0)
def invert(network, params, x, u):
    return network.apply({"params": params}, x, u, method="inverse")


def trained(network, shape=SHAPE, dtype="float32"):
    """Parameters as after some training: the initial ones, all of them moved."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(partial(init, network), *batch(1, shape))[0]

    def draw(path, leaf):
        noise, name = rng.standard_normal(leaf.shape), path[-1].key
        if name in ("kernel", "direction"):
            return (0.7 * noise / math.sqrt(math.prod(leaf.shape[:-1]))).astype(dtype)
        start = np.eye(len(noise)) if name == "mixing" else name in ("scale", "gain")
        return (start + 0.2 * noise).astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


class Case(NamedTuple):
    """A small network in float64 at a few images, and the flow's Jacobian there."""

    network: flowpp.FlowppDequantiser
    params: dict
    x: np.ndarray
    noise: np.ndarray
    u: np.ndarray
    log_q: np.ndarray
    jacobian: np.ndarray


@cache
def case(name):
    with jax.enable_x64(True):
        network = small(name, dtype="float64")
        params, (x, noise) = trained(network, dtype="float64"), batch(3, dtype="float64")

        @jax.jit
        def flow(params, x, noise):
            def of_noise(noise):
                u, log_q = network.apply({"params": params}, x[None], noise[None])
                return u[0], (u[0], log_q[0])

            jacobian, values = jax.jacfwd(of_noise, has_aux=True)(noise)
            return *values, jacobian.reshape(x.size, x.size)

        outputs = [flow(params, *example) for example in zip(x, noise, strict=True)]
        return Case(network, params, x, noise, *map(np.array, zip(*outputs, strict=True)))


@every_preset
def test_log_q_is_the_change_of_variables(name):
    c = case(name)
    assert {c.u.dtype, c.log_q.dtype} == {np.dtype("float64")}
    log_normal = -0.5 * (c.noise**2 + math.log(2 * math.pi)).reshape(len(c.noise), -1).sum(axis=1)
    np.testing.assert_allclose(c.log_q, log_normal - np.linalg.slogdet(c.jacobian)[1], rtol=0, atol=1e-9)


@every_preset
def test_inverse_gives_the_noise_back(name):
    c = case(name)
    with jax.enable_x64(True):
        noise = np.asarray(invert(c.network, c.params, c.x, c.u))
    # u is rounded to eps; what that does to the noise, times a margin for the roundings of the steps between.
    sensitivity = np.linalg.norm(np.linalg.inv(c.jacobian), ord=2, axis=(1, 2)).max()
    assert np.abs(noise - c.noise).max() < 100 * np.finfo("float64").eps * sensitivity
    assert sensitivity < 1e6  # or the line above says nothing


@every_preset
@pytest.mark.slow
def test_float32_is_float64_up_to_rounding(name):
    c = case(name)
    x, noise, params = jax.tree.map(lambda a: a.astype("float32"), (c.x, c.noise, c.params))
    u, log_q = run(small(name), params, x, noise)
    assert u.dtype == log_q.dtype == jnp.float32
    # The sum over the elements of u, each after a few dozen layers.
    assert np.abs(log_q - c.log_q).max() < 100 * np.finfo("float32").eps * c.u[0].size
    assert np.abs(u - c.u).max() < 100 * np.finfo("float32").eps


@pytest.mark.slow
def test_bfloat16_is_for_the_networks_only():
    x, noise = batch(3)
    params = trained(small("imagenet64"))
    u, log_q = run(small("imagenet64"), params, x, noise)
    u_half, log_q_half = run(small("imagenet64", dtype="bfloat16"), params, x, noise)
    assert u_half.dtype == log_q_half.dtype == jnp.float32
    assert 0 < jnp.abs(u_half - u).max() < 10 * jnp.finfo("bfloat16").eps
    assert 0 < jnp.abs(log_q_half - log_q).max() < 10 * jnp.finfo("bfloat16").eps * u[0].size


def test_u_is_inside_the_cube_and_log_q_finite_however_large_the_noise():
    network, (x, noise) = small("imagenet32"), batch(3)
    u, log_q = run(network, trained(network), x, 1000 * noise)
    assert 0 < u.min() < 1e-6 and 1 - 1e-6 < u.max() < 1
    assert jnp.isfinite(log_q).all()


def test_density_has_mass_1():
    # The trapezoidal rule over logit u of the two elements of an image: its error falls faster than any power of the
    # step. (The mean of 1 / q over draws is the cube's volume too, but has no variance: q vanishes at the faces.)
    network, logits = small("imagenet64", dtype="float64"), np.linspace(-12, 12, 100)
    with jax.enable_x64(True):
        params = trained(network, (1, 2, 1), "float64")
        h = np.stack(np.meshgrid(logits, logits), axis=-1).reshape(-1, 1, 2, 1)
        u = 1 / (1 + np.exp(-h))
        x = np.broadcast_to(np.array([0.2, 0.9]).reshape(1, 1, 2, 1), u.shape)
        again, log_q = run(network, params, x, invert(network, params, x, u))
    density = np.exp(log_q) * (u * (1 - u)).prod(axis=(1, 2, 3))  # of the logits
    assert abs(density.sum() * (logits[1] - logits[0]) ** 2 - 1) < 1e-4
    np.testing.assert_allclose(again, u, rtol=0, atol=100 * np.finfo("float64").eps)


@pytest.mark.slow
def test_training_raises_the_bound_above_uniform_dequantisation():
    # Within each level a von Mises density, which is periodic: log P(x) = 0, and uniform dequantisation, whose mean of
    # the cosine is 0, is behind by log I0(kappa) for each element.
    network, (x, noise), kappa = small("imagenet64"), batch(64), 2.0
    uniform = -x[0].size * math.log(np.i0(kappa))

    def log_p(y):
        return (kappa * jnp.cos(2 * jnp.pi * (y - 0.2)) - math.log(np.i0(kappa))).reshape(len(y), -1).sum(axis=1)

    def loss(params, key):
        u, log_q = network.apply({"params": params}, x, jax.random.normal(key, x.shape))
        bound = (log_p(jnp.round(255 * x) + u) - log_q).mean()
        return -bound, bound

    optimiser = optax.adam(1e-2)

    @jax.jit
    def step(params, moments, key):
        grads, bound = jax.grad(loss, has_aux=True)(params, key)
        updates, moments = optimiser.update(grads, moments)
        return optax.apply_updates(params, updates), moments, bound

    x = jnp.asarray(x)
    params, bounds = init(network, x, noise)[0], []
    moments = optimiser.init(params)
    for i in range(80):
        params, moments, bound = step(params, moments, jax.random.key(i))
        bounds.append(bound)
    last = np.array(bounds[-10:])
    error = last.std(ddof=1) / math.sqrt(len(last))
    assert bounds[0] < uniform and uniform + 4 * error < last.mean() < 4 * error


@every_preset
def test_initial_parameters_standardise_the_first_batch(name):
    network = flowpp.PRESETS[name].clone(**SMALL | {"couplings": 1})
    values = flatten_dict(init(network, *batch(64))[1])
    assert len(values) == {"cifar10": 12, "imagenet32": 14, "imagenet64": 10}[name]
    for path, (value,) in values.items():
        affine = path[-2].startswith("affine")
        value, axes = (value[0], 0) if affine else (value, (0, 1, 2))
        scale = 0.1 if path[-2] in ("conv_out", "out") else 1.0
        # 1e-6 is added to variances of 2.5e-4 and more. Mixing starts as 1 plus noise of deviation 1e-3.
        margin = 1e-2 if affine and network.mix_channels else 2e-3
        np.testing.assert_allclose(value.mean(axis=axes), 0, atol=1e-5)
        np.testing.assert_allclose(value.std(axis=axes), scale, rtol=margin)


@pytest.mark.slow
def test_dropout_only_when_asked():
    network, (x, noise) = small("imagenet32", dropout=0.5), batch(3)
    params = trained(network)
    draws = [run(network, params, x, noise, jax.random.key(seed, impl="rbg"))[1] for seed in (3, 3, 4)]
    assert jnp.array_equal(draws[0], draws[1]) and not jnp.allclose(draws[0], draws[2])
    with_dropout, without = (str(run.trace(n, params, x, noise).jaxpr) for n in (network, small("imagenet32")))
    assert with_dropout == without


# Entries of score_flow's three networks, counted by running their code under jax.eval_shape; the last one's less the
# tables of positions that it never reads (4 of 64 x 32 x 96 and one of 64 x 32 x 32).
@pytest.mark.parametrize(
    "name, size, parameters",
    [
        ("cifar10", 32, 3_466_976),
        pytest.param("imagenet32", 32, 35_482_720, marks=pytest.mark.slow),
        ("imagenet64", 64, 4_868_008),
    ],
)
def test_presets_have_the_published_sizes(name, size, parameters):
    image = jnp.zeros((1, size, size, 3))
    shapes = jax.eval_shape(flowpp.PRESETS[name].init, jax.random.key(0), image, image)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == parameters


@jax.jit
def there_and_back(mixture, x):
    y, log_slope = mixture.logit_cdf(x)
    return y, log_slope, mixture.inverse_logit_cdf(y)


def test_one_logistic_is_a_straight_line_in_both_tails():
    x, mean, log_scale = np.array([-1e4, -3.0, 0.5, 2e4], "float32"), 0.25, -1.5
    y, log_slope, back = there_and_back(
        LogisticMixture(*(jnp.full((4, 1), value) for value in (0.0, mean, log_scale))), x
    )
    line, eps = (x - mean) * math.exp(-log_scale), np.finfo("float32").eps
    np.testing.assert_allclose(y, line, rtol=4 * eps)
    np.testing.assert_allclose(back, x, rtol=8 * eps)
    assert (np.abs(log_slope + log_scale) < 8 * eps * (1 + np.abs(line))).all()


def test_mixture_is_inverted():
    rng, k = np.random.default_rng(0), 3
    logits, means, log_scales = (spread * rng.standard_normal((50, k), np.float32) for spread in (1, 4, 2))
    x = jnp.linspace(-10, 10, 50)
    _, log_slope, back = there_and_back(LogisticMixture(jax.nn.log_softmax(logits), means, log_scales), x)
    # y rounds relatively to the largest z of a component; an error of y moves x by that over the slope.
    z = np.abs(x[:, None] - means) * np.exp(-log_scales)
    assert (jnp.abs(back - x) < 10 * jnp.finfo("float32").eps * (10 + (1 + z.max(axis=1)) * jnp.exp(-log_slope))).all()


@pytest.mark.parametrize(
    "fields, shape, message",
    [
        ({}, (4, 5, 1), r"even w.*4, 5"),
        ({"block": ("conv", "nrom")}, SHAPE, "'norm'"),
        ({"heads": 3}, SHAPE, "heads=3 divides, got 4"),
    ],
)
def test_impossible_networks_are_refused(fields, shape, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(partial(init, flowpp.PRESETS["cifar10"].clone(**SMALL | fields)), *batch(1, shape))
