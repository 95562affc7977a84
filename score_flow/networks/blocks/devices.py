"""What a network knows of the devices that its program is for: their platform, and how parameters get to all.

The mesh in use says both: `jax.sharding.use_abstract_mesh` in a program or around its tracing, or `jax.set_mesh`.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, PyTree

from score_flow.types import Params


def platform() -> str:
    """Name what the program that is traced will run on, "cpu", "gpu" or "tpu": the mesh's; without one jax's own."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def gathered(params: Params, dtype: str | None = None, n_stacked: int = 1) -> PyTree:
    """Return parameters that are split over the mesh's "fsdp" as whole ones, so that activations stay where they are.

    Their gradients are summed where they arise and scattered. dtype: that of the arithmetic; if it is shorter than a
    parameter's, this is sent in it. n_stacked: of how many blocks each is one slice. Outside of such a mesh they are
    returned as they are.
    """
    n = jax.sharding.get_abstract_mesh().shape.get("fsdp", 1)

    def gather(leaf):
        parts = split(leaf.shape, n, n_stacked)
        if parts == PartitionSpec():
            return leaf
        shorter = dtype is not None and jnp.dtype(dtype).itemsize < leaf.dtype.itemsize
        return _gather(parts, leaf.astype(dtype) if shorter else leaf)

    return jax.tree.map(gather, params)


def split(shape: tuple[int, ...], n: int, n_stacked: int = 1) -> PartitionSpec:
    """Split an axis that divides evenly over the n devices of "fsdp"; nothing of what is small.

    The axis before the last, which a kernel sums over: XLA:TPU scatters gradients of rows, and sums those of columns
    whole. The largest where that does not divide, or is as small against it as a number of blocks.
    """
    axes = [axis for axis, size in enumerate(shape) if size % n == 0 and size > 1]
    if n == 1 or not axes or n_stacked * math.prod(shape) < 1024:
        return PartitionSpec()
    rows, largest = len(shape) - 2, max(axes, key=lambda axis: shape[axis])
    axis = rows if rows in axes and 8 * shape[rows] >= shape[largest] else largest
    return PartitionSpec(*(None,) * axis, "fsdp")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gather(parts: PartitionSpec, leaf: Array) -> Array:
    return jax.lax.with_sharding_constraint(leaf, PartitionSpec())


def _scatter(parts: PartitionSpec, _: None, gradient: Array) -> tuple[Array]:
    # Whole first: else XLA may split the sum's own work, and move activations for it; the two are one reduce-scatter.
    whole = jax.lax.with_sharding_constraint(gradient, PartitionSpec())
    return (jax.lax.with_sharding_constraint(whole, parts),)


_gather.defvjp(lambda parts, leaf: (_gather(parts, leaf), None), _scatter)
