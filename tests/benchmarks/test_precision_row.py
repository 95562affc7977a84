"""Training in bfloat16 has the losses of float32, by the command that says so of more steps."""

import json

import numpy as np
import pytest

from benchmarks import precision
from benchmarks.measure import main

TINY = [f"--config.network.{flag}" for flag in ("width=32", "depth=1", "num_heads=2")]


@pytest.mark.slow
def test_losses_agree_within_a_hundredth(monkeypatch, capsys):
    """Of the first 100 steps, in which chance has not yet grown; and float32 is not compared with itself."""
    monkeypatch.setattr(precision, "SEEDS", 2)
    flags = ["training.n_iters=100", "training.batch_size=64"]
    assert main(precision.measure, argv=[*TINY, *(f"--config.{flag}" for flag in flags)]) == 0
    row = json.loads(capsys.readouterr().out)
    assert 0 < abs(row["largest_deviation"]) <= row["one_seed"] < row["allowed"] == 0.01
    assert 0 < abs(row["of_rounded_start"]["largest_deviation"]) < 0.01
    short, exact = row["curves"]["bfloat16"], row["curves"]["float32"]
    assert len(short) == len(exact) == 2 and short != exact
    assert short[1] < 0.9 * short[0]  # it learns


def test_a_deviation_has_the_error_of_its_mean_over_seeds():
    """Window 1 is .2 above in the mean of two seeds, which differ by .2: its standard error is .1."""
    found = precision.deviation(np.array([[1.0, 1.1], [2.0, 2.6]]), np.array([[1.0, 1.0], [2.0, 2.0]]))
    assert found == {
        "mean_deviation": 0.1, "mean_error": 0.05, "largest_deviation": 0.2, "largest_error": 0.1, "one_seed": 0.3,
    }  # fmt: skip


def test_steps_that_fill_no_window_are_refused(capsys):
    assert main(precision.measure, argv=["--config.training.n_iters=77"]) == 2
    assert capsys.readouterr().err.startswith("error: config.training.n_iters is 77; it must be a multiple of 50")
