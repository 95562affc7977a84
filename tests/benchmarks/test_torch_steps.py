"""The layers in PyTorch answer as ours do, and without PyTorch there is a line instead of rows."""

import importlib.util
import json
import math

import pytest

from benchmarks import torch_steps
from benchmarks.measure import main


def test_without_torch_a_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(torch_steps.measure, argv=["--seconds=0"]) == 0
    said = capsys.readouterr()
    assert not said.out and said.err == "torch is not installed: no row against its layers\n"


@pytest.mark.slow
def test_rows(capsys):
    """Each is of networks whose losses agree, which the row's process asserts before it times anything."""
    pytest.importorskip("torch")
    assert main(torch_steps.measure, argv=["--seconds=0"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == [f"torch_{name}" for name in torch_steps.CASES]
    assert all(0 < row["ratio"] < math.inf and row["parameters"] > 1_000_000 for row in rows)
