"""What training logs: every log step once, how fast, and steps that are not finite before anything is saved."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.errors import NonFinite
from score_flow.runs.progress import MetricLog, read_lines
from score_flow.training import pace
from score_flow.training.faults import SKIPS, Faults
from score_flow.training.recorder import Recorder
from score_flow.training.steps import Metrics, TrainState


@pytest.fixture
def recorder(tmp_path):
    """Makes recorders on tmp_path."""
    opened = []

    def make(log_freq, start=0, n_steps=100, **options):
        log = MetricLog(tmp_path, start)
        rate = lambda step: 0.5 * step  # noqa: E731
        opened.extend([log, Recorder(log, log_freq, start=start, n_steps=n_steps, rate=rate, **options)])
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def program(previous, step, loss=None, norm=None):
    """A hook's arguments: the losses of steps previous + 1 .. step are their numbers."""
    steps = np.arange(previous + 1, step + 1, dtype=np.float32)
    metrics = Metrics(jnp.asarray(steps if loss is None else loss), jnp.asarray(2 * steps if norm is None else norm))
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
    record(*program(2, 4, [1.0, np.nan]))  # after a log step: looks at the programs before
    assert [row["step"] for row in read_lines(tmp_path / "metrics.jsonl")] == [2]
    with pytest.raises(NonFinite, match="step 4"):
        record.flush()
    assert [row["step"] for row in read_lines(tmp_path / "metrics.jsonl")] == [2]


def test_a_log_step_finds_what_is_not_finite_before_the_newest(recorder):
    record = recorder(2)
    record(*program(0, 2, [np.inf, 1.0]))
    with pytest.raises(NonFinite, match="step 1"):
        record(*program(2, 4))


@pytest.mark.parametrize("policy", ["stop", "rollback"])
def test_non_finite_steps_are_named(recorder, policy):
    good = np.ones(5)
    bad = [([1, 1, np.nan, np.inf, 1], good, 13), (good, [np.inf, 1, 1, 1, 1], 11), ([1, 1, 1, 1, -np.inf], good, 15)]
    for loss, norm, step in bad:
        record = recorder(50, faults=Faults(policy))
        record(*program(10, 15, np.array(loss, np.float32), np.array(norm, np.float32)))
        with pytest.raises(NonFinite, match=f"^step {step}: loss ") as error:
            record.settle()
        assert "\n" not in str(error.value)


def test_a_row_of_good_steps_begins_the_count_of_bad_ones_anew(recorder, tmp_path):
    faults = Faults("skip", skipped=2, in_a_row=2)
    record = recorder(SKIPS, faults=faults)
    bad = [np.nan] * (SKIPS - 3)
    record(*program(0, SKIPS, [*bad, 1.0, np.nan, np.nan]))
    record.settle()
    assert (faults.skipped, faults.in_a_row) == (SKIPS + 1, 2)
    assert read_lines(tmp_path / "metrics.jsonl")[0].get("skipped") == SKIPS + 1
    with pytest.raises(NonFinite, match=f"^step {2 * SKIPS - 2}: "):
        record(*program(SKIPS, 2 * SKIPS, [np.nan] * SKIPS))
        record.settle()


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, as it is measured by."""
    now = [0.0]
    monkeypatch.setattr(pace, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    return now


def speeds(tmp_path):
    """step -> (steps, images, share of the peak) a second, of each row that has them."""
    names = ("steps_per_second", "images_per_second", "mfu")
    rows = read_lines(tmp_path / "metrics.jsonl")
    return {row["step"]: tuple(row[name] for name in names) for row in rows if names[0] in row}


@pytest.mark.parametrize("k, log_freq", [(1, 4), (2, 4), (4, 4), (4, 2), (3, 4)])
def test_the_pace_is_that_of_training_alone(recorder, tmp_path, clock, k, log_freq):
    """Steps of 0.5 s, the first program compiled for 100 s; after each twelfth step the others work for 30 s."""
    record = recorder(log_freq, faults=Faults(), batch_size=16, least_seconds=0.1)
    clock[0] += 100
    for step in range(0, 36, k):
        arguments = program(step, step + k)
        record(*arguments)
        clock[0] += 0.5 * k  # it runs; of the next one the hook is called when this one is done
        if (step + k) % 12 == 0:
            record.settle()
            clock[0] += 30
        record.go_on(*arguments)
    found = speeds(tmp_path)
    assert list(found) == list(range(log_freq, 37, log_freq))
    assert all(speed == (2.0, 32.0, 0.2) for speed in found.values())


def test_a_row_has_the_pace_of_its_own_steps(recorder, tmp_path, clock):
    """Ten times slower from step 9 on. At the end a program of another size, compiled for 100 s: what was under way
    before is not measured.
    """
    record = recorder(4, faults=Faults(), batch_size=16, least_seconds=0.1)
    for step in range(16):
        arguments = program(step, step + 1)
        record(*arguments)
        clock[0] += 0.5 if step < 8 else 5.0
        record.go_on(*arguments)
    clock[0] += 100
    record(*program(16, 20))
    clock[0] += 2.0
    record.settle()
    assert {step: speed[0] for step, speed in speeds(tmp_path).items()} == {4: 2.0, 8: 2.0, 12: 0.2, 20: 2.0}


def test_what_is_not_known_is_not_logged(recorder, tmp_path, clock):
    record = recorder(1)
    record(*program(0, 1))
    record.settle()  # no time has passed
    (row,) = read_lines(tmp_path / "metrics.jsonl")
    assert set(row) == {"step", "loss", "grad_norm", "lr", "seconds"}
