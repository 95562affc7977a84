"""Processes that do not see one disk, or were not given one command, refuse all together and leave nothing behind."""

import subprocess
import time

import pytest

from score_flow.runs import together
from tests.launch import finish, launch, places

SEPARATE = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"']  # FOLDER COMMAND...: of its own disk
STEPS = "--config.training.n_iters=2"


def refused(*started) -> str:
    """The one line that all of several processes end with, by exit code 2, within half a minute of each other."""
    outputs = [finish(started[0], 2)]
    began = time.monotonic()
    outputs += [finish(process, 2) for process in started[1:]]
    assert time.monotonic() - began < 30 and not any("Traceback" in output for output in outputs)
    [line] = {line for output in outputs for line in output.splitlines() if line.startswith("error: ")}
    assert all(output.count(line) == 1 for output in outputs)
    return line


def test_a_file_is_seen_when_it_comes_and_missed_when_it_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(together, "is_main", lambda: False)
    monkeypatch.setattr(together, "PATIENCE", 0.3)
    made = []
    token = together._written(tmp_path / "a" / "b", made)
    assert together._seen(token) and made == [token, tmp_path / "a" / "b", tmp_path / "a"]
    assert token != together._written(tmp_path / "a" / "b", [])
    began = time.monotonic()
    assert not together._seen(tmp_path / "none") and time.monotonic() - began < 5


@pytest.mark.slow
def test_disks_that_are_not_shared_are_refused_by_all_and_nothing_stays(tmp_path, cache):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run([*SEPARATE, str(disk), "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    first, second = places(2)
    began = time.monotonic()
    one = launch(disk / "run", STEPS, cache=cache, **first)
    other = launch(disk / "run", STEPS, cache=cache, before=[*SEPARATE, str(disk)], **second)
    said = refused(one, other)
    print(said, f"{time.monotonic() - began:.0f} s with the start")
    assert "is not on a disk that all processes share: process 1 (" in said
    assert not list(disk.iterdir())


@pytest.mark.slow
def test_another_command_is_refused_by_all(tmp_path, cache):
    first, second = places(2)
    one, other = launch(tmp_path, STEPS, cache=cache, **first), launch(tmp_path, cache=cache, **second)
    line = refused(one, other)
    assert line == "error: training.n_iters is 2 for process 0 and 40 for process 1: give all the same."
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_one_process_alone_cannot_do_ends_all_alike(tmp_path, cache):
    """The log, which the main one writes, is no file: both leave with its line and code."""
    (tmp_path / "metrics.jsonl").mkdir()
    line = refused(*(launch(tmp_path, STEPS, cache=cache, **place) for place in places(2)))
    assert line == f"error: cannot write {tmp_path / 'metrics.jsonl'}: Is a directory."
