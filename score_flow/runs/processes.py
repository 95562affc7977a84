"""The processes of a run: how they find each other, which one speaks, and how they agree.

This file, launchers.py, together.py, sharding.py, peers.py and data/pipeline.py are the only ones that know that
devices or processes exist.
"""

import functools
import gc
import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax._src import distributed, hardware_utils
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from score_flow.errors import NonFinite, Preempted, UserError
from score_flow.runs import launchers
from score_flow.runs.files import first_line
from score_flow.runs.launchers import Launch
from score_flow.runs.memory import keep_freed
from score_flow.runs.peers import EXIT_PEER_LOST, WATCH, Peers, answering

START = 300  # seconds in which all processes must have started
ANSWER = 3600  # seconds in which all processes answer a question; one that is gone is found by the watch
SAID = "score_flow/said"
TOLD = (
    UserError, NonFinite, Preempted, OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError,
    Exception,
)  # fmt: skip
_ASKED: dict[str, int] = {}  # how often each question was asked
_LAST = threading.local()  # the key under which this thread spoke last


def initialise() -> Peers | None:
    """Join the other processes of this run, if there are any: the watch over them, which ends this one with the others.

    What was found is printed. Raises UserError where a launcher started several and they cannot be joined.
    """
    keep_memory()
    # Tracing makes millions of objects that stay: to look for cycles after each 700 takes a quarter of its time.
    gc.set_threshold(50_000)
    # Our own SIGTERM flag is agreed on once a loop (Preemption): orbax's waits for an exact counter value.
    jax.config.update("jax_enable_preemption_service", False)
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        # Several host devices share a few threads: two programs in flight can wait for each other in a collective.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    launch = launchers.launch_of(os.environ)
    peers = _join(launch) if launch else None
    if distributed.global_state.num_processes == 1:
        launchers.refuse_unjoined(os.environ)
    elif is_main():
        print(f"{jax.process_count()} processes ({launch.name}), {jax.device_count()} devices", flush=True)
    if unused := unused_device():
        print(f"warning: {unused}", file=sys.stderr, flush=True)
    return peers


def keep_memory() -> bool:
    """Have a step get the memory that the last one freed, where that is the processor's; whether it will.

    Call it before jax starts. Beside a GPU or a TPU the threads that read data have heaps of their own.
    """
    return (jax.config.jax_platforms == "cpu" or not accelerators()) and keep_freed()


def _join(launch: Launch) -> Peers:
    with answering(lambda: WATCH[0].broken() if WATCH else os._exit(EXIT_PEER_LOST)):
        try:
            jax.distributed.initialize(
                **launch.arguments, heartbeat_timeout_seconds=60, initialization_timeout=START
            )
        except (RuntimeError, ValueError, KeyError, ImportError) as error:
            if (state := distributed.global_state).client is not None:  # which would wait again at the end
                which = f"process {state.process_id} of {state.num_processes} ({launch.name})"
                where = f"at {state.coordinator_address} within {START} seconds"
                os.write(2, f"\nerror: {which} did not meet all others {where}: start all together.\n".encode())
                os._exit(EXIT_PEER_LOST)
            why = first_line(error)
            raise UserError(f"the processes of this run ({launch.name}) cannot join each other: {why}") from error
    WATCH.append(Peers(distributed.global_state.client, jax.process_index()))
    return WATCH[0]


def unused_device() -> str | None:
    """Say which device of this machine jax computes without, unless JAX_PLATFORMS asks for the CPU."""
    if jax.config.jax_platforms == "cpu" or not (found := accelerators()) or jax.default_backend() != "cpu":
        return None
    what, extra = found
    return (
        f'there is {what}, and jax sees only the CPU: pip install "jax[{extra}]" (make install DEVICE={extra}); '
        "JAX_PLATFORMS=cpu if that is meant."
    )


def accelerators() -> tuple[str, str] | None:
    """(a device of this machine, the extra of jax that computes on it), whether or not jax does; jax is not started."""
    if hardware_utils.num_available_tpu_chips_and_device_id()[0]:
        return "a TPU", "tpu"
    return ("an NVIDIA GPU", "cuda13") if hardware_utils.has_visible_nvidia_gpu() else None


def agree(flag: bool) -> bool:
    """Return True on every process when the flag is true on any."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())


def decided(name: str, make: Callable[[], Any]) -> Any:
    """Return what `make` returns on the main process, as JSON reads it, or raise what it raises there: on all.

    For whatever is read from a disk and decided by: two processes may see it at different moments.
    """
    return gathered(name, lambda: make() if is_main() else None)[0]


def gathered(name: str, make: Callable[[], Any]) -> list[Any]:
    """Return what `make` returns on each process, as JSON reads it, in their order; all must ask, by the same name.

    The coordinator hands it round, not the devices: a thread beside the loop may ask. What one raises, all raise.
    """
    if distributed.global_state.num_processes == 1:
        return [make()]
    count = _ASKED[name] = _ASKED.get(name, 0) + 1
    try:
        word, own = {"value": make()}, None
    except Exception as error:
        word, own = {"error": _words_of(error)}, error
    try:
        answer = _handed_round(f"{SAID}/{name}/{count}", word)
    except jax.errors.JaxRuntimeError:
        if WATCH:
            WATCH[0].broken()
        raise
    if "error" in answer:
        raise own or _error_of(*answer["error"])
    return answer["values"]


def _handed_round(key: str, word: dict[str, Any]) -> dict[str, Any]:
    """Give the main process a word, and get from it {"values": what all said}, or the first {"error": ...}.

    Whoever has an error does not wait for the others.
    """
    state = distributed.global_state
    get = lambda i: json.loads(state.client.blocking_key_value_get(f"{key}/{i}", 1000 * ANSWER))  # noqa: E731
    failed, answer = "error" in word, word
    if state.process_id == 0 and not failed:
        words = [word, *(get(i) for i in range(1, state.num_processes))]
        answer = next((each for each in words if "error" in each), {"values": [each.get("value") for each in words]})
    own = f"{key}/{state.process_id}"
    state.client.key_value_set(own, json.dumps(answer if state.process_id == 0 else word))
    if failed:
        return word
    answer = answer if state.process_id == 0 else get(0)
    if last := getattr(_LAST, "key", None):  # whoever has said this has heard all that this thread said before
        state.client.key_value_delete(last)
    _LAST.key = own
    return answer


def _words_of(error: Exception) -> list[Any]:
    """The kind of an error and what makes it again on another process."""
    if isinstance(error, OSError) and error.errno:
        return ["OSError", error.errno, error.strerror, error.filename and str(error.filename)]
    kind = next(kind for kind in type(error).__mro__ if kind in TOLD)
    return [kind.__name__, str(error) or type(error).__name__]


def _error_of(kind: str, *arguments: Any) -> Exception:
    return next(each for each in TOLD if each.__name__ == kind)(*arguments)


class Ahead:
    """Questions that all processes of a loop answer alike, each with yes when one of them says yes.

    Several processes send their words of this loop and read those of the last one, which came before the step that the
    devices are at: so none waits for its step, and a yes counts a loop later. One alone hears itself at once.
    """

    def __init__(self, **questions: Callable[[], bool]):
        self._questions = questions
        self._sent: jax.Array | None = None
        self.answers = dict.fromkeys(questions, False)

    def ask(self) -> dict[str, bool]:
        """Ask all of them once more; all processes must."""
        words = np.array([question() for question in self._questions.values()], np.bool_)
        if jax.process_count() > 1:
            before, self._sent = self._sent, said_by_any(words)
            words = np.zeros_like(words) if before is None else np.asarray(before)
        self.answers = dict(zip(self._questions, words.tolist(), strict=True))
        return self.answers


def said_by_any(words: np.ndarray) -> jax.Array:
    """Return, of flags of every process, which are true on any: an array that is still to come."""
    spread, reduce = _reduction()
    shape = (jax.device_count(), *words.shape)
    return reduce(jax.make_array_from_callback(shape, spread, lambda index: words[None]))


@functools.cache
def _reduction() -> tuple[NamedSharding, Callable[[jax.Array], jax.Array]]:
    mesh = jax.make_mesh((jax.device_count(),), ("devices",), axis_types=(AxisType.Auto,))
    whole = NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec("devices")), jax.jit(lambda words: words.any(0), out_shardings=whole)


def is_main() -> bool:
    """Say whether this process is the one that writes logs, pictures and results."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait for the other processes, if there are any."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
