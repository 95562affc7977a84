"""Softmax attention with derivatives in both directions: fused on a GPU, in short products everywhere.

cuDNN's kernel has no forward-mode derivative, which likelihoods and flow maps need; and what autodiff makes of products
of bfloat16 that are summed in float32 has float32 factors. Both derivatives are written here.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from score_flow.networks.blocks import devices

Heads = Float[Array, "b n heads d"]
Weights = Float[Array, "b heads n m"]
Kernel = Literal["fused", "short"]
Order = Literal["any", "backward", "forward inside backward"]

_ORDER: contextvars.ContextVar[Order] = contextvars.ContextVar("order of derivatives", default="any")


@contextlib.contextmanager
def derivatives(order: Order) -> Iterator[None]:
    """Say which derivatives what is traced in it will have, so that its backward pass may be a kernel of its own.

    any: all, in any order; that backward pass is made of products. backward: gradients alone, as training takes.
    forward inside backward: a jvp whose result a gradient is taken of.
    """
    token = _ORDER.set(order)
    try:
        yield
    finally:
        _ORDER.reset(token)


def attention(q: Heads, k: Float[Array, "b m heads d"], v: Float[Array, "b m heads d"]) -> Heads:
    """softmax(q k^T / sqrt(d)) v with the softmax in float32; in half precision all factors of products are in it too.

    On a GPU it is cuDNN's fused kernel, which takes half precision and d = 8, 16, ..., 128.
    """
    if q.dtype == jnp.float64:  # jax's function takes the softmax in float32 even then
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v)
    if q.dtype.itemsize > 2:
        return jax.nn.dot_product_attention(q, k, v, implementation="xla")
    takes = q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
    kernel: Kernel = "fused" if devices.platform() == "gpu" and takes else "short"
    order = _ORDER.get()
    return _value(kernel, q, k, v) if order == "backward" else _differentiable(kernel, order, q, k, v)


def _value(kernel: Kernel, q: Heads, k: Heads, v: Heads) -> Heads:
    """Attention with a backward pass alone."""
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn") if kernel == "fused" else _short(q, k, v)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _differentiable(kernel: Kernel, order: Order, q: Heads, k: Heads, v: Heads) -> Heads:
    return _value(kernel, q, k, v)


@_differentiable.defjvp
def _(kernel, order, primals, tangents):
    # What has one forward-mode derivative may have the kernel's own backward pass.
    value = _differentiable(kernel, order, *primals) if order == "any" else _value(kernel, *primals)
    return value, _direction(*primals, *tangents)


def _weights(q: Heads, k: Heads) -> Weights:
    """softmax(q k^T / sqrt(d)) in float32."""
    return jax.nn.softmax(_product("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5)


def _product(indices: str, a: Array, b: Array) -> Array:
    """Sum in float32 what factors of half precision give."""
    return jnp.einsum(indices, a, b, preferred_element_type=jnp.float32)


def _direction(q: Heads, k: Heads, v: Heads, dq: Heads, dk: Heads, dv: Heads) -> Heads:
    """d softmax(s) v = p (ds - sum p ds) v + p dv, with s = q k^T / sqrt(d), ds = (dq k^T + q dk^T) / sqrt(d)."""
    p = _weights(q, k)
    ds = (_product("bqhd,bkhd->bhqk", dq, k) + _product("bqhd,bkhd->bhqk", q, dk)) * q.shape[-1] ** -0.5
    dp = p * (ds - jnp.sum(p * ds, axis=-1, keepdims=True))
    out = _product("bhqk,bkhd->bqhd", dp.astype(v.dtype), v) + _product("bhqk,bkhd->bqhd", p.astype(v.dtype), dv)
    return out.astype(v.dtype)


@jax.custom_vjp
def _short(q: Heads, k: Heads, v: Heads) -> Heads:
    return _product("bhqk,bkhd->bqhd", _weights(q, k).astype(v.dtype), v).astype(v.dtype)


def _short_forward(q: Heads, k: Heads, v: Heads) -> tuple[Heads, tuple[Heads, Heads, Heads]]:
    return _short(q, k, v), (q, k, v)


def _short_backward(kept: tuple[Heads, Heads, Heads], do: Heads) -> tuple[Heads, Heads, Heads]:
    """dv = p^T do, ds = p (do v^T - sum p do v^T), dq = ds k / sqrt(d), dk = ds^T q / sqrt(d); p is computed again."""
    q, k, v = kept
    p, scale = _weights(q, k), q.shape[-1] ** -0.5
    dp = _product("bqhd,bkhd->bhqk", do, v)
    ds = (p * (dp - jnp.sum(p * dp, axis=-1, keepdims=True))).astype(q.dtype)
    dq = _product("bhqk,bkhd->bqhd", ds, k) * scale
    dk = _product("bhqk,bqhd->bkhd", ds, q) * scale
    dv = _product("bhqk,bqhd->bkhd", p.astype(q.dtype), do)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


_short.defvjp(_short_forward, _short_backward)
