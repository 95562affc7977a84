"""A run that is asked to stop: the signal as a flag that all processes agree on; asked once more, it leaves at once."""

import os
import signal
import socket
import threading
import time
from typing import Any

from score_flow.runs.processes import agree

EXIT_PREEMPTED = 75
PATIENCE = 1.0  # seconds: a SIGTERM so soon after the first is the same one, sent to the process and to its group
AT_ONCE = "\nstopped: at once, by a second SIGTERM, with what was saved before; run the same command to go on.\n"


class Preemption:
    """SIGTERM and SIGINT as a flag, agreed on by all processes once a loop: finish the step, save, leave.

    A second SIGTERM ends the process with exit code 75 wherever it is, also in a save or waiting for others: what was
    saved before stands. One inside another sees what that one saw, and hands on what it sees itself.
    """

    def __init__(self):
        self.signalled = False
        self._previous: dict[int, Any] = {}
        self._outer: Preemption | None = None
        self._heard: socket.socket | None = None

    def __enter__(self) -> "Preemption":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._set)
        outer = getattr(self._previous[signal.SIGTERM], "__self__", None)
        self._outer = outer if isinstance(outer, Preemption) else None
        self.signalled |= self._outer is not None and self._outer.signalled
        if self._outer is None:
            self._listen()
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._outer is not None:
            self._outer.signalled |= self.signalled
        if self._heard is not None:
            signal.set_wakeup_fd(self._waked)
            self._heard.close()  # the thread ends with it
            self._heard = None

    def _set(self, number, frame) -> None:
        if self.signalled and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C leaves at once
        self.signalled = True

    def _listen(self) -> None:
        """Have a thread hear all signals: Python runs no handler while its main thread waits for a device or a disk."""
        self._heard, ear = socket.socketpair()
        self._heard.setblocking(False)
        self._waked = signal.set_wakeup_fd(self._heard.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=_leave_on_the_second, args=(ear,), name="signals", daemon=True).start()

    def agreed(self) -> bool:
        return agree(self.signalled)


def _leave_on_the_second(ear: socket.socket) -> None:
    """Read the numbers of the signals that came; end the process at a SIGTERM after the first."""
    first = None
    with ear:
        while numbers := ear.recv(1):
            if first is None and numbers[0] in (signal.SIGTERM, signal.SIGINT):
                first = time.monotonic()
            elif numbers[0] == signal.SIGTERM and time.monotonic() - first > PATIENCE:
                os.write(2, AT_ONCE.encode())
                os._exit(EXIT_PREEMPTED)
