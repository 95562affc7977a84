"""The benchmarks run and say what they promise; how fast anything is, is not a test's business."""

import json
import math

import pytest

from benchmarks import likelihood, networks, torch_steps
from benchmarks.all import MEASUREMENTS
from benchmarks.measure import MIN_TRIALS, interleave, main

KEYS = {"name", "value", "unit", "ratio", "against", "device", "n", "p10", "p90"}
NAMES = ["train_step", *likelihood.SOLVERS, "sampler_ode_heun", "sampler_ddim", "sampler_sde_euler"]
NAMES += ["loader_packed_32", "loader_packed_256", "loader_jpeg_256", "loader_latents_32"]
TINY = [
    "--seconds=0", "--batch=2", "--config.network.name=mlp", "--config.network.width=16", "--config.network.depth=0",
    "--config.training.batch_size=8",
]  # fmt: skip


LONG = (networks.measure, torch_steps.measure)  # U-Nets take minutes to compile
QUICK = [measure for measure in MEASUREMENTS if measure not in LONG]


@pytest.mark.slow
def test_rows(tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert main(*QUICK, argv=[*TINY, f"--out={out}"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == NAMES
    assert json.loads(out.read_text()) == rows
    for row in rows:
        assert row.keys() >= KEYS
        assert row["n"] >= MIN_TRIALS
        assert 0 < row["p10"] <= row["value"] <= row["p90"] < math.inf
        assert 0 < row["ratio"] < math.inf
    # All answer the same question: each errs by at most a tolerance a call.
    for row, (solver, _) in zip(rows[1:], likelihood.SOLVERS.values(), strict=False):
        assert row["error_bits_per_dim"] < row["calls"] * solver.rtol / math.log(2)
        assert row["error_scipy_bits_per_dim"] < row["calls_scipy"] * 1e-5 / math.log(2)
        assert 0 <= row["waiting"] < 1


@pytest.mark.slow
def test_networks_row(capsys):
    assert main(networks.measure, argv=["--seconds=0", "--batch=8"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["name"] == "networks" and 0 < row["ratio"] < math.inf and row["flops"] > 0 < row["other_flops"]


def test_turns():
    """A B A B ..., the first of each unmeasured."""
    turns = []
    timing = interleave(lambda: turns.append("A"), lambda: turns.append("B"), 0)
    assert turns == ["A", "B"] * (MIN_TRIALS + 1)
    assert len(timing.ours) == len(timing.other) == MIN_TRIALS


def test_mistakes_are_one_line(capsys):
    assert main(*MEASUREMENTS, argv=["--config.network.nme=mlp", "--config.tranining.batch_size=8"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
