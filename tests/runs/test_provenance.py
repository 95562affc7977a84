"""Where a run comes from: each start, with the code, the command and the machine, and nothing of the environment."""

import json
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from score_flow import __version__
from score_flow.runs import provenance
from score_flow.runs.provenance import append, commit, starts


def git(folder, *arguments):
    who = ("-c", "user.name=n", "-c", "user.email=e@e")
    done = subprocess.run(["git", *who, "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A repository with a file of this project's name."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    (tmp_path / "score_flow").mkdir()
    (tmp_path / "score_flow/types.py").write_text("a = 1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_each_start_is_a_line_and_a_damaged_one_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setenv("A_SECRET", "hunter2")
    append(tmp_path, 0)
    with open(tmp_path / "runs.jsonl", "a") as file:
        file.write('{"step": 3, "ho')  # as a disk that was full leaves it
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    append(tmp_path, 20)
    first, second = starts(tmp_path)
    assert [first["step"], second["step"]] == [0, 20]
    assert first["host"] != "another" and second["host"] == "another"
    assert first["command"].split()[0] == sys.orig_argv[0] and first["version"] == __version__
    assert first["packages"]["jax"] == jax.__version__ and first["packages"]["numpy"] == np.__version__
    assert first["devices"] == f"{jax.device_count()} x cpu" and first["processes"] == 1
    assert "hunter2" not in (tmp_path / "runs.jsonl").read_text()


def test_a_checkout_says_its_commit_and_whether_python_files_differ(checkout):
    head = git(checkout, "rev-parse", "HEAD")
    assert commit(str(checkout)) == {"commit": head, "changes": False}
    (checkout / "notes.txt").write_text("of no program")
    assert commit(str(checkout)) == {"commit": head, "changes": False}
    (checkout / "mine.py").write_text("")  # a plug-in of one's own
    assert commit(str(checkout)) == {"commit": head, "changes": True}
    (checkout / "mine.py").unlink()
    (checkout / "score_flow/types.py").write_text("a = 2\n")
    assert commit(str(checkout)) == {"commit": head, "changes": True}


def test_without_git_or_in_the_repository_of_another_project_there_is_no_commit(checkout, tmp_path, monkeypatch):
    installed = checkout / "venv/site-packages"
    (installed / "score_flow").mkdir(parents=True)
    (installed / "score_flow/types.py").write_text("")
    assert commit(str(installed)) == {}
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert commit(str(checkout)) == {}
    append(tmp_path, 0)
    assert "commit" not in json.loads((tmp_path / "runs.jsonl").read_text())


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "is_main", lambda: False)
    append(tmp_path, 0)
    assert not list(tmp_path.iterdir())
