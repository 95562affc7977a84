"""Devices: the mesh, the layouts of arrays on it, and the way of an array there and back."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from score_flow.errors import UserError
from score_flow.networks.blocks.devices import split

BATCH_AXES = ("data", "fsdp")  # a batch is always split over every device


def group_size(fsdp: bool | int, n: int) -> int:
    """Return how many of n devices share one copy of the state; raises UserError if that does not divide n."""
    size = n if fsdp is True else max(fsdp, 1)
    if n % size:
        allowed = ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)
        raise UserError(f"config.training.fsdp is {fsdp}; it must divide the {n} devices; allowed: {allowed}.")
    return size


def make_mesh(fsdp: bool | int = False, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Lay out devices, all by default, in groups that hold one copy of the state: ("data", "fsdp") = (n / size, size).

    fsdp: the size of a group; True: one group of all; False, 0 and 1: each device has its own copy. The devices may be
    those of a topology without hardware. Raises UserError for a size that does not divide them.
    """
    devices = jax.devices() if devices is None else devices
    laid_out = arranged(devices, group_size(fsdp, len(devices)))
    return Mesh(laid_out, BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def arranged(devices: Sequence[Any], size: int) -> np.ndarray:
    """Return devices in rows of `size`, of one slice and of one node where it fits, as what a group sends is the most.

    Within a slice of TPUs neighbours are neighbours on its wires.
    """
    place = lambda device: (getattr(device, "slice_index", 0), device.process_index, device.id)  # noqa: E731
    ordered = sorted(devices, key=place)
    slices = [list(each) for _, each in itertools.groupby(ordered, key=lambda device: place(device)[0])]
    if ordered[0].platform != "tpu" or any(len(each) % size for each in slices):
        return np.array(ordered).reshape(-1, size)
    wired = [
        mesh_utils.create_device_mesh((len(each) // size, size), each, allow_split_physical_axes=True)
        for each in slices
    ]
    return np.concatenate(wired)


def multiple(mesh: Mesh, n: int) -> int:
    """Return the least number from n on that divides among the devices."""
    return -(-n // mesh.size) * mesh.size


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Return the batch axis over all devices, after `leading` axes that are not split."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * leading, BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(mesh: Mesh, state: PyTree) -> PyTree:
    """Split an axis of each leaf over "fsdp" (`split` says which); replicate what does not divide, and small leaves."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, split(leaf.shape, mesh.shape["fsdp"])), state)


def whole(mesh: Mesh, tree: PyTree) -> PyTree:
    """Return arrays on a mesh with every device holding all of each; those that it holds already are not copied."""
    split = [not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(tree)]
    return laid_out(tree, replicated(mesh)) if any(split) else tree


def laid_out(tree: PyTree, shardings: PyTree) -> PyTree:
    """Return global arrays in other layouts; devices and processes get what they lack from each other."""
    return jax.jit(_same, out_shardings=shardings)(tree)


def _same(tree: PyTree) -> PyTree:
    return tree


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
