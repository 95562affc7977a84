"""What is kept of big folders: the second start reads no names and no headers, and sees what has changed."""

import os
import time

import numpy as np
import pytest
from PIL import Image

from score_flow.data import encoded, folder, walking
from score_flow.data.formats import index
from score_flow.data.images import ImageReader
from tests.data.test_regular_files import refusal


@pytest.fixture
def big(tmp_path, monkeypatch):
    """A folder that is big where three files are many, read long after it was written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "FEW", 2)
    for i in range(6):
        file = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (8, 8), (i, 0, 0, 255)).save(file)
    age(tmp_path / "images")
    return tmp_path / "images"


def age(root):
    past = time.time() - 100
    for path in (root, *root.rglob("*")):
        os.utime(path, (past, past))


def opened(root, **fields):
    return folder.build("train", str(root), **({"image_size": 8, "test_share": 0.0} | fields))


def forbid(monkeypatch, *what):
    for name in what:
        owner, attribute = {"scan": (walking, "_scan"), "check": (ImageReader, "check")}[name]
        monkeypatch.setattr(owner, attribute, lambda *args, what=attribute: pytest.fail(f"{what} again"))


def test_the_second_start_reads_neither_names_nor_headers(big, monkeypatch):
    first = opened(big)
    forbid(monkeypatch, "scan", "check")
    second = opened(big)
    assert list(second.whole.files) == list(first.whole.files) and len(second) == 6
    assert (second.classes, second.notes, second.decoding) == (first.classes, first.notes, {"background": "white"})
    np.testing.assert_array_equal(second.read(np.arange(6))["image"], first.read(np.arange(6))["image"])
    np.testing.assert_array_equal(second.label, first.label)


def test_changes_are_seen(big):
    assert len(opened(big)) == 6
    Image.new("RGB", (8, 8)).save(big / "b" / "9.png")
    assert len(opened(big)) == 7  # a folder has changed
    age(big)
    opened(big)
    (big / "b" / "9.png").write_text("no image, in a folder that looks the same")
    os.utime(big / "b", ns=(0, (big / "a").stat().st_mtime_ns))
    assert "9.png" in refusal(opened, big)


def test_other_limits_are_checked_again(big):
    opened(big)
    assert "8x8 pixels" in refusal(opened, big, image_size=4, max_pixels=20)
    assert opened(big, background="drop").decoding == {"background": "drop"}


def test_a_folder_that_has_just_changed_is_not_trusted(big, monkeypatch):
    os.utime(big / "a")
    opened(big)
    forbid(monkeypatch, "scan")
    with pytest.raises(pytest.fail.Exception, match="again"):
        opened(big)


def test_what_was_refused_stays_left_out_and_is_said_again(big, capsys):
    (big / "a" / "0.png").write_text("no image")
    age(big)
    for _ in range(2):
        assert opened(big, on_error="skip").whole.skipped == 1
        assert "skipped 1 of 6 files; the first: " in capsys.readouterr().err


def test_a_damaged_index_is_made_anew(big):
    opened(big)
    for file in index.folder().iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert len(opened(big)) == 6


def test_small_folders_leave_nothing(big, monkeypatch):
    monkeypatch.setattr(index, "FEW", 6)  # as many files as there are, whose names have more letters
    opened(big)
    assert not index.folder().exists() or not list(index.folder().iterdir())


def test_as_many_threads_as_cores():
    assert encoded._POOL._max_workers >= (os.cpu_count() or 1)


# ---- labels by choice


@pytest.mark.parametrize(
    ("labels", "classes"), [("auto", ("a", "b")), ("folder", ("a", "b")), ("none", ()), ("prefix", ("cat", "dog"))]
)
def test_labels_by_choice(labels, classes, tmp_path):
    for i, name in enumerate(("a/dog_1.png", "b/dog_2.png", "b/cat_1.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / name)
    source = opened(tmp_path, labels=labels)
    assert source.classes == classes and source.num_classes == len(classes)
    assert source.unlabelled == ""
    if labels == "prefix":
        assert source.label.tolist() == [1, 0, 1]  # a/dog_1, b/cat_1, b/dog_2


@pytest.mark.parametrize(
    ("labels", "said"),
    [("json", "no such file"), ("prefix", 'c has no "_" behind its class'), ("folder", "c.png beside the folders a")],
)
def test_labels_that_are_not_there_are_refused(labels, said, tmp_path):
    for name in ("a/dog_1.png", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    message = refusal(opened, tmp_path, labels=labels)
    assert message.startswith(f"config.data.source.labels is '{labels}'") and said in message
