"""What training logs: every log step once, and steps that are not finite found before anything is saved."""

import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.runs.progress import MetricLog, read_lines
from score_flow.training.recorder import Recorder
from score_flow.training.steps import Metrics, TrainState
from score_flow.types import NonFinite


@pytest.fixture
def recorder(tmp_path):
    """Makes recorders on tmp_path."""
    opened = []

    def make(log_freq, start=0, n_steps=100):
        log = MetricLog(tmp_path, start)
        opened.extend([log, Recorder(log, log_freq, start=start, n_steps=n_steps, rate=lambda step: 0.5 * step)])
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def program(previous, step, loss=None):
    """A hook's arguments: the losses of steps previous + 1 .. step are their numbers."""
    steps = np.arange(previous + 1, step + 1, dtype=np.float32)
    metrics = Metrics(jnp.asarray(steps if loss is None else loss), jnp.asarray(2 * steps))
    return previous, step, TrainState(step, {}, (), (), ()), metrics


@pytest.mark.parametrize("log_freq", [1, 3, 4, 50])
@pytest.mark.parametrize("k", [1, 2, 3, 5, 8])
def test_every_multiple_is_logged_once(recorder, tmp_path, k, log_freq):
    start, n_steps = 6, 31
    record = recorder(log_freq, start, n_steps)
    for previous in range(start, n_steps, k):
        record(*program(previous, min(previous + k, n_steps)))
    record.flush()
    record.flush()  # nothing is left to log
    rows = read_lines(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [step for step in range(start + 1, n_steps + 1) if step % log_freq == 0]
    assert all(row["loss"] == row["step"] and row["grad_norm"] == 2 * row["step"] for row in rows)
    assert all(row["lr"] == (row["step"] - 1) / 2 and row["seconds"] >= 0 for row in rows)  # of steps counted from 0


def test_flush_finds_what_is_not_finite_and_logging_never_waits_for_the_newest(recorder, tmp_path):
    record = recorder(2)
    record(*program(0, 2))
    record(*program(2, 4, [1.0, np.nan]))  # a log step: looks at the programs before
    assert [row["step"] for row in read_lines(tmp_path / "metrics.jsonl")] == [2]
    with pytest.raises(NonFinite, match="step 4"):
        record.flush()
    assert [row["step"] for row in read_lines(tmp_path / "metrics.jsonl")] == [2]


def test_a_log_step_finds_what_is_not_finite_before_the_newest(recorder):
    record = recorder(2)
    record(*program(0, 2, [np.inf, 1.0]))
    with pytest.raises(NonFinite, match="step 1"):
        record(*program(2, 4))
