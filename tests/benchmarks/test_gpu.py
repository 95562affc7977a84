"""The command for a GPU says something of every row, whatever happens to one, and ends in its time."""

import json
import sys
import time

import jax
import pytest

from benchmarks import gpu
from benchmarks.gpu import ROWS, main, run_all
from benchmarks.parts import MEASURES, TINY, fresh, settled
from evaluation.plan.chips import HERE, machine
from evaluation.plan.compiling import step_of
from score_flow.config.loading import with_settings
from score_flow.training import optimiser
from score_flow.training.flat import is_flat

GOOD = "print('{\"value\": 1.5}')"


def said(programs: dict[str, str], minutes: float) -> tuple[int, dict[str, dict]]:
    """Rows of a run in which each is a Python program."""
    found = []
    failed = run_all(lambda name, seconds: [sys.executable, "-c", programs.get(name, GOOD)], minutes, found.append)
    assert [row["name"] for row in found] == list(ROWS)
    return failed, {row["name"]: row for row in found}


def test_a_row_that_fails_loses_no_other():
    broken = {"train_ncsnpp_cifar10": "raise MemoryError('too large')", "fid_features": "print('no row')"}
    failed, rows = said(broken, minutes=30)
    assert failed == 2
    assert rows.pop("train_ncsnpp_cifar10")["error"] == "exit code 1: MemoryError: too large"
    assert rows.pop("fid_features")["error"] == "no row"
    assert all(row["value"] == 1.5 and "error" not in row for row in rows.values())


def test_a_row_that_takes_too_long_is_ended_and_what_no_time_is_left_for_is_said(monkeypatch):
    monkeypatch.setattr(gpu, "LEAST", 0.5)
    start = time.monotonic()
    failed, rows = said(dict.fromkeys(ROWS, "import time; time.sleep(600)"), minutes=2 / 60)
    assert failed == len(ROWS) and time.monotonic() - start < 60
    errors = [row["error"] for row in rows.values()]
    assert errors[0].startswith("no result within") and errors[-1].startswith("not run:")


def test_every_row_has_its_measure():
    assert {part.measure for part in ROWS.values()} == set(MEASURES)
    assert {part.case for part in ROWS.values()} - {""} == set(TINY)


def test_training_begins_in_the_form_that_its_program_takes(monkeypatch):
    """On a GPU in vectors."""
    monkeypatch.setattr(optimiser, "FLAT_ON", ("cpu",))
    config = with_settings(settled("sit_b_2", True), {"training.batch_size": jax.device_count()})
    step = step_of(config, machine(HERE))
    assert is_flat(step.state.params)
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert shapes(fresh(step, config)) == shapes(step.state)


@pytest.mark.slow
def test_tiny_rows_on_a_cpu(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    assert main(["--tiny", "--minutes=60", f"--out={out}"]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows
    assert list(dict.fromkeys(row["name"] for row in rows)) == list(ROWS)
    for row in rows:
        assert row["value"] > 0 and row["n"] >= 1 and row["device"] and row["date"] and row["versions"]["jax"]
        assert row["name"] == "loader" or row["flops"] > 0
