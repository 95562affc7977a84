"""The other processes of a run: when one is lost, this one says which in a line and leaves with exit code 76.

jax answers a lost process by aborting all others after pages of C++ logs, or, where it stopped without dying, not at
all. Here each process counts aloud in the coordinator's key-value store and watches the counts of the others.
"""

import atexit
import contextlib
import ctypes
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

EXIT_PEER_LOST = 76
BEAT, LOST = 2.0, 30.0  # seconds between two counts; without a new one a process is lost
SAID = 10.0  # seconds in which the last line is made
PREFIX = "score_flow/alive"
LEAVING = "leaving"  # in place of a count: this process is done


class Peers:
    """Counts for this process, watches the others, and ends this one when another is lost.

    where: what to add of the newest state. Both threads are daemons: they go with the process.
    """

    def __init__(self, client: Any, index: int):
        self.where: Callable[[], str] = lambda: ""
        self._client, self._index = client, index
        self._name = f"process {index} ({os.getpid()} on {socket.gethostname()})"
        self._seen: dict[int, tuple[str, float]] = {}  # the last word of each, and when it was new
        self._answered, self._leaving = time.monotonic(), False
        self._last = threading.Lock()  # for the last line: the watch and who waited for a collective may both say it
        atexit.register(self._leave)
        for target in (self._count, self._watch):
            threading.Thread(target=target, name="peers", daemon=True).start()

    def lost(self, after: float) -> str | None:
        """Say which process has not been heard of for so many seconds, or None."""
        now = time.monotonic()
        for index, (word, since) in list(self._seen.items()):
            if index != self._index and not word.endswith(LEAVING) and now - since > after:
                return word.rsplit(":", 1)[0]
        return "process 0, which coordinates them," if now - self._answered > after else None

    def broken(self) -> None:
        """End this process because a collective failed: the one that others no longer hear of is named."""
        until = time.monotonic() + 4 * BEAT
        while not (which := self.lost(2 * BEAT)) and time.monotonic() < until:
            time.sleep(BEAT / 4)
        self.end(which or "another process")

    def end(self, which: str) -> None:
        """Say which process was lost, and leave at once: what waits for it would wait for ever."""
        limit = threading.Timer(SAID, self._leave_now, [which])  # where() reads a disk
        limit.daemon = True
        limit.start()
        with contextlib.suppress(Exception):
            which = f"{which} is lost: start all processes again with the same command{self.where()}"
        self._leave_now(which)

    def _leave_now(self, which: str) -> None:
        if not self._last.acquire(timeout=SAID):
            return
        os.write(2, f"\nerror: {which}.\n".encode())
        os._exit(EXIT_PEER_LOST)

    def _count(self) -> None:
        count = 0
        while True:
            with contextlib.suppress(Exception):  # whoever stops answering is found by _watch
                word = LEAVING if self._leaving else str(count)
                self._client.key_value_set(f"{PREFIX}/{self._index}", f"{self._name}:{word}", allow_overwrite=True)
                for key, word in self._client.key_value_dir_get(PREFIX):
                    index = int(key.rsplit("/", 1)[1])
                    if self._seen.get(index, ("", 0.0))[0] != word:
                        self._seen[index] = word, time.monotonic()
                self._answered = time.monotonic()
            count += 1
            time.sleep(BEAT)

    def _watch(self) -> None:
        previous = time.monotonic()
        while not self._leaving:
            time.sleep(BEAT)
            now = time.monotonic()
            if now - previous > LOST / 3:  # it is this process that was stopped
                self._seen = {index: (word, now) for index, (word, _) in self._seen.items()}
                self._answered = now
            elif (which := self.lost(LOST)) and not self._leaving:
                self.end(which)
            previous = now

    def _leave(self) -> None:
        self._leaving = True  # jax waits for the others now; _count goes on meanwhile


@contextlib.contextmanager
def answering(lost: Callable[[], None]) -> Iterator[None]:
    """While jax joins the processes: have its client call `lost`, where it would abort.

    The client cannot hand its status to Python (jaxlib 0.10 throws std::bad_cast on the way): C++'s last resort is
    ours as well. Elsewhere than on libstdc++, or in a jax that is made otherwise, jax aborts as it always does.
    """
    from jax._src import distributed

    try:
        make = distributed._jax.get_distributed_runtime_client
        terminate = ctypes.CFUNCTYPE(None)(lost)
        ctypes.CDLL("libstdc++.so.6")._ZSt13set_terminatePFvvE(terminate)
    except (AttributeError, OSError):
        yield
        return
    _KEPT.append(terminate)

    def client(*arguments, **options):
        return make(*arguments, **options, missed_heartbeat_callback=lambda *status: lost())

    distributed._jax.get_distributed_runtime_client = client
    try:
        yield
    finally:
        distributed._jax.get_distributed_runtime_client = make


def leave_if_broken(error: BaseException) -> None:
    """End this process if an error of jax means that another one is gone."""
    words = ("gloo", "nccl", "coordination", "heartbeat", "barrier")
    if WATCH and any(word in str(error).lower() for word in words):
        WATCH[0].broken()


WATCH: list["Peers"] = []  # of this process, once it has joined others
_KEPT: list[Any] = []  # what C++ holds a pointer to
