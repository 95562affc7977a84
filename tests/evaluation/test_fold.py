"""The loop of every evaluation: it goes on from what was saved, and saving takes a small share of the time."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from evaluation import fold as module
from evaluation.fold import SHARE, Fold, next_round, rounds_left, run
from score_flow.errors import Preempted, UserError
from score_flow.runs.checkpoint import Checkpoints
from score_flow.runs.workdir import held
from tests.launch import ROOT

KEY = {"job": "sum", "test images": {"checksum": "ab"}, "eval": {"solver": {"method": "tsit5"}, "times": (1.0, 2.0)}}


def summed(n, after=lambda round_number: None, key=KEY):
    """A fold whose state is the sum of the numbers of its rounds, and how many there were."""

    def step(state):
        after(int(state["done"]))
        return {"sum": state["sum"] + state["done"], "done": state["done"] + 1}

    def init():
        return {"sum": np.zeros(2), "done": np.zeros(())}

    return Fold(key, lambda state: n - int(state["done"]), init, step, lambda state: {"sum": state["sum"].tolist()})


def test_goes_on_after_sigterm_and_is_done_once(tmp_path):
    """Stopped in round 3 and in the last one: what is left is done, the sum is that of a run without a break."""
    seen = []

    def stop(round_number):
        seen.append(round_number)
        if round_number in (3, 6):
            os.kill(os.getpid(), signal.SIGTERM)

    for message in ("after 4 of 7 rounds", "is done, and stopped"):
        with pytest.raises(Preempted, match=message):
            run(summed(7, stop), tmp_path, "sum")
    assert run(summed(7, stop), tmp_path, "sum") == {"sum": [21.0, 21.0]}
    assert seen == list(range(7))


@pytest.mark.parametrize("seconds", [0.0, 0.375, 10.0])
def test_saving_takes_its_share(tmp_path, monkeypatch, seconds):
    """By a clock of rounds of a second: the first is saved, then again when that costs no more than SHARE."""
    clock, saves = [0.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])

    def save(self, step, items, meta, *, wait=False):
        clock[0] += seconds
        saves.append(step)

    def tick(round_number):
        clock[0] += 1.0

    monkeypatch.setattr(Checkpoints, "save", save)
    n = 500
    assert run(summed(n, tick), tmp_path, "sum")["sum"][0] == n * (n - 1) / 2
    every = max(1, math.ceil(seconds / SHARE))
    assert saves == list(range(1, n, every))


# ---- what a result depends on


def done(tmp_path):
    return run(summed(3), tmp_path, "sum")


def begun(tmp_path):
    """A state, after the first of three rounds."""
    with pytest.raises(Preempted):
        run(summed(3, lambda number: os.kill(os.getpid(), signal.SIGTERM)), tmp_path, "sum")


@pytest.mark.parametrize("before", [done, begun])
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"test images": {"checksum": "cd"}}, "of other data (test images.checksum is 'ab' there and 'cd' here)"),
        ({"eval": {"solver": {"method": "euler"}}}, "eval.solver.method is 'tsit5' there and 'euler' here; eval.times"),
        ({"eval": {"solver": {"method": "tsit5"}, "times": (1.0,)}}, "eval.times is [1.0, 2.0] there and [1.0] here"),
        ({"version": "3"}, "version is 'absent' there and '3' here"),
    ],
)  # fmt: skip
def test_of_another_key_is_refused_and_nothing_is_touched(tmp_path, before, changed, said):
    before(tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as error:
        run(summed(3, key=KEY | changed), tmp_path, "sum")
    assert said in str(error.value) and "another --eval_folder" in str(error.value) and "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_states_may_be_made_anew(tmp_path, capsys):
    begun(tmp_path)
    assert run(summed(3, key=KEY | {"data": 1}), tmp_path, "sum", restart=True) == {"sum": [3.0, 3.0]}
    assert "the state that was begun is of other settings: it starts again" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", '{"sum": [3', "[]", '{"sum": [7.0, 7.0]}'], ids=["empty", "half", "list", "old"])
def test_a_result_without_a_key_is_made_again_and_kept(tmp_path, capsys, text):
    """Of a program that noted no data with it, or not written whole: said in one line, never overwritten."""
    for number in (0, 1):
        (tmp_path / "result.json").write_text(text)
        assert done(tmp_path) == {"sum": [3.0, 3.0]}
        assert (tmp_path / f"result.e{number}.json").read_text() == text
        assert capsys.readouterr().out.count("\n") == 1
        shutil.rmtree(tmp_path / "meta", ignore_errors=True)
    assert done(tmp_path) == {"sum": [3.0, 3.0]} and json.loads((tmp_path / "result.json").read_text())["key"]


def test_a_state_of_an_older_program_starts_again(tmp_path, capsys):
    """Its rounds meant batches."""
    old = Checkpoints(tmp_path / "meta", keep=2)
    old.save(2, {"state": {"sum": np.full(2, 99.0)}}, {"n_rounds": 3}, wait=True)
    old.close()
    assert done(tmp_path) == {"sum": [3.0, 3.0]}
    assert "of an older program: it starts again" in capsys.readouterr().out


def test_rounds_take_what_is_missing():
    missing = np.array([[False, True, True, False, True], [True] * 5])
    assert rounds_left(missing, 2) == 2 + 3
    row, numbers, mask = next_round(missing, 4)
    assert (row, numbers.tolist(), mask.tolist()) == (0, [1, 2, 4, 4], [True, True, True, False])
    missing[0] = False
    assert next_round(missing, 2)[:2] == (1, pytest.approx([0, 1])) and rounds_left(missing & False, 3) == 0


def test_a_folder_is_held_by_one(tmp_path):
    """By another process too; it is free again when its holder is gone."""
    code = "import sys, pathlib, score_flow.runs.workdir as w\nwith w.held(pathlib.Path(sys.argv[1]), 'x'): pass"
    with held(tmp_path, "evaluation"):
        other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
        with pytest.raises(UserError, match=rf"in use by another evaluation \(process {os.getpid()} on"):
            held(tmp_path, "evaluation").__enter__()
    assert "UserError" in other.stderr and "is in use by another x" in other.stderr
    with held(tmp_path, "evaluation"):
        pass


def test_what_differs_is_said_of_settings_and_of_what_has_the_name_of_a_plug_in():
    """A result may depend on a dequantiser by its digest, where another depends on none."""
    new = {"eval.dequantizer": "variational", "dequantizer": "abc", "eval.num_repeats": 1}
    said = module.differing(new, {"eval.dequantizer": "uniform"})  # num_repeats is younger, and has its default
    assert said == [
        "eval.dequantizer is 'uniform' there and 'variational' here",
        "dequantizer is 'absent' there and 'abc' here",
    ]
