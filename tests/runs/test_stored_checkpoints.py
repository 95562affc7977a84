"""Checkpoints on an object store: judged by what a listing tells, and whole wherever they are copied to."""

import re
import shutil

import jax
import numpy as np
import pytest

from score_flow.runs import files, manifest, places, stores
from score_flow.runs.checkpoint import Checkpoints
from score_flow.runs.sharding import make_mesh
from tests import emulators
from tests.states import items, make_state, write

pytestmark = pytest.mark.skipif(bool(emulators.missing("gs")), reason="gcsfs is not installed")


@pytest.fixture(scope="module")
def written(served):
    """A folder on a store with two checkpoints, and their states."""
    place = places.place_of("gs://bucket/run/checkpoints")
    return place, write(place, 5, 10)


def restored(place, step):
    state = make_state(make_mesh(), step)
    return Checkpoints(place).restore(step, items(state))


def equal(one, other) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_state_comes_back_and_its_checksums_are_the_stores(written):
    place, states = written
    checkpoints = Checkpoints(place)
    assert checkpoints.steps() == [5, 10] and checkpoints.newest_good() == 10
    equal(restored(place, 10), items(states[10]))
    told = {name: stores.checksum(about) for name, about in stores.listed(place / "10").items()}
    assert manifest.read(place, 10) == told and all(value.startswith("md5:") for value in told.values())
    assert checkpoints.meta(10)["name"] == "é10"


def test_nothing_of_the_arrays_is_read_to_judge_a_state(written, monkeypatch):
    place, _ = written
    read = []
    monkeypatch.setattr(files, "md5_of", read.append)
    monkeypatch.setattr(files, "sha256_of", read.append)
    assert Checkpoints(place).damage(10) is None and not read


@pytest.mark.parametrize("name", ["/d/", "meta/metadata"])
def test_an_object_that_was_changed_or_removed_is_found(written, name):
    place, _ = written
    whole = {other: stores.get(place / "10" / other) for other in stores.listed(place / "10")}
    victim = next(other for other in whole if name in other)
    for content in (whole[victim][:-1] + b"\x01", whole[victim] + b"\0", None):
        places.remove(place / "10" / victim) if content is None else stores.put(place / "10" / victim, content)
        assert victim in Checkpoints(place).damage(10)
        stores.put(place / "10" / victim, whole[victim])
    stores.put(place / "10" / "more", b"")
    assert "more is not in its manifest" in Checkpoints(place).damage(10)
    places.remove(place / "10" / "more")
    assert Checkpoints(place).damage(10) is None


def test_a_copy_on_a_disk_is_whole_and_a_flipped_bit_in_it_is_found(written, tmp_path):
    place, states = written
    shutil.copytree(places.local(place), copy := tmp_path / "checkpoints")
    assert Checkpoints(copy).newest_good() == 10
    equal(restored(copy, 5), items(states[5]))
    victim = max((path for path in (copy / "10").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    assert re.search(f"{victim.name} has changed", Checkpoints(copy).damage(10))


@pytest.mark.slow
def test_a_copy_of_a_disk_is_whole_on_a_store(served, tmp_path):
    states, place = write(tmp_path / "checkpoints", 5), places.place_of("gs://bucket/copied")
    for path in (tmp_path / "checkpoints").rglob("*"):
        if path.is_file():
            stores.put(place / str(path.relative_to(tmp_path / "checkpoints")), path.read_bytes())
    assert Checkpoints(place).newest_good() == 5
    equal(restored(place, 5), items(states[5]))
    victim = next(name for name in stores.listed(place / "5") if "/d/" in name)
    stores.put(place / "5" / victim, stores.get(place / "5" / victim)[:-1] + b"\x01")
    assert victim in Checkpoints(place).damage(5)


@pytest.mark.slow
def test_what_only_the_store_can_tell_is_not_taken_for_whole_elsewhere(served, tmp_path, monkeypatch):
    """Objects in many parts have no MD5: on the store they are known all the same, on a disk that is said."""
    monkeypatch.setattr(stores, "checksum", lambda about: f"crc32c:{about['md5Hash']}:{about['size']}")
    checkpoints = Checkpoints(places.place_of("gs://bucket/parts"))
    checkpoints.save(5, items(make_state(make_mesh(), 5)), {}, wait=True)
    assert checkpoints.damage(5) is None
    monkeypatch.undo()
    assert "told by the store alone" in checkpoints.damage(5)
    shutil.copytree(places.local(checkpoints.directory), tmp_path / "parts")
    assert "told by the store alone" in Checkpoints(tmp_path / "parts").damage(5)


@pytest.mark.slow
def test_what_a_kill_left_behind_is_removed_and_old_states_go(served):
    place = places.place_of("gs://bucket/kept")
    write(place, 5, 10, 15, keep=2)
    assert Checkpoints(place).steps() == [10, 15] and not (place / "5").is_dir()
    places.remove(manifest.path_of(place, 15))
    checkpoints = Checkpoints(place, keep=2)
    checkpoints.prepare()
    assert {name.split("/")[0] for name in stores.listed(place)} == {"10", "10.manifest.json"}
    assert checkpoints.newest_good() == 10
