"""What training logs while it goes, a step a row, and where it finds that a step was not finite."""

import time
from collections import deque
from collections.abc import Callable, Iterable

from score_flow.runs.progress import MetricLog, progress
from score_flow.training.steps import Metrics, TrainState, check_finite, crossed


class Recorder:
    """The hook that logs losses, moves the bar and finds non-finite steps, without ever waiting for the newest program.

    At a log step it fetches the metrics of all programs but the last, so the host stays at most log_freq steps ahead.
    `flush` fetches the rest: call it before anything is saved. rate: the learning rate of a step, counted from 0.
    """

    def __init__(
        self, log: MetricLog, log_freq: int, *, start: int, n_steps: int, rate: Callable[[int], float] | None = None
    ):
        self._log, self._log_freq, self._rate = log, log_freq, rate
        self._pending: deque[tuple[int, Metrics]] = deque()
        self._started, self._bar = time.time(), progress(n_steps, start, "step", "train")

    def __call__(self, previous: int, step: int, state: TrainState, metrics: Metrics) -> None:
        self._pending.append((previous, metrics))
        self._bar.update(step - previous)
        if crossed(self._log_freq, previous, step):
            self._drain(leave=1)

    def flush(self) -> None:
        """Check and log every step so far, to outlast this process; raises NonFinite."""
        self._drain(leave=0)
        self._log.flush()

    def close(self) -> None:
        self._bar.close()

    def _drain(self, leave: int) -> None:
        while len(self._pending) > leave:
            previous, metrics = self._pending.popleft()
            metrics = check_finite(previous, metrics)
            for i in self._logged(previous, len(metrics.loss)):
                row = {"loss": float(metrics.loss[i]), "grad_norm": float(metrics.grad_norm[i])}
                row |= {"lr": float(self._rate(previous + i))} if self._rate else {}
                self._log.write(previous + i + 1, row | {"seconds": round(time.time() - self._started, 3)})
                self._bar.set_postfix_str(f"loss {metrics.loss[i]:.4f}", refresh=False)

    def _logged(self, previous: int, k: int) -> Iterable[int]:
        return [i for i in range(k) if (previous + i + 1) % self._log_freq == 0]
