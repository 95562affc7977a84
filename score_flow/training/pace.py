"""How fast a run trains: steps a second of training alone."""

import time


class Pace:
    """Steps a second, by the moments at which steps are known to be done; compiling, saving and the like are left out.

    `start` begins to measure: all steps before are done, the next program is under way. `done` says that a step is.
    """

    def __init__(self):
        self._since: tuple[int, float] | None = None  # (step, when it was done)
        self._steps, self._seconds, self._last = 0, 0.0, None

    def start(self, step: int) -> None:
        """Measure from now on."""
        self._since = step, time.monotonic()

    def done(self, step: int) -> None:
        """Count the steps since the last moment."""
        if self._since:
            first, began = self._since
            self.start(step)
            self._steps, self._seconds = self._steps + step - first, self._seconds + self._since[1] - began

    def rate(self) -> float | None:
        """Return the steps a second since this was last asked, those of before where there were none; None: unknown."""
        if self._steps and self._seconds > 0:
            self._last = self._steps / self._seconds
        self._steps, self._seconds = 0, 0.0
        return self._last

    def forget(self) -> None:
        """What was measured does not count, nor what follows until `start`."""
        self._since = None
        self._steps, self._seconds, self._last = 0, 0.0, None
