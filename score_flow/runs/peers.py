"""The other processes of a run: when one is lost, this one says which in a line and leaves with exit code 76.

When one ends by an error that it alone has met, a disk that is full for one, the others end with its line and code.

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
LEAVING, FAILED = "leaving", "failed"  # in place of a count: this process is done; it ends by an error (code, line)
ALIKE = 10.0  # seconds in which the others meet an error that all meet


class Peers:
    """Counts for this process, watches the others, and ends this one when another is lost.

    where: what to add of the newest state. Both threads are daemons: they go with the process.
    """

    def __init__(self, client: Any, index: int):
        self.where: Callable[[], str] = lambda: ""
        self._client, self._index = client, index
        self._name = f"process {index} ({os.getpid()} on {socket.gethostname()})"
        self._seen: dict[int, tuple[str, float]] = {}  # the last word of each, and when it was new
        self._answered, self._leaving, self._error = time.monotonic(), False, ""
        self._last = threading.Lock()  # for the last line: the watch and who waited for a collective may both say it
        atexit.register(self._leave)
        for target in (self._count, self._watch):
            threading.Thread(target=target, name="peers", daemon=True).start()

    def lost(self, after: float) -> str | None:
        """Say which process has not been heard of for so many seconds, or None."""
        now = time.monotonic()
        for index, (word, since) in list(self._seen.items()):
            name, _, said = word.partition(":")
            if index != self._index and said != LEAVING and now - since > after:
                return name
        return "process 0, which coordinates them," if now - self._answered > after else None

    def failed(self, after: float) -> tuple[int, str] | None:
        """Return (exit code, line) of a process that has ended by an error for so many seconds, or None."""
        now = time.monotonic()
        for index, (word, since) in list(self._seen.items()):
            said = word.partition(":")[2]
            if index != self._index and said.startswith(FAILED) and now - since > after:
                _, code, line = said.split(" ", 2)
                return int(code), line
        return None

    def fail(self, code: int, line: str) -> None:
        """Tell the others by which error this process ends; returns if all end by themselves, else they end by it."""
        self._error = f"{FAILED} {code} {line}"
        until = time.monotonic() + ALIKE + 3 * BEAT
        while not self._all_end():
            if time.monotonic() > until:
                os._exit(code)  # jax would wait for the others
            time.sleep(BEAT / 20)

    def _all_end(self) -> bool:
        with contextlib.suppress(Exception):  # process 0 may be gone already
            self._say()
            said = [word.partition(":")[2] for _, (word, _) in self._seen.items()]
            return all(word == LEAVING or word.startswith(FAILED) for word in said)
        return True

    def broken(self) -> None:
        """End this process because a collective failed: the one that others no longer hear of is named."""
        until = time.monotonic() + 4 * BEAT
        while not (which := self.lost(2 * BEAT)) and time.monotonic() < until:
            if found := self.failed(0.0):
                self._leave_now(*found)
            time.sleep(BEAT / 4)
        self.end(which or "another process")

    def end(self, which: str) -> None:
        """Say which process was lost, and leave at once: what waits for it would wait for ever."""
        limit = threading.Timer(SAID, self._leave_now, [EXIT_PEER_LOST, f"error: {which}."])  # where() reads a disk
        limit.daemon = True
        limit.start()
        with contextlib.suppress(Exception):
            which = f"{which} is lost: start all processes again with the same command{self.where()}"
        self._leave_now(EXIT_PEER_LOST, f"error: {which}.")

    def _leave_now(self, code: int, line: str) -> None:
        if not self._last.acquire(timeout=SAID):
            return
        os.write(2, f"\n{line}\n".encode())
        os._exit(code)

    def _count(self) -> None:
        count = 0
        while True:
            with contextlib.suppress(Exception):  # whoever stops answering is found by _watch
                self._say(str(count))
            count += 1
            time.sleep(BEAT)

    def _say(self, word: str = "") -> None:
        """Say a word, and hear those of the others."""
        word = LEAVING if self._leaving else self._error or word
        self._client.key_value_set(f"{PREFIX}/{self._index}", f"{self._name}:{word}", allow_overwrite=True)
        for key, word in self._client.key_value_dir_get(PREFIX):
            index = int(key.rsplit("/", 1)[1])
            if self._seen.get(index, ("", 0.0))[0] != word:
                self._seen[index] = word, time.monotonic()
        self._answered = time.monotonic()

    def _watch(self) -> None:
        previous = time.monotonic()
        while not self._leaving:
            time.sleep(BEAT)
            now = time.monotonic()
            if now - previous > LOST / 3:  # it is this process that was stopped
                self._seen = {index: (word, now) for index, (word, _) in self._seen.items()}
                self._answered = now
            elif not self._leaving and not self._error:
                if found := self.failed(ALIKE):
                    self._leave_now(*found)
                elif which := self.lost(LOST):
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


def fail(code: int, line: str) -> None:
    """Have the others end by the error by which this process ends, if they do not meet it themselves."""
    if WATCH:
        WATCH[0].fail(code, line)


WATCH: list["Peers"] = []  # of this process, once it has joined others
_KEPT: list[Any] = []  # what C++ holds a pointer to
