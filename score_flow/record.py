"""What a run says while it goes: a progress bar, metrics.jsonl, TensorBoard files."""

import importlib.util
import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from score_flow.sharding import is_main
from score_flow.training import Metrics, TrainState, check_finite, crossed


def progress(total: int, initial: int, unit: str, what: str) -> tqdm:
    """A bar with rate and ETA on stderr; in a file or a pipe, a line every few seconds."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total, initial=initial, unit=unit, desc=what, disable=not is_main(), dynamic_ncols=terminal,
        mininterval=0.2 if terminal else 5.0, maxinterval=0.5 if terminal else 10.0, ncols=None if terminal else 100,
    )  # fmt: skip


class MetricLog:
    """Rows keyed by step in metrics.jsonl and TensorBoard files; rows beyond `start` (a lost segment) are cut first."""

    def __init__(self, directory: Path, start: int):
        self._file = None
        if not is_main():
            return
        path = directory / "metrics.jsonl"
        kept = [line for line in read_lines(path) if line["step"] <= start]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(temporary, path)
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 - closed by close()
        self._write_board, self._close_board = _board(directory / "tensorboard", start)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One row; floats are written so that they read back bitwise."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._write_board(step, values)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._close_board()  # what its queue still holds would be lost


def read_lines(path: Path) -> list[dict]:
    """The rows of a JSONL file; a last line cut short by a kill is dropped."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _board(directory: Path, start: int):
    """(write(step, values), close()) for TensorBoard: clu's writer where TensorFlow is installed, else tensorboardX."""
    if importlib.util.find_spec("tensorflow") and importlib.util.find_spec("tensorboard"):
        from clu import metric_writers  # needs TensorFlow, which is never needed otherwise

        writer = metric_writers.SummaryWriter(str(directory))
        return writer.write_scalars, writer.close
    from tensorboardX import SummaryWriter

    board = SummaryWriter(str(directory), purge_step=start + 1 if start else None, flush_secs=10)

    def write(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            board.add_scalar(name, value, step)

    return write, board.close


class Recorder:
    """The hook that logs losses, moves the bar and finds non-finite steps, without ever waiting for the newest program.

    At a log step it fetches the metrics of all programs but the last, so the host stays at most log_freq steps ahead.
    `flush` fetches the rest: call it before anything is saved.
    """

    def __init__(self, log: MetricLog, log_freq: int, start: int, n_steps: int):
        self._log, self._log_freq = log, log_freq
        self._pending: deque[tuple[int, Metrics]] = deque()
        self._started, self._bar = time.time(), progress(n_steps, start, "step", "train")

    def __call__(self, previous: int, step: int, state: TrainState, metrics: Metrics) -> None:
        self._pending.append((previous, metrics))
        self._bar.update(step - previous)
        if crossed(self._log_freq, previous, step):
            self._drain(leave=1)

    def flush(self) -> None:
        """Check and log every step so far; raises NonFinite."""
        self._drain(leave=0)

    def close(self) -> None:
        self._bar.close()

    def _drain(self, leave: int) -> None:
        while len(self._pending) > leave:
            previous, metrics = self._pending.popleft()
            metrics = check_finite(previous, metrics)
            for i in self._logged(previous, len(metrics.loss)):
                row = {"loss": float(metrics.loss[i]), "grad_norm": float(metrics.grad_norm[i])}
                self._log.write(previous + i + 1, row | {"seconds": round(time.time() - self._started, 3)})
                self._bar.set_postfix_str(f"loss {metrics.loss[i]:.4f}", refresh=False)

    def _logged(self, previous: int, k: int) -> Iterable[int]:
        return [i for i in range(k) if (previous + i + 1) % self._log_freq == 0]


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard error of independent values."""
    values = np.asarray(values, np.float64)
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return float(values.mean()), float(error)
