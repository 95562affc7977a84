"""Waiting for the milestones of a run that still trains: in order, without spinning, until the last or a signal."""

import json
import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest

from evaluation import weights
from evaluation.weights import coming
from main import EXIT_USER_ERROR, main
from score_flow.errors import Preempted, UserError
from score_flow.runs.checkpoint import Checkpoints
from score_flow.runs.preemption import Preemption
from tests.launch import TINY, finish, launch, run

LAST = 30  # step at which training ends


class Training:
    """A run that saves its next milestone while the watcher sleeps so many times."""

    def __init__(self, workdir, naps=2):
        self.workdir, self.naps, self.slept, self.step = workdir, naps, 0, 0
        self.milestones = Checkpoints(workdir / "checkpoints")

    def sleep(self, seconds):
        assert seconds == weights.INTERVAL
        self.slept += 1
        if self.slept % self.naps == 0:
            self.save()

    def save(self):
        self.step += 10
        meta = {"config": {"training": {"n_iters": LAST}}}
        self.milestones.save(self.step, {"params": {"a": np.zeros(2)}}, meta, wait=True)


@pytest.fixture
def training(tmp_path, monkeypatch):
    training = Training(tmp_path)
    monkeypatch.setattr(weights, "time", SimpleNamespace(sleep=training.sleep))
    yield training
    training.milestones.close()


def steps(training, begin=0, end=0):
    with Preemption() as preemption:
        return [step for _, step in coming(training.workdir, begin, end, preemption=preemption)]


def test_to_the_end_of_training(training, capsys):
    """Each milestone once, in order; one nap a look; each wait is announced once."""
    assert steps(training) == [10, 20, 30]
    assert training.slept == 3 * training.naps
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(f"waiting for milestone {i + 1} in " in line for i, line in enumerate(lines))


@pytest.mark.parametrize(("begin", "end", "expected"), [(2, 3, [20, 30]), (1, 2, [10, 20]), (2, 2, [20]), (3, 0, [30])])
def test_from_begin_to_end(training, begin, end, expected):
    assert steps(training, begin, end) == expected
    assert training.step == expected[-1]


def test_what_is_there_is_not_waited_for(training, capsys):
    for _ in range(3):
        training.save()
    assert steps(training) == [10, 20, 30]
    assert training.slept == 0 and not capsys.readouterr().out


def test_what_never_comes_is_said(training):
    with pytest.raises(UserError, match="end_ckpt=5: training ended with milestone 3, at step 30"):
        steps(training, 1, 5)
    with pytest.raises(UserError, match="first must not come after the last"):
        steps(training, 4, 3)


def test_sigterm_while_waiting(training, monkeypatch):
    training.save()

    def sleep(seconds):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(weights, "time", SimpleNamespace(sleep=sleep))
    with pytest.raises(Preempted, match="waiting for milestone 2"):
        steps(training)


def test_other_processes_do_not_look(training, monkeypatch):
    """They follow what the main one sees, whatever their files say."""
    for _ in range(3):
        training.save()
    asked, seen = [], iter([False, False, True])
    monkeypatch.setattr(weights, "decided", lambda name, look: asked.append(name) or next(seen))
    with Preemption() as preemption:
        assert next(coming(training.workdir, 1, 1, preemption=preemption))[1] == 10
    assert len(asked) == 3 and training.slept == 2


def test_of_a_run_that_is_to_train(tmp_path, capsys):
    assert main([*TINY, f"--workdir={tmp_path}", "--mode=train", "--watch"]) == EXIT_USER_ERROR
    assert "--watch" in capsys.readouterr().err


@pytest.mark.slow
def test_beside_a_run_that_trains(tmp_path):
    """Started first, stopped by SIGTERM while it waits, started again: every milestone is evaluated."""
    flags = ["--watch", "--config.eval.enable_sampling=False", "--config.eval.enable_bpd=False"]
    flags += ["--config.training.snapshot_freq=20", "--config.eval.batch_size=99"]
    (tmp_path / "checkpoints").mkdir()
    waiting = launch(tmp_path, *flags, mode="eval")
    for line in waiting.stdout:
        if line.startswith("waiting for milestone 1"):
            break
    waiting.send_signal(signal.SIGTERM)
    start = time.time()
    assert "stopped: stopped while waiting for milestone 1" in finish(waiting, 75)
    assert time.time() - start < 2 * weights.INTERVAL
    again = launch(tmp_path, *flags, mode="eval")
    run(tmp_path, "--config.training.snapshot_freq=20")
    finish(again)
    losses = [json.loads((tmp_path / "eval" / s / "results.json").read_text())["loss"]["loss"] for s in ("20", "40")]
    assert losses[1] < losses[0]
