"""A folder is held by one at a time, and a refused command leaves no trace in it."""

import os
import subprocess
import sys

import pytest

from score_flow.errors import UserError
from score_flow.runs.workdir import hold, workdir
from tests.launch import ROOT, environment


def contents(folder) -> dict:
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in sorted(folder.rglob("*"))}


def test_a_second_one_is_refused_and_told_who_holds_it(tmp_path):
    with (
        hold(tmp_path, "run"),
        pytest.raises(UserError, match=rf"is in use by another run \(process {os.getpid()} on "),
        hold(tmp_path, "run"),
    ):
        raise AssertionError("it was given to two")
    with hold(tmp_path, "run"):  # free again
        pass


def test_a_killed_holder_leaves_no_stale_lock(tmp_path):
    code = (
        "import os, signal, pathlib; from score_flow.runs.workdir import hold\n"
        f"with hold(pathlib.Path({str(tmp_path)!r}), 'run'): print('held', flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == -9 and "held" in done.stdout
    with hold(tmp_path, "run"):
        assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()


def test_what_is_refused_leaves_the_folder_as_it_was(tmp_path):
    new, old = tmp_path / "some" / "new", tmp_path / "old"
    with pytest.raises(UserError), workdir(new, exclusive=True):
        raise UserError("refused")
    assert not (tmp_path / "some").exists()
    old.mkdir()
    (old / "config.json").write_text("{}")
    for _ in range(2):
        before = contents(old)
        with pytest.raises(UserError), workdir(old, exclusive=True):
            raise UserError("refused")
        assert contents(old) == before
        with workdir(old, exclusive=True):  # the second time round, a run was here
            pass


@pytest.mark.parametrize("what", [".lock", "run"])
def test_a_folder_where_a_file_belongs_or_a_file_where_a_folder_does(tmp_path, what):
    (tmp_path / ".lock").mkdir() if what == ".lock" else (tmp_path / "run").write_text("")
    with (
        pytest.raises(UserError, match="cannot write") as error,
        hold(tmp_path if what == ".lock" else tmp_path / "run", "run"),
    ):
        pass
    assert "\n" not in str(error.value)
