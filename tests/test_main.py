"""The command line: help, mistakes in one line and at once, nothing lost."""

import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from main import EXIT_USER_ERROR, main
from tests.launch import ROOT, TINY, environment


def attempt(capsys, workdir, *flags, mode="train") -> str:
    """Run main.py in this process, expect a user error, and return its one line."""
    code = main([*TINY, f"--workdir={workdir}", f"--mode={mode}", *flags])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert code == EXIT_USER_ERROR
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


@pytest.mark.parametrize(
    "flag, expected",
    [
        ("--config.training.btch_size=64", "batch_size"),
        ("--config.trainin.batch_size=64", "training"),
        ("--config.training.batch_size=many", "int"),
        ("--config.training.batch_size=-8", "at least 1"),
        ("--config.path.name=vpp", "'vp'"),
        ("--config.path.beta_mxa=3.", "argument"),
        ("--config.network.widht=3", "'width'"),
        ("--config.model.prediction=velocty", "'velocity'"),
        ("--config.optim.optimizer=adam", "'Adam'"),
        ("--config.sampling.method=tsit6", "'tsit5'"),
        ("--config.data.source.name=digit", "'digits'"),
        ("--confg.seed=1", "cannot read"),
    ],
)  # fmt: skip
def test_mistyped_keys_and_values(capsys, tmp_path, flag, expected):
    assert expected in attempt(capsys, tmp_path / "run", flag)


def test_a_mistake_is_answered_in_five_seconds(tmp_path):
    start = time.time()
    command = [sys.executable, "main.py", *TINY, f"--workdir={tmp_path}", "--mode=train", "--config.trainin.n_iters=3"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert (
        done.returncode == EXIT_USER_ERROR
        and "Did you mean 'training'?" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert time.time() - start < 5


def test_help_explains_every_key():
    done = subprocess.run(
        [sys.executable, "main.py", "--help"], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0
    for word in (
        "--workdir",
        "--eval_folder",
        "training.n_jitted_steps",
        "optim.grad_clip",
        "eval.num_samples",
        "exit codes",
    ):
        assert word in done.stdout


def test_bad_data(capsys, tmp_path):
    """Missing folder, empty data set, wrong channels, an image that is none: one line each."""
    folder = ["--config.data.source.name=folder", "--config.data.source.image_size=8"]
    path = tmp_path / "images"
    line = f"--config.data.source.path={path}"
    assert "images" in attempt(capsys, tmp_path / "run", *folder, line)
    path.mkdir()
    assert "images" in attempt(capsys, tmp_path / "run", *folder, line)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path / "a.png")
    assert "channels" in attempt(capsys, tmp_path / "run", *folder, line, "--config.data.source.channels=2")
    (path / "b.png").write_text("not an image")
    assert "b.png" in attempt(capsys, tmp_path / "run", *folder, line)
    assert "path" in attempt(capsys, tmp_path / "run", "--config.data.source.name=arrays")


def test_batch_that_does_not_divide(capsys, tmp_path):
    line = attempt(capsys, tmp_path / "run", "--config.training.batch_size=20")  # eight devices here
    assert "20" in line and "16 or 24" in line


def test_workdir_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in attempt(capsys, tmp_path / "file" / "run")


def test_evaluation_of_nothing(capsys, tmp_path):
    assert "train first" in attempt(capsys, tmp_path / "run", mode="eval")
