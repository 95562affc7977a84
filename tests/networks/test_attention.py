"""Attention in half precision: value and both derivatives against float64, in any order, without float32 factors."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.networks.blocks.attention import attention, derivatives

SHAPE = (2, 24, 3, 8)


def heads(n: int, dtype=np.float32) -> list[np.ndarray]:
    """Arrays that bfloat16 holds exactly, so that what differs is the arithmetic's."""
    rng = np.random.default_rng(0)
    return [np.asarray(jnp.asarray(rng.normal(size=SHAPE), jnp.bfloat16), dtype) for _ in range(n)]


def halved(arrays):
    return [jnp.asarray(array, jnp.bfloat16) for array in arrays]


def close(got, expected):
    """Within a few roundings of what bfloat16 (8 bits) holds, against the largest number: 2^-8 each."""
    expected = np.asarray(expected, np.float64)
    assert np.max(np.abs(np.asarray(got, np.float64) - expected)) <= 4 * 2.0**-8 * np.max(np.abs(expected))


@pytest.fixture
def exact():
    """The same in float64."""
    with jax.enable_x64(True):
        yield lambda function, *arguments: jax.tree.map(
            np.asarray, function(*[jnp.asarray(np.asarray(a, np.float64)) for a in arguments])
        )


def direction(*qkv_and_tangents):
    return jax.jvp(attention, qkv_and_tangents[:3], qkv_and_tangents[3:])[1]


def pulled(q, k, v, weights):
    return jax.grad(lambda *qkv: jnp.sum((attention(*qkv) * weights).astype(jnp.float32)), (0, 1, 2))(q, k, v)


def curved(q, k, v, dq, dk, dv):
    """A gradient of a forward-mode derivative's square."""
    return jax.grad(lambda *qkv: jnp.sum(direction(*qkv, dq, dk, dv).astype(jnp.float32) ** 2), (0, 1, 2))(q, k, v)


def test_attention_is_a_softmax_average():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 5, 3, 4))
    weights = np.exp(np.einsum("bnhd,bmhd->bhnm", q, k) / 2)
    expected = np.einsum("bhnm,bmhd->bnhd", weights / weights.sum(axis=-1, keepdims=True), v)
    np.testing.assert_allclose(attention(q, k, v), expected, atol=20 * np.finfo("float32").eps)


def test_value_and_direction(exact):
    arrays = heads(6)
    close(attention(*halved(arrays[:3])), exact(attention, *arrays[:3]))
    close(direction(*halved(arrays)), exact(direction, *arrays))


@pytest.mark.parametrize("order", ["any", "backward", "forward inside backward"])
def test_gradients(exact, order):
    arrays = heads(4)
    with derivatives(order):
        got = pulled(*halved(arrays))
    jax.tree.map(close, got, exact(pulled, *arrays))


@pytest.mark.parametrize("order", ["any", "forward inside backward"])
def test_a_gradient_of_a_direction(exact, order):
    arrays = heads(6)
    with derivatives(order):
        got = curved(*halved(arrays))
    jax.tree.map(close, got, exact(curved, *arrays))


def test_directions_of_directions_and_many_at_once(exact):
    """vmap over probes, as a likelihood takes them; a second direction where nothing else was said."""
    arrays = heads(6)
    second = lambda *a: jax.jvp(lambda *qkv: direction(*qkv, *a[3:]), a[:3], a[3:])[1]  # noqa: E731
    close(second(*halved(arrays)), exact(second, *arrays))
    q, k, v, *rest = halved(arrays)
    probes = jnp.stack([rest[0], rest[1], rest[2]])
    many = jax.vmap(lambda probe: direction(q, k, v, probe, probe, probe))(probes)
    one = direction(q, k, v, rest[1], rest[1], rest[1])
    np.testing.assert_allclose(np.asarray(many[1], np.float32), np.asarray(one, np.float32), atol=2e-2)


@functools.cache
def factors(order: str, function) -> set[str]:
    """The dtypes of the factors of all products."""
    arguments = [jax.ShapeDtypeStruct(SHAPE, jnp.bfloat16)] * (4 if function is pulled else 6)
    found = set()

    def look(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                found.update(str(variable.aval.dtype) for variable in equation.invars)
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                look(inner)

    with derivatives(order):
        look(jax.make_jaxpr(function)(*arguments).jaxpr)
    return found


@pytest.mark.parametrize("order, function", [("backward", pulled), ("any", direction)])
def test_no_product_has_float32_factors(order, function):
    assert factors(order, function) == {"bfloat16"}
