"""training.teacher: a flow map of the flow of a trained model."""

import json
import shutil

import numpy as np
import pytest

from main import EXIT_USER_ERROR, main
from tests.launch import TINY, weights

SMALL = (*TINY, "--config.network.width=8", "--config.training.n_iters=4", "--config.training.eval_freq=0")
SMALL += ("--config.training.snapshot_freq_for_preemption=2",)
CLASSES = ("--config.model.class_conditional=True", "--config.training.label_dropout=0.2")
MAP = (
    "--config.model.span=True", "--config.training.objective=flow_map", "--config.training.weighting=velocity",
    "--config.model.guidance=True", "--config.training.flow_map_guidance=(1.0, 3.0)", *CLASSES,
)  # fmt: skip


def command(workdir, *flags, mode="train"):
    return main([*SMALL, f"--workdir={workdir}", f"--mode={mode}", *flags])


def equal(run, other, step=4):
    return all(np.array_equal(a, b) for a, b in zip(weights(run, step), weights(other, step), strict=True))


def refused(capsys, workdir, *flags):
    capsys.readouterr()
    assert command(workdir, *flags) == EXIT_USER_ERROR
    return next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))


def test_who_cannot_teach(tmp_path, capsys):
    assert "there is no" in refused(capsys, tmp_path / "run", *MAP, f"--config.training.teacher={tmp_path}/none")
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.slow
def test_a_flow_map_of_a_trained_model(tmp_path, capsys):
    """The config says which weights taught it; others are refused; it goes on to the bit, and draws guided samples."""
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    assert command(teacher, *CLASSES) == 0
    without = tmp_path / "without"
    assert command(without, CLASSES[0]) == 0
    said = refused(capsys, tmp_path / "no", *MAP, f"--config.training.teacher={without}")
    assert "cannot be guided: it must be trained with model.class_conditional and training.label_dropout" in said
    taught = (*MAP, f"--config.training.teacher={teacher}")
    assert command(student, *taught) == 0
    named = json.loads((student / "config.json").read_text())["training"]["teacher"]
    assert named.startswith(f"{teacher}#") and len(named) == len(f"{teacher}#") + 16
    assert command(tmp_path / "alone", *MAP) == 0
    assert not equal(tmp_path / "alone", student)
    shutil.copytree(student, tmp_path / "again")
    shutil.rmtree(tmp_path / "again/checkpoints")  # back to the state of step 2
    assert command(tmp_path / "again", *taught) == 0
    assert equal(tmp_path / "again", student)

    few = ("--config.eval.num_samples=64", "--config.eval.only=('loss','gallery')")
    few += ("--config.sampling.name=flow_map", "--config.guidance.scale=2.0")
    assert main([f"--workdir={student}", "--mode=eval", *few]) == 0
    assert {file.stem for file in (student / "eval").glob("*/gallery/*.png")} == {"classes", "guidance", "sdedit"}
    assert command(teacher, *CLASSES, "--config.training.n_iters=6") == 0
    assert "weights there are" in refused(capsys, student, *MAP, f"--config.training.teacher={named}")
    longer = (*taught, "--config.training.n_iters=6")
    assert f"training.teacher: {named} -> {teacher}#" in refused(capsys, student, *longer)
    assert command(student, *longer, "--config.training.accept=('teacher',)") == 0
