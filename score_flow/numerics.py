"""Small numerical helpers that hold their precision in float32."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from score_flow.types import Images, Times

TINY = 1e-24  # the least square of a length that is divided by


def expand(t: Times, x: Images) -> Float[Array, "..."]:
    """Add trailing axes to a time-like () or (b,) array, so that it broadcasts over the axes of one example."""
    t = jnp.asarray(t)
    return t.reshape(t.shape + (1,) * (x.ndim - 1)) if t.ndim else t


def sum_flat(x: Images) -> Float[Array, "b"]:
    """Sum over every axis but the first."""
    return jnp.sum(x.reshape(x.shape[0], -1), axis=1)


def mean_flat(x: Images) -> Float[Array, "b"]:
    """Mean over every axis but the first."""
    return jnp.mean(x.reshape(x.shape[0], -1), axis=1)


def cosine(x: Float[Array, "*b d"], y: Float[Array, "*b d"]) -> Float[Array, "*b"]:
    """Cosine of the angle between x and y along the last axis; 0, with no gradient, where one of them vanishes."""
    lengths = (jnp.sum(z**2, axis=-1) for z in (x, y))
    one, other = (jnp.sqrt(jnp.maximum(length, TINY)) for length in lengths)
    return jnp.sum(x * y, axis=-1) / (one * other)


def standard_normal_log_prob(z: Images) -> Float[Array, "b"]:
    """log N(z; 0, I) in nats, one number an example."""
    return -0.5 * sum_flat(z**2) - 0.5 * math.log(2 * math.pi) * math.prod(z.shape[1:])


UNIT_EPSILON = 1e-4  # of root mean squares that vectors are divided by (EDM2's)


def unit(x: Float[Array, "..."], axis: int | tuple[int, ...], n: int | None = None) -> Float[Array, "..."]:
    """x over 1e-4 + its root mean square along some axes, in float32 at least; n: the number that the sum is over."""
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squares = jnp.square(y)
    square = jnp.mean(squares, axis, keepdims=True) if n is None else jnp.sum(squares, axis, keepdims=True) / n
    # The smallest normal number: the derivative at 0 is 0.
    return x / (UNIT_EPSILON + jnp.sqrt(square + jnp.finfo(jnp.float32).tiny)).astype(x.dtype)


def bisection(f: Callable[[Times], Times], target: Times, low: float, high: float, n_steps: int = 64) -> Times:
    """Return the root t of f(t) = target for a strictly decreasing f on [low, high]; targets out of range give an end.

    64 halvings reach neighbouring floats even for roots near low = 0.
    """
    target = jnp.asarray(target)

    def halve(_, bounds):
        lo, hi = bounds
        middle = 0.5 * (lo + hi)
        above = f(middle) > target  # f decreases: the root lies to the right
        return jnp.where(above, middle, lo), jnp.where(above, hi, middle)

    start = jnp.full_like(target, low), jnp.full_like(target, high)
    lo, hi = jax.lax.fori_loop(0, n_steps, halve, start)
    return 0.5 * (lo + hi)


def value_and_divergence(
    f: Callable[[Images], Images], x: Images, probes: Float[Array, "p b *d"]
) -> tuple[Images, Float[Array, "b"]]:
    """f(x) and the mean over probes of e . (df/dx) e, from one differentiation (Hutchinson 1990; Skilling 1989).

    With E[e e^T] = I the mean estimates the divergence; with the d basis vectors, scaled by sqrt(d), it is exact.
    Forward mode: XLA compiles transposed convolutions badly inside loops on a CPU, and a jvp stores no activations.
    """
    if probes.shape[0] == 1:
        value, tangent = jax.jvp(f, (x,), (probes[0],))
        return value, sum_flat(probes[0] * tangent)
    value, jvp = jax.linearize(f, x)
    # One probe at a time: memory stays that of one call however many there are.
    products = jax.lax.map(lambda probe: sum_flat(probe * jvp(probe)), probes)
    return value, jnp.mean(products, axis=0)


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard error of independent values."""
    values = np.asarray(values, np.float64)
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return float(values.mean()), float(error)
