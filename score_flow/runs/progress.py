"""What a run says while it goes: a progress bar, metrics.jsonl, TensorBoard files."""

import contextlib
import importlib.util
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from score_flow.runs import stores
from score_flow.runs.files import cannot_write, write_whole
from score_flow.runs.places import Place, make_folder, on_store, read
from score_flow.runs.processes import is_main

CLOCK = ("seconds", "steps_per_second", "images_per_second", "mfu")  # of a row of training: no two runs have the same


def progress(total: int, initial: int, unit: str, what: str) -> tqdm:
    """Return a bar with rate and ETA on stderr; in a file or a pipe, a line every few seconds."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total, initial=initial, unit=unit, desc=what, disable=not is_main(), dynamic_ncols=terminal,
        mininterval=0.2 if terminal else 5.0, maxinterval=0.5 if terminal else 10.0, ncols=None if terminal else 100,
    )  # fmt: skip


class MetricLog:
    """Rows keyed by step in metrics.jsonl and TensorBoard files; rows beyond `start` (a lost segment) are cut first.

    What is no row (a line cut short by a kill, a damaged one) is kept aside in metrics.bad.jsonl, and said. On a store
    the files are written from time to time, and at `flush`. Raises UserError where a file cannot be written. told: is
    told of each row.
    """

    def __init__(self, directory: Place, start: int, told: Callable[[int, dict[str, float]], None] | None = None):
        self._file, self._told = None, told
        if not is_main():
            return
        self._path = path = directory / "metrics.jsonl"
        try:
            rows, bad = _sorted_out(path)
            if bad:
                set_aside(path, bad)
            kept = b"".join(line + b"\n" for row, line in rows if row["step"] <= start)
            if on_store(path):
                self._file = stores.Growing(path, kept)
            else:
                write_whole(path, kept)
                self._file = open(path, "a", buffering=1)  # noqa: SIM115 - closed by close()
            self._board = _board(directory / "tensorboard", start)
        except OSError as error:
            raise cannot_write(path if on_store(path) else Path(error.filename or path), error) from error

    def write(self, step: int, values: dict[str, float]) -> None:
        """One row; floats are written so that they read back bitwise."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._board.write_scalars(step, values)
        except OSError as error:
            raise cannot_write(self._path, error) from error
        if self._told:
            self._told(step, values)

    def flush(self) -> None:
        """Have all rows so far where they outlast this process; before a state that counts on them is saved."""
        if self._file is None:
            return
        try:
            self._file.flush()
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def close(self) -> None:
        if self._file is None:
            return
        with contextlib.suppress(OSError):  # what could not be written was said by write()
            self._file.close()
        with contextlib.suppress(OSError):
            self._board.close()


def read_lines(path: Place) -> list[dict]:
    """Read the rows of a metrics.jsonl, in the order of the file; what is no row with a step is passed over."""
    return [row for row, _ in _sorted_out(path)[0]]


def _sorted_out(path: Place) -> tuple[list[tuple[dict, bytes]], list[bytes]]:
    """(the rows of a JSONL file, each with its line; the lines that are none)."""
    rows, bad = [], []
    for line in read(path).split(b"\n") if path.exists() else []:
        try:
            row = json.loads(line)
            whole = isinstance(row, dict) and type(row.get("step")) is int
        except (ValueError, RecursionError):
            whole = False
        if whole:
            rows.append((row, line))
        elif line.strip():
            bad.append(line)
    return rows, bad


def set_aside(path: Place, bad: list[bytes]) -> None:
    """Append lines that are no rows to metrics.bad.jsonl, and say so."""
    aside = path.with_suffix(".bad.jsonl")
    before = read(aside) if aside.exists() else b""
    write_whole(aside, before + b"".join(line + b"\n" for line in bad))
    print(f"{path}: {len(bad)} line(s) are no rows with a step; they are kept in {aside.name}.", flush=True)


def _board(directory: Place, start: int):
    """Return a writer of TensorBoard files: clu's where TensorFlow is installed, else one of tensorboardX's format."""
    if on_store(directory):
        return _Copied(directory, start)
    if importlib.util.find_spec("tensorflow") and importlib.util.find_spec("tensorboard"):
        from clu import metric_writers  # needs TensorFlow, which is never needed otherwise

        return metric_writers.SummaryWriter(str(directory))
    return _Board(directory, start)


class _Board:
    """TensorBoard files, written here: tensorboardX's own writer is a thread that dies of a full disk unheard."""

    FLUSH = 10.0  # seconds

    def __init__(self, directory: Path, start: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        make_folder(directory)
        self._event, self._scalar = Event, scalar
        self._writer, self._flushed = EventsWriter(str(directory / "events")), time.monotonic()
        if start:  # TensorBoard forgets what a lost segment wrote
            self._writer.write_event(Event(step=start + 1, session_log=SessionLog(status=SessionLog.START)))

    def write_scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.write_event(self._event(step=step, wall_time=time.time(), summary=self._scalar(name, value)))
        if time.monotonic() - self._flushed > self.FLUSH:
            self.flush()
            self._flushed = time.monotonic()

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Copied(_Board):
    """TensorBoard files of a run on a store: written on this machine, and copied there whole."""

    def __init__(self, directory: Place, start: int):
        self._directory, self._here = directory, Path(tempfile.mkdtemp(prefix="score_flow-"))
        self._next = time.monotonic() + stores.EVERY
        super().__init__(self._here, start)

    def flush(self) -> None:
        super().flush()
        if time.monotonic() > self._next:
            self._next = time.monotonic() + stores.timed(self._copy)

    def close(self) -> None:
        super().close()
        self._copy()
        shutil.rmtree(self._here, ignore_errors=True)

    def _copy(self) -> None:
        for file in self._here.iterdir():
            stores.put(self._directory / file.name, file.read_bytes())
