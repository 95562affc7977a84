"""A process that stops counting is found and named, one that is done or merely slow is not."""

import threading
import time

import pytest

from score_flow.runs import checkpoint, peers


class Store:
    """The coordinator's key-value store, in this process."""

    def __init__(self):
        self.words = {}

    def key_value_set(self, key, word, allow_overwrite):
        self.words[key] = word

    def key_value_dir_get(self, prefix):
        return [(key, word) for key, word in self.words.items() if key.startswith(prefix)]


class Silent(Store):
    """A coordinator that is gone."""

    def key_value_set(self, key, word, allow_overwrite):
        raise RuntimeError("UNAVAILABLE: failed to connect")


@pytest.fixture
def watch(monkeypatch):
    """Makes watches with quick clocks, whose end is kept instead of taken."""
    monkeypatch.setattr(peers, "BEAT", 0.02)
    monkeypatch.setattr(peers, "LOST", 0.6)
    ended, made = [], []

    class Watch(peers.Peers):
        def end(self, which):
            ended.append(which)
            self._leaving = True

    def make(store, index=0):
        made.append(Watch(store, index))
        return made[-1], ended

    yield make
    for each in made:
        each._leaving = True


def wait_for(ended, seconds):
    until = time.monotonic() + seconds
    while not ended and time.monotonic() < until:
        time.sleep(0.01)


def test_nobody_is_lost_while_all_count(watch):
    store = Store()
    (_, ended), _ = watch(store, 0), watch(store, 1)
    wait_for(ended, 1.0)
    assert not ended and len(store.words) == 2


@pytest.mark.parametrize("last, lost", [("7", ["process 1 (12 on there)"]), (peers.LEAVING, [])])
def test_who_stops_counting_is_named_unless_it_was_done(watch, last, lost):
    store = Store()
    store.words[f"{peers.PREFIX}/1"] = f"process 1 (12 on there):{last}"
    _, ended = watch(store)
    wait_for(ended, 10.0 if lost else 1.0)
    assert ended == lost


def test_a_coordinator_that_does_not_answer_is_lost(watch):
    _, ended = watch(Silent(), 1)
    wait_for(ended, 10.0)
    assert ended == ["process 0, which coordinates them,"]


def test_this_process_says_when_it_leaves(watch):
    store = Store()
    one, ended = watch(store)
    one._leave()
    time.sleep(0.2)
    assert store.words[f"{peers.PREFIX}/0"].endswith(peers.LEAVING) and not ended


def test_an_error_of_one_ends_the_others_alike_unless_they_meet_it_themselves(watch, monkeypatch, capfd):
    monkeypatch.setattr(peers, "ALIKE", 0.2)
    left, store = [], Store()
    monkeypatch.setattr(peers.os, "_exit", left.append)
    both = [watch(store, i)[0] for i in range(2)]
    time.sleep(0.1)
    ends = [threading.Thread(target=one.fail, args=[2, "error: a: b."]) for one in both]
    for end in ends:  # both meet it
        end.start()
    for end in ends:
        end.join()
    assert left == [] and both[0].failed(0.0) == (2, "error: a: b.")
    store = Store()
    other, (follower, ended) = watch(store, 0)[0], watch(store, 1)
    time.sleep(0.1)
    failing = threading.Thread(target=other.fail, args=[3, "error: c."])
    failing.start()
    wait_for(left, 10.0)
    time.sleep(0.5)
    follower._leaving = True
    failing.join()
    assert set(left) == {3} and capfd.readouterr().err == "\nerror: c.\n" and not ended


def test_the_last_line_does_not_wait_for_a_disk(monkeypatch, capfd):
    """The process ends also where the newest state cannot be found."""
    left, found = [], threading.Event()
    monkeypatch.setattr(peers, "SAID", 0.1)
    monkeypatch.setattr(peers.os, "_exit", left.append)
    one = peers.Peers(Store(), 0)
    one.where = lambda: found.wait(10) and "; at last"
    ending = threading.Thread(target=one.end, args=["process 1"])
    ending.start()
    wait_for(left, 10.0)
    assert left == [76] and capfd.readouterr().err == "\nerror: process 1.\n"
    found.set()
    ending.join()
    one._leaving = True


def test_the_newest_step_is_found_without_jax_or_orbax(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "Checkpoints", None)
    assert checkpoint.newest_step(tmp_path) is None
    for name in ("checkpoints/20", "checkpoints-meta/30", "checkpoints-meta/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.manifest.json").touch()
    assert checkpoint.newest_step(tmp_path) == 30
