"""Training in bfloat16 has the losses of float32, by the command that says so of more steps."""

import json

import pytest

from benchmarks import precision
from benchmarks.measure import main

TINY = [f"--config.network.{flag}" for flag in ("width=32", "depth=1", "num_heads=2")]


@pytest.mark.slow
def test_losses_agree_within_a_hundredth(monkeypatch, capsys):
    """Of the first 100 steps, in which chance has not yet grown; and float32 is not compared with itself."""
    monkeypatch.setattr(precision, "SEEDS", 1)
    flags = ["training.n_iters=100", "training.batch_size=64"]
    assert main(precision.measure, argv=[*TINY, *(f"--config.{flag}" for flag in flags)]) == 0
    row = json.loads(capsys.readouterr().out)
    assert 0 < row["largest_deviation"] == row["one_seed"] < row["allowed"] == 0.01
    assert row["of_rounded_start"] > 0
    short, exact = row["curves"]["bfloat16"], row["curves"]["float32"]
    assert len(short) == len(exact) == 2 and short != exact
    assert short[1] < 0.9 * short[0]  # it learns


def test_steps_that_fill_no_window_are_refused(capsys):
    assert main(precision.measure, argv=["--config.training.n_iters=77"]) == 2
    assert capsys.readouterr().err.startswith("error: config.training.n_iters is 77; it must be a multiple of 50")
