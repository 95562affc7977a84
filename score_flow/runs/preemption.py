"""A run that is asked to stop: the signal as a flag that all processes agree on."""

import signal
from typing import Any

from score_flow.runs.processes import agree


class Preemption:
    """SIGTERM and SIGINT as a flag, agreed on by all processes once a loop: finish the step, save, leave.

    One inside another sees what that one saw, and hands on what it sees itself.
    """

    def __init__(self):
        self.signalled = False
        self._previous: dict[int, Any] = {}
        self._outer: Preemption | None = None

    def __enter__(self) -> "Preemption":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._set)
        outer = getattr(self._previous[signal.SIGTERM], "__self__", None)
        self._outer = outer if isinstance(outer, Preemption) else None
        self.signalled |= self._outer is not None and self._outer.signalled
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._outer is not None:
            self._outer.signalled |= self.signalled

    def _set(self, number, frame) -> None:
        if self.signalled and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C leaves at once
        self.signalled = True

    def agreed(self) -> bool:
        return agree(self.signalled)
