"""Files are there whole or not at all, and one line says why one is not."""

import errno
import json
import os

import numpy as np
import pytest

from score_flow.errors import UserError
from score_flow.runs import files

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
WRITERS = {
    "write_whole": (lambda path, n: files.write_whole(path, json.dumps([n] * 1000)), "a.json"),
    "write_json": (lambda path, n: files.write_json(path, [n] * 1000), "result.json"),
    "write_arrays": (lambda path, n: files.write_arrays(path, x=np.full(1000, n)), "a.npz"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_kill_at_any_moment_leaves_the_old_file(tmp_path, monkeypatch, name):
    """Until the one call that puts it in place, nothing touches the old file; that call is the kernel's."""
    write, file = WRITERS[name]
    path = tmp_path / file
    write(path, 1)
    old = path.read_bytes()

    class Killed(BaseException):
        pass

    def killed(*arguments, **options):
        raise Killed

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(Killed):
        write(path, 2)
    monkeypatch.undo()
    assert path.read_bytes() == old
    write(path, 2)
    assert path.read_bytes() != old
    assert [path] == list(tmp_path.iterdir())


def test_a_full_disk_keeps_the_old_file_and_leaves_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_whole(path, "old")
    for call in ("fsync", "replace"):

        def full(*arguments):
            raise FULL

        monkeypatch.setattr(os, call, full)
        with pytest.raises(UserError, match=r"^cannot write .*a\.json: No space left on device \(.* free\)\.$"):
            files.write_whole(path, "new")
        monkeypatch.undo()
        assert path.read_text() == "old" and [path] == list(tmp_path.iterdir())


def test_what_is_written_is_on_the_disk_before_it_is_in_place(tmp_path, monkeypatch):
    done, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("sync"), sync(file)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("replace"), replace(*names)))
    files.write_whole(tmp_path / "a.json", "new")
    assert done == ["sync", "replace", "sync"]  # the file, its place, the folder that names it


@pytest.mark.parametrize(
    "error, expected",
    [
        (FULL, "No space left on device"),
        (ValueError("RESOURCE_EXHAUSTED: [source locations] No space left on device [x]"), "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (ValueError("an ordinary mistake"), None),
    ],
)
def test_the_reason_is_found_in_what_other_languages_say(error, expected):
    assert files.reason(error) == expected
    outer = KeyError("x")
    outer.__cause__ = error
    assert files.reason(outer) == expected


def test_what_is_needed_is_said_where_it_does_not_fit(tmp_path):
    small, large = (str(files.cannot_write(tmp_path, FULL, needed)) for needed in (1000, 10**18))
    assert " needed)" not in small and large.endswith(" free, 1e+09 GB needed).")


def test_free_space_is_that_of_the_nearest_folder_that_exists(tmp_path):
    assert files.free(tmp_path / "none" / "there") == pytest.approx(files.free(tmp_path), rel=0.5)
    assert [files.said(n) for n in (12, 12_345, 6_130_000, 8.2e10)] == ["12 B", "12.3 kB", "6.13 MB", "82 GB"]
