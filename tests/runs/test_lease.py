"""One holds a folder of a store: who holds it is asked for, who is gone is found, and of several at once one wins."""

import concurrent.futures
import json
import os
import subprocess
import threading
import time

import pytest

from score_flow.errors import UserError
from score_flow.runs import lease, stores
from score_flow.runs.places import path_of
from score_flow.runs.workdir import hold
from tests import emulators

pytestmark = pytest.mark.skipif(bool(emulators.missing("gs")), reason="gcsfs is not installed")


@pytest.fixture
def folder(served, request, monkeypatch):
    for name, seconds in (("RENEW", 0.2), ("LOOK", 0.05), ("STALE", 1.5)):
        monkeypatch.setattr(lease, name, seconds)
    return path_of(f"gs://bucket/{request.node.name}")


def newest(folder) -> dict:
    return lease._newest(folder / ".leases")[1]


def test_a_second_one_is_refused_and_told_who_holds_it(folder):
    with (
        hold(folder, "run"),
        pytest.raises(UserError, match=rf"is in use by another run \(process {os.getpid()} on "),
        hold(folder, "run"),
    ):
        raise AssertionError("it was given to two")
    with hold(folder, "run"):  # free again
        assert list(stores.listed(folder)) == [".leases/00000002"]
    assert newest(folder)["free"]


def test_a_killed_holder_of_this_machine_is_not_waited_for(folder, monkeypatch):
    gone = subprocess.Popen(["true"])
    gone.wait()
    stores.put(folder / ".leases" / "00000001", json.dumps(lease._who() | {"pid": gone.pid}).encode())
    monkeypatch.setattr(lease, "STALE", 1e9)
    with hold(folder, "run"):
        assert newest(folder)["pid"] == os.getpid()


def test_a_holder_elsewhere_that_is_silent_for_long_is_followed(folder):
    gone = {"host": "other", "pid": 7, "since": "then", "machine": "of another kernel"}
    stores.put(folder / ".leases" / "00000041", json.dumps(gone).encode())
    began = time.monotonic()
    with hold(folder, "run"):
        assert time.monotonic() - began > lease.STALE
        assert list(stores.listed(folder)) == [".leases/00000042"]


def test_who_was_followed_leaves_when_it_wakes(folder, monkeypatch, capfd):
    codes, left = [], threading.Event()

    def leave(code):
        codes.append(code)
        left.set()
        raise OSError("gone")

    monkeypatch.setattr(os, "_exit", leave)
    with hold(folder, "run"):
        other = {"host": "other", "pid": 7, "since": "then"}
        stores.put(folder / ".leases" / "00000002", json.dumps(other).encode())
        assert left.wait(10)
    assert set(codes) == {2}
    assert "was taken over meanwhile by process 7 on other since then" in capfd.readouterr().err
    assert newest(folder) == other


def test_of_many_at_once_one_holds_it(folder):
    """Twenty ask for a folder together, again and again: never two have it."""
    inside, most, held = 0, 0, 0
    counting = threading.Lock()

    def ask(_):
        nonlocal inside, most, held
        try:
            with hold(folder, "run"):
                with counting:
                    inside, held = inside + 1, held + 1
                    most = max(most, inside)
                time.sleep(0.5)
                with counting:
                    inside -= 1
        except UserError as error:
            return str(error)
        return ""

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        said = list(pool.map(ask, range(40)))
    assert held == said.count("") >= 1 and most == 1
    assert all("in use by another run" in words for words in said if words)


def test_only_one_creates_an_object_that_is_not_there(folder):
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        made = list(pool.map(lambda i: stores.create(folder / "one", str(i).encode()), range(20)))
    assert made.count(True) == 1
    assert stores.get(folder / "one") == str(made.index(True)).encode()
