"""The README's code runs."""

import re
import shlex

import pytest

from main import EXIT_USER_ERROR, main
from tests.launch import ROOT

BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_python_blocks():
    code = [text for kind, text in BLOCKS if kind == "python"]
    assert code
    for text in code:
        exec(compile(text, "README.md", "exec"), {})


def test_the_oldest_tested_versions_are_the_lower_bounds():
    bounds = dict(re.findall(r"^([\w-]+)>=([\d.]+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    (oldest,) = re.findall(r"Python 3\.11 \((.*?): the lower bounds", (ROOT / "README.md").read_text())
    named = dict(package.split() for package in oldest.split(", "))
    assert {"jax", "flax", "numpy"} <= set(named) and named.items() <= bounds.items()


def test_make_targets_exist():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"\bmake ([\w-]+)", "\n".join(text for kind, text in BLOCKS if kind == "bash"))
    assert named and set(named) <= set(targets)


def test_commands(tmp_path):
    """The three modes, as written, in order, but for the folder of the run and a small network."""
    lines = [
        line
        for kind, text in BLOCKS
        if kind == "bash"
        for line in text.splitlines()
        if line.startswith("python main.py")
    ]
    runs = [line for line in lines if "PATH" not in line]
    assert len(runs) == 3
    for line in runs:
        assert main([*shlex.split(line)[2:], f"--workdir={tmp_path}", *SMALL]) == 0
    assert (tmp_path / "report.html").exists() and list(tmp_path.glob("samples/20/samples/samples.npz"))


SMALL = (
    "--config.network.name=mlp",
    "--config.network.width=16",
    "--config.training.batch_size=16",
    "--config.training.eval_freq=0",
    "--config.eval.solver.rtol=1e-2",
    "--config.eval.solver.atol=1e-2",
    "--config.eval.batch_size=99",
)


@pytest.mark.parametrize("line", [line for _, text in BLOCKS for line in text.splitlines() if "PATH" in line])
def test_the_data_command_names_what_is_missing(line, tmp_path, capsys):
    line, missing = line.replace("runs/", f"{tmp_path}/").replace("PATH", f"{tmp_path}/PATH"), f"{tmp_path}/PATH"
    assert main(shlex.split(line)[2:]) == EXIT_USER_ERROR
    assert missing in capsys.readouterr().err
