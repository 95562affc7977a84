"""The command line: help, mistakes in one line and at once, nothing lost."""

import errno
import itertools
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from main import EXIT_USER_ERROR, main
from score_flow.config.components import Component, find
from score_flow.config.hints import arguments_of
from score_flow.config.options import SCHEMA
from score_flow.errors import NonFinite, UserError
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
        ("--config.path.beta_mxa=3.", "'beta_mxa'"),
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


LIBRARIES = {"jax", "flax", "optax", "diffrax", "orbax", "grain", "scipy", "sklearn", "torch"}  # that take long to load


def program(*flags: str) -> tuple[subprocess.CompletedProcess, set[str], str]:
    """main.py in a process of its own, the libraries among LIBRARIES that it loaded, and what else it said."""
    command = [sys.executable, "-X", "importtime", "main.py", *flags]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    lines = done.stderr.splitlines()
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines if line.startswith("import time:")}
    assert "argparse" in loaded
    return done, loaded & LIBRARIES, "\n".join(line for line in lines if not line.startswith("import time:"))


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--config=configs/digits.py", "--config.trainin.n_iters=3"], "Did you mean 'training'?"),
        (["--config=configs/digits.py", "--config.network.widht=3"], "Did you mean 'width'?"),
        (["--config=configs/digits.py", "--mode=trian"], "invalid choice: 'trian'"),
        (["--config=configs/nothing.py"], "--config is 'configs/nothing.py'"),
    ],
)
def test_a_mistake_is_answered_before_a_library_is_loaded(tmp_path, flags, said):
    done, loaded, error = program("--mode=train", f"--workdir={tmp_path / 'run'}", *flags)
    assert done.returncode == EXIT_USER_ERROR and not loaded
    assert said in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_a_start_of_training_loads_only_what_it_needs(tmp_path):
    """Whatever is refused last is refused when all else of a start is loaded."""
    done, loaded, error = program(*TINY, "--mode=train", f"--workdir={tmp_path}", "--config.training.init=/nowhere")
    assert done.returncode == EXIT_USER_ERROR and "config.training.init" in error
    assert loaded == {"jax", "flax", "optax", "orbax", "grain"}


def test_help_explains_every_key():
    """Every flag, every field of the schema with what it may be, every plug-in with every argument."""
    done, loaded, _ = program("--help")
    assert done.returncode == 0 and not loaded
    text = done.stdout
    named = ("config", "workdir", "mode", "checkpoint", "reference_config", "eval_folder", "watch", "topology")
    for flag in (f"--{name}" for name in named):
        assert f"  {flag}" in text
    assert all(re.search(rf"\b{code} ", text[text.index("exit codes") :]) for code in (0, 1, 2, 3, 75, 76))
    lines = text.splitlines()
    for key, field in SCHEMA.items():
        plug_in = isinstance(field.default, Component)
        name = f"{key}.name" if plug_in else key
        [line] = [line for line in lines if line.startswith(f"  {name} ")]
        assert all(str(choice) in line for choice in field.metadata["limits"].choices())
        if plug_in:
            registry = field.metadata["limits"].among
            start = lines.index(f"plug-ins of {key}.name, each argument set by --config.{key}.ARGUMENT=VALUE:")
            shown = "\n".join(itertools.takewhile(bool, lines[start + 1 :]))
            for choice in field.metadata["limits"].choices():
                assert re.search(rf"^  {re.escape(choice)}: \S", shown, re.MULTILINE), choice
                for argument in arguments_of(find(registry, Component(choice), key)):
                    assert re.search(rf"^    {argument} +\S+.*\[.+\]$", shown, re.MULTILINE), (choice, argument)


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
    line = attempt(capsys, tmp_path / "run", "--config.training.fsdp=3")
    assert "config.training.fsdp is 3" in line and "8 devices; allowed: 1, 2, 4, 8" in line


def test_workdir_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in attempt(capsys, tmp_path / "file" / "run")


def test_evaluation_of_nothing(capsys, tmp_path):
    assert "train first" in attempt(capsys, tmp_path / "run", mode="eval")


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "error, code, expected",
    [
        (UserError("no"), 2, ["no"]),
        (NonFinite("step 3: loss nan"), 3, ["step 3: loss nan"]),
        (FULL, 2, ["No space left on device", "free"]),
        (ValueError("RESOURCE_EXHAUSTED: [x='y'] No space left on device"), 2, ["No space left on device", "free"]),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.npz"), 2, ["No such file", "a.npz"]),
        (MemoryError(), 2, ["out of memory", "training.batch_size"]),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating"), 2, ["out of memory"]),
    ],
)
def test_every_end_is_one_line_and_a_code(capsys, monkeypatch, tmp_path, error, code, expected):
    def ends(options, overrides):
        raise error

    monkeypatch.setattr("evaluation.modes.command.run", ends)
    assert main([f"--workdir={tmp_path}", "--mode=train"]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: ") and all(part in lines[0] for part in expected)


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch, tmp_path):
    def ends(options, overrides):
        raise KeyError("a bug")

    monkeypatch.setattr("evaluation.modes.command.run", ends)
    with pytest.raises(KeyError):
        main([f"--workdir={tmp_path}", "--mode=train"])


def test_what_is_refused_leaves_no_folder(capsys, tmp_path):
    attempt(capsys, tmp_path / "run", "--config.training.batch_size=20")
    assert not (tmp_path / "run").exists()
