"""Devices: the mesh, the layouts of arrays on it, and the way of an array there and back."""

import math

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

BATCH_AXES = ("data", "fsdp")  # a batch is always split over every device


def make_mesh(fsdp: bool = False) -> Mesh:
    """Lay all devices on one axis: "data" (state replicated) or "fsdp" (state sharded too)."""
    n = jax.device_count()
    return jax.make_mesh((1, n) if fsdp else (n, 1), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def multiple(mesh: Mesh, n: int) -> int:
    """Return the least number from n on that divides among the devices."""
    return -(-n // mesh.size) * mesh.size


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Return the batch axis over all devices, after `leading` axes that are not split."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * leading, BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(mesh: Mesh, state: PyTree) -> PyTree:
    """Split each leaf's largest axis that divides evenly over "fsdp"; replicate the others, and small leaves."""
    n = mesh.shape["fsdp"]

    def layout(leaf):
        axes = [axis for axis, size in enumerate(leaf.shape) if size % n == 0 and size > 1]
        if n == 1 or not axes or math.prod(leaf.shape) < 1024:
            return replicated(mesh)
        largest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * largest, "fsdp"))

    return jax.tree.map(layout, state)


def place(mesh: Mesh, array: np.ndarray, *, split: bool = True) -> jax.Array:
    """Place a host array, equal on every process, as a global one: split over the batch axis, or replicated."""
    array = np.asarray(array)
    sharding = batch_sharding(mesh) if split else replicated(mesh)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def to_host(tree: PyTree) -> PyTree:
    """Fetch global arrays as numpy arrays, whole on every process (a collective when there is more than one)."""

    def fetch(x):
        local = not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
        return np.asarray(x) if local else np.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(fetch, tree)
