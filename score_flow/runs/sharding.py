"""Devices and processes: the mesh, the layouts, and what little differs when there is more than one process.

This file, peers.py and data/pipeline.py are the only ones that know that devices or processes exist.
"""

import math
import os
import re
from collections.abc import Mapping

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from score_flow.runs.peers import EXIT_PEER_LOST, WATCH, Peers, answering
from score_flow.types import UserError

BATCH_AXES = ("data", "fsdp")  # a batch is always split over every device
PLACE = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")  # of a process among the others


def initialise() -> Peers | None:
    """Join the other processes of this run, if there are any: the watch over them, which ends this one with the others.

    On a TPU pod jax finds them itself; elsewhere set JAX_COORDINATOR_ADDRESS=host:port,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID for each process.
    """
    # Our own SIGTERM flag is agreed on once a loop (see training.Preemption): orbax's waits for an exact counter value.
    jax.config.update("jax_enable_preemption_service", False)
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        # Several host devices share a few threads: two programs in flight can wait for each other in a collective.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    if place := place_of(os.environ):
        return _join(*place)
    if "TPU_WORKER_HOSTNAMES" in os.environ and "," in os.environ["TPU_WORKER_HOSTNAMES"]:
        return _join()
    return None


def _join(*place: str | int) -> Peers:
    with answering(lambda: WATCH[0].broken() if WATCH else os._exit(EXIT_PEER_LOST)):
        jax.distributed.initialize(*place, heartbeat_timeout_seconds=60)
    WATCH.append(Peers(distributed.global_state.client, jax.process_index()))
    return WATCH[0]


def place_of(environment: Mapping[str, str]) -> tuple[str, int, int] | None:
    """(address of process 0, number of processes, own number) by the environment; None for a process on its own.

    Raises UserError where a variable is missing, empty or out of range.
    """
    given = [name for name in PLACE if name in environment]
    if not given:
        return None
    if missing := [name for name in PLACE if name not in given]:
        raise UserError(f"a run of several processes needs {', '.join(PLACE)}; missing: {', '.join(missing)}.")
    address = environment[PLACE[0]]
    port = re.fullmatch(r"(?:\[[\da-fA-F:.]+\]|[^\s:/]+):(\d{1,5})", address.strip(), re.ASCII)
    if not port or not 1 <= int(port[1]) <= 65535:
        raise UserError(f"{PLACE[0]} is {address!r}; allowed: HOST:PORT of process 0, a port being 1 to 65535.")
    count = _integer(environment, PLACE[1], 1, None)
    return address.strip(), count, _integer(environment, PLACE[2], 0, count - 1)


def _integer(environment: Mapping[str, str], name: str, least: int, most: int | None) -> int:
    """The integer that a variable holds."""
    text = environment[name].strip()
    value = int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else -1
    if value < least or (most is not None and value > most):
        allowed = f"an integer from {least} on" if most is None else f"an integer from {least} to {most}"
        raise UserError(f"{name} is {environment[name]!r}; allowed: {allowed}.")
    return value


def make_mesh(fsdp: bool = False) -> Mesh:
    """All devices on one axis: "data" (state replicated) or "fsdp" (state sharded too)."""
    n = jax.device_count()
    return jax.make_mesh((1, n) if fsdp else (n, 1), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def multiple(mesh: Mesh, n: int) -> int:
    """The least number from n on that divides among the devices."""
    return -(-n // mesh.size) * mesh.size


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """The batch axis over all devices, after `leading` axes that are not split."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * leading, BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(mesh: Mesh, state: PyTree) -> PyTree:
    """Each leaf's largest axis that divides evenly over "fsdp", else replicated (small leaves always are)."""
    n = mesh.shape["fsdp"]

    def layout(leaf):
        axes = [axis for axis, size in enumerate(leaf.shape) if size % n == 0 and size > 1]
        if n == 1 or not axes or math.prod(leaf.shape) < 1024:
            return replicated(mesh)
        largest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * largest, "fsdp"))

    return jax.tree.map(layout, state)


def place(mesh: Mesh, array: np.ndarray, *, split: bool = True) -> jax.Array:
    """A host array, equal on every process, as a global one: split over the batch axis, or replicated."""
    array = np.asarray(array)
    sharding = batch_sharding(mesh) if split else replicated(mesh)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def to_host(tree: PyTree) -> PyTree:
    """Global arrays as numpy arrays, whole on every process (a collective when there is more than one)."""

    def fetch(x):
        local = not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
        return np.asarray(x) if local else np.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(fetch, tree)


def agree(flag: bool) -> bool:
    """True on every process when it is true on any."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())


def is_main() -> bool:
    """Whether this process is the one that writes logs, pictures and results."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait for the other processes, if there are any."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
