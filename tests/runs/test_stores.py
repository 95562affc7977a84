"""On an object store a run finds what it finds on a disk; the store is one of Google's, on the loopback."""

import hashlib
import importlib.util
import time

import numpy as np
import pytest
from PIL import Image

from evaluation.fold import Rows
from score_flow.data import arrays
from score_flow.data import folder as folders
from score_flow.errors import UserError
from score_flow.runs import files, places, stores
from score_flow.runs.places import path_of
from score_flow.runs.progress import MetricLog, read_lines
from tests import emulators

pytestmark = pytest.mark.skipif(bool(emulators.missing("gs")), reason="gcsfs is not installed")


@pytest.fixture
def place(served, request):
    return path_of(f"gs://bucket/{request.node.name}/".replace("[", "-").replace("]", ""))


def test_a_file_is_written_whole_read_moved_and_removed(place):
    assert places.on_store(place) and not str(place).endswith("/")
    file = place / "a" / "config.json"
    assert files.json_at(file) is None
    files.write_json(file, {"x": np.arange(2)})
    files.write_whole(place / "a" / "b", lambda stream: stream.write(b"bytes"))
    assert files.json_at(file) == {"x": [0, 1]} and places.read(place / "a" / "b") == b"bytes"
    assert sorted(path.name for path in (place / "a").iterdir()) == ["b", "config.json"]
    places.move(file, place / "moved.json")
    assert not file.exists() and files.json_at(place / "moved.json") == {"x": [0, 1]}
    with pytest.raises(FileNotFoundError):
        places.read(file)
    places.remove(place / "a")
    places.remove(place / "a")  # which is not there
    assert list(stores.listed(place)) == ["moved.json"]
    told = stores.checksum(stores.listed(place)["moved.json"])
    assert told == f"md5:{hashlib.md5(places.read(place / 'moved.json')).hexdigest()}"


def test_a_write_that_breaks_off_leaves_the_old_file(place):
    files.write_whole(place / "a", "old")

    def breaks(stream):
        stream.write(b"ne")
        raise OSError("in the middle")

    with pytest.raises(OSError, match="in the middle"):
        files.write_whole(place / "a", breaks)
    assert places.read(place / "a") == b"old"


def test_a_listing_is_of_now_and_has_many_pages(place):
    for i in range(120):  # of 50 each
        stores.put(place / f"{i}", b"")
        assert i % 40 or len(stores.listed(place)) == i + 1
    assert len(stores.listed(place)) == 120 and len(list(place.iterdir())) == 120


def test_what_is_there_is_copied_here_once_and_anew_when_it_changes(place):
    files.write_arrays(place / "data" / "train.npz", image=np.ones((2, 4, 4, 1), np.uint8))
    files.write_whole(place / "data" / "below" / "facts.json", "{}")
    folder = files.existing_path(str(place / "data"), "data.source.path")
    assert folder.name == "data" and (folder / "below" / "facts.json").read_text() == "{}"
    assert files.existing_path(str(place / "data"), "data.source.path") == folder
    assert files.arrays_of(place / "data" / "train.npz")["image"].shape == (2, 4, 4, 1)
    file = files.regular_file(str(place / "data" / "below" / "facts.json"), "--checkpoint")
    files.write_whole(place / "data" / "below" / "facts.json", '{"n": 1}')
    assert file.read_text() == "{}"
    assert files.regular_file(place / "data" / "below" / "facts.json", "--checkpoint").read_text() == '{"n": 1}'
    with pytest.raises(UserError, match="gs://bucket/.*/nothing cannot be read: No such file"):
        files.existing_path(str(place / "nothing"), "data.source.path")


@pytest.mark.parametrize("path", ["gs://", "gs:///run", "gs://b/r*", "gs://b/[x]"])
def test_what_is_no_place_on_a_store_is_refused(path):
    with pytest.raises(UserError, match="allowed: gs://bucket/folder"):
        path_of(path)


def test_a_store_whose_package_is_absent_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'^--workdir: s3://b/run needs the package s3fs: .*score-flow\[s3\]') as error:
        path_of("s3://b/run")
    assert "\n" not in str(error.value)


def test_a_bucket_that_is_not_there_is_said():
    with pytest.raises(UserError, match="cannot write gs://other/a: No such file"):
        files.write_whole(path_of("gs://other") / "a", "")


def test_metric_rows_are_there_after_a_flush_and_those_of_a_lost_segment_are_cut(place, monkeypatch):
    path = place / "metrics.jsonl"
    log = MetricLog(place, 0)
    log.write(1, {"loss": 0.1})
    assert [row["step"] for row in read_lines(path)] in ([], [1])
    log.write(2, {"loss": 0.2})
    log.flush()
    assert [row["step"] for row in read_lines(path)] == [1, 2]
    log.write(3, {"loss": 0.3})
    assert [row["step"] for row in read_lines(path)] == [1, 2]  # at most every 30 seconds
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + stores.EVERY + 1)
    log.write(4, {"loss": 0.4})
    assert [row["step"] for row in read_lines(path)] == [1, 2, 3, 4]
    monkeypatch.undo()
    log.close()
    files.write_whole(path, places.read(path) + b"no row\n")
    log = MetricLog(place, 3)
    log.write(4, {"loss": 1 / 3})
    log.close()
    assert read_lines(path) == [{"step": i, "loss": i / 10} for i in (1, 2)] + [
        {"step": 3, "loss": 0.3}, {"step": 4, "loss": 1 / 3}
    ]  # fmt: skip
    assert places.read(place / "metrics.bad.jsonl") == b"no row\n"
    boards = [path for path in (place / "tensorboard").iterdir() if stores.get(path)]
    assert boards and all("tfevents" in path.name for path in boards)


def test_rows_are_put_together_as_on_a_disk(place, tmp_path):
    rng, found = np.random.default_rng(0), []
    image = rng.integers(0, 255, (2, 10, 3, 3, 1), np.uint8)
    for directory in (place / "rows", tmp_path / "rows"):
        rows, begun = Rows(directory), False
        for numbers in (np.array([0, 1, 2]), np.array([5, 3, 4]), np.arange(3, 20)):  # some twice
            rows.write({"image": image.reshape(20, 3, 3, 1)[numbers]}, (2, 10), numbers, begun=begun)
            begun = True
        found.append(rows.read()["image"])
    np.testing.assert_array_equal(*found)
    np.testing.assert_array_equal(found[0], image)
    places.remove(place / "rows")
    rows = Rows(place / "rows")
    with pytest.raises(UserError, match="does not hold what this evaluation left there"):
        rows.read()
    with pytest.raises(UserError, match="rows is gone: remove"):
        rows.write({"image": image[0]}, (10,), np.arange(10), begun=True)


def test_data_on_a_store_are_those_of_a_disk(place, tmp_path):
    rng = np.random.default_rng(0)
    stacks = {split: rng.integers(0, 255, (n, 4, 4, 3), np.uint8) for split, n in (("train", 6), ("test", 2))}
    for root in (place, tmp_path):
        for split, stack in stacks.items():
            files.write_arrays(root / f"{split}.npz", image=stack, label=np.arange(len(stack)) % 2)
            for i, image in enumerate(stack):
                folder = root / "images" / split / f"class {i % 2}"
                places.make_folder(folder)
                files.write_whole(folder / f"{i}.png", lambda file, x=image: Image.fromarray(x).save(file, "PNG"))
    for split, stack in stacks.items():
        for build, path in ((arrays.build, "{split}.npz"), (folders.build, "images")):
            found, expected = (build(split, f"{root}/{path}", **sized(build)) for root in (place, tmp_path))
            assert found.name == expected.name and len(found) == len(expected) == len(stack)
            for name, values in expected.read(np.arange(len(stack))).items():
                np.testing.assert_array_equal(found.read(np.arange(len(stack)))[name], values)


def sized(build) -> dict:
    return {"image_size": 4} if build is folders.build else {}
