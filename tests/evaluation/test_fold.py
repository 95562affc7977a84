"""The loop of every evaluation: it goes on from what was saved, and saving takes a small share of the time."""

import math
import os
import signal

import numpy as np
import pytest

from evaluation import fold as module
from evaluation.fold import SHARE, Fold, run
from score_flow.checkpoint import Checkpoints
from score_flow.types import Preempted


def summed(n, after=lambda round_number: None):
    """A fold whose state is the sum of the numbers of its rounds."""

    def step(state, round_number):
        after(round_number)
        return {"sum": state["sum"] + round_number}

    return Fold(n, lambda: {"sum": np.zeros(2)}, step, lambda state: {"sum": state["sum"].tolist()})


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
