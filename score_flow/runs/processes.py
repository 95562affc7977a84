"""The processes of a run: how they find each other, which one speaks, and how they agree.

This file, sharding.py, peers.py and data/pipeline.py are the only ones that know that devices or processes exist.
"""

import os
import re
from collections.abc import Mapping

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils

from score_flow.runs.peers import EXIT_PEER_LOST, WATCH, Peers, answering
from score_flow.types import UserError

PLACE = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")  # of a process among the others


def initialise() -> Peers | None:
    """Join the other processes of this run, if there are any: the watch over them, which ends this one with the others.

    On a TPU pod jax finds them itself; elsewhere set JAX_COORDINATOR_ADDRESS=host:port,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID for each process.
    """
    # Our own SIGTERM flag is agreed on once a loop (Preemption): orbax's waits for an exact counter value.
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
    """Return the integer that a variable holds."""
    text = environment[name].strip()
    value = int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else -1
    if value < least or (most is not None and value > most):
        allowed = f"an integer from {least} on" if most is None else f"an integer from {least} to {most}"
        raise UserError(f"{name} is {environment[name]!r}; allowed: {allowed}.")
    return value


def agree(flag: bool) -> bool:
    """Return True on every process when the flag is true on any."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())


def is_main() -> bool:
    """Say whether this process is the one that writes logs, pictures and results."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait for the other processes, if there are any."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
