"""What training logs while it goes, a step a row, and where it finds that a step was not finite."""

import time
from collections import deque
from collections.abc import Callable

from score_flow.runs.progress import MetricLog, progress
from score_flow.runs.sharding import to_host
from score_flow.training.faults import Faults, warn
from score_flow.training.pace import Pace
from score_flow.training.steps import Metrics, TrainState, crossed


class Recorder:
    """The hook that logs losses, moves the bar and finds non-finite steps, without ever waiting for the newest program.

    After a log step, once the next program is under way, it fetches the metrics of all programs before: so the host
    stays at most log_freq steps and a program ahead. `settle` fetches the rest; `go_on` is the hook after all others.
    """

    def __init__(
        self,
        log: MetricLog,
        log_freq: int,
        *,
        start: int,
        n_steps: int,
        rate: Callable[[int], float] | None = None,
        faults: Faults | None = None,
        batch_size: int = 0,
        least_seconds: float | None = None,
    ):
        """rate: the learning rate of an update, counted as the steps are, from 0, but without those that were skipped.

        least_seconds: of a step, were the devices at their peak; batch_size: images of a step. Without them no MFU and
        no images a second are logged.
        """
        self._log, self._log_freq, self._rate, self._faults = log, log_freq, rate, faults or Faults()
        self._batch_size, self._least_seconds = batch_size, least_seconds
        self._pending: deque[tuple[int, Metrics]] = deque()
        self._started, self._bar = time.time(), progress(n_steps, start, "step", "train")
        self._pace, self._k, self._due, self._settled, self._warned = Pace(), 0, False, False, False

    def __call__(self, previous: int, step: int, state: TrainState, metrics: Metrics) -> None:
        compiled = step - previous != self._k  # the newest program is another: it was compiled before it began
        if compiled:
            self._pace.forget()
        if self._due or compiled:
            self._drain()
        if compiled:
            self._pace.start(previous)
        self._k, self._due = step - previous, crossed(self._log_freq, previous, step)
        self._pending.append((previous, metrics))
        self._bar.update(step - previous)

    def settle(self) -> None:
        """Check and log every step so far; what follows until `go_on` is no training. Raises NonFinite."""
        self._drain()
        self._settled = True

    def flush(self) -> None:
        """Settle, and have the log outlast this process."""
        self.settle()
        self._log.flush()

    def go_on(self, previous: int, step: int, state: TrainState, metrics: Metrics) -> None:
        """Measure again, if all steps were settled."""
        if self._settled:
            self._pace.start(step)
        self._settled = False

    def close(self) -> None:
        self._bar.close()

    def _drain(self) -> None:
        while self._pending:
            previous, metrics = self._pending.popleft()
            metrics = Metrics(*to_host(tuple(metrics)))
            self._pace.done(previous + len(metrics.loss))
            for i, (loss, norm) in enumerate(zip(metrics.loss.tolist(), metrics.grad_norm.tolist(), strict=True)):
                self._record(previous + i, loss, norm)

    def _record(self, step: int, loss: float, norm: float) -> None:
        """Check one step, counted from 0, and log it if it is to be."""
        faults = self._faults
        updates = step - faults.skipped
        finite = faults.met(step + 1, loss, norm)
        if not finite and not self._warned:
            self._warned = True
            warn(f"step {step + 1}: loss {loss:.6g}, gradient norm {norm:.6g}: skipped, as others will be, unsaid.")
        if (step + 1) % self._log_freq:
            return
        row = {"loss": loss, "grad_norm": norm} if finite else {}
        row |= {"lr": float(self._rate(updates))} if self._rate else {}
        speed = self._speed()
        self._log.write(step + 1, row | faults.row() | {"seconds": round(time.time() - self._started, 3)} | speed)
        self._bar.set_postfix_str(", ".join([f"loss {loss:.4f}", *_said(speed)]), refresh=False)

    def _speed(self) -> dict[str, float]:
        """Return how fast the steps since the last row were."""
        rate = self._pace.rate()
        if rate is None:
            return {}
        found = {"steps_per_second": rate}
        found |= {"images_per_second": rate * self._batch_size} if self._batch_size else {}
        found |= {"mfu": rate * self._least_seconds} if self._least_seconds else {}
        return {name: float(f"{value:.6g}") for name, value in found.items()}


def _said(speed: dict[str, float]) -> list[str]:
    """Say it beside the bar, which says the steps a second itself."""
    said = {"images_per_second": "{:.0f} images/s", "mfu": "MFU {:.1%}"}
    return [form.format(speed[name]) for name, form in said.items() if name in speed]
