"""What an evaluation refuses, it refuses in one line before any job works, and leaves every byte as it was."""

import json

import jax
import numpy as np
import pytest

from main import EXIT_USER_ERROR, main
from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.runs.checkpoint import Checkpoints
from score_flow.runs.workdir import held
from tests.launch import TINY

JOBS = ("--config.eval.enable_sampling=False", "--config.eval.enable_bpd=False")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A milestone of a tiny model of the digits whose loss was evaluated."""
    folder = tmp_path_factory.mktemp("run")
    config = load("configs/digits.py", TINY[1:])
    shapes = jax.eval_shape(experiment(config).init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    meta = {"config": json.loads(config.to_json()), "weights": {"raw": "raw", "ema": "ema"}, "step": 40}
    milestones = Checkpoints(folder / "checkpoints")
    milestones.save(40, {"params": params, "ema": [params] * 2}, meta, wait=True)
    milestones.close()
    (folder / "config.json").write_text(config.to_json())
    np.savez(folder / "noise.npz", image=np.random.default_rng(0).integers(0, 17, (60, 8, 8, 1), np.uint8))
    assert evaluate(folder, *JOBS) == 0
    return folder


def evaluate(folder, *flags):
    return main([f"--workdir={folder}", "--mode=eval", "--config.eval.batch_size=297", *flags])


def bytes_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(folder, capsys, *flags):
    """The one line of a refusal, around which nothing has changed."""
    before = bytes_of(folder)
    capsys.readouterr()
    assert evaluate(folder, *flags) == EXIT_USER_ERROR
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1 and bytes_of(folder) == before
    return lines[0]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("data.source.name=arrays", "data.source.path={}/noise.npz", "data.source.levels=17"), "of other data (test"),
        (("seed=1",), "seed is 0 there and 1 here"),
        (("training.weighting=data",), "training.weighting is 'velocity' there and 'data' here"),
        (("eval.ema=1",), "weights is 'EMA 0.9' there and 'EMA 0.99' here"),
        (("eval.num_repeats=2",), "eval.num_repeats is 1 there and 2 here"),
        (("eval.bpd_dataset=train",), "eval.bpd_dataset is 'test' there and 'train' here"),
        (("eval.ema=2",), "the checkpoint has 2 EMA(s)"),
        # Of jobs whose turn would come later, too
        (("eval.jobs=('vlb',)",), "eval.vlb_steps = 0 asks for the chain"),
        (("eval.jobs=('fid',)",), "no reference statistics"),
        (("eval.jobs=('accuracy',)",), "the job accuracy is a classifier's"),
        (("eval.jobs=('likelihood_variational',)",), "no variational dequantiser"),
        (("eval.jobs=('bound',)", "eval.smallest_time=0.0"), "config.eval.smallest_time is 0.0"),
    ],
)  # fmt: skip
def test_other_things_in_the_same_folder(workdir, capsys, flags, words):
    given = [f"--config.{flag.format(workdir)}" for flag in flags]
    line = refused(workdir, capsys, *JOBS, *given)
    assert words in line


def test_jobs_that_come_later_stop_those_before_in_a_new_folder(workdir, capsys):
    refused(workdir, capsys, *JOBS, "--eval_folder=new", "--config.eval.jobs=('loss','vlb')")
    assert not (workdir / "new").exists()


def test_a_folder_in_use(workdir, capsys):
    """Two evaluations do not take each other's states away."""
    with held(workdir / "eval", "evaluation"):
        assert "is in use by another evaluation" in refused(workdir, capsys, *JOBS)
    assert evaluate(workdir, *JOBS) == 0


def test_the_same_things_are_not_done_again(workdir, capsys):
    """Batches, other jobs and spelt-out defaults are no other things; what is done is read."""
    flags = (*JOBS, "--config.eval.batch_size=16", "--config.eval.num_samples=3", "--config.training.n_iters=7")
    assert evaluate(workdir, *flags) == 0
    printed = capsys.readouterr()
    assert "round/s" not in printed.err and "step 40 loss: loss 1." in printed.out
