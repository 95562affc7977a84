"""CIFAR-10 and CIFAR-100 in every form that their authors publish; what is damaged or hostile is one line."""

import gzip
import pickle

import numpy as np
import pytest

from score_flow.data import cifar10, cifar100
from score_flow.data.formats import cifar
from score_flow.errors import UserError
from tests.data import writers
from tests.data.test_arrays import Canary
from tests.data.writers import refusal

FORMS = ("folder", "parent", "archive", "parent of archive", "tar")


def place(form, tmp_path, folder, archive, files):
    """Write the files in a form, and return the path that a person gives."""
    inside = {f"{folder}/{name}": content for name, content in files.items()}
    if form in ("folder", "parent"):
        written = writers.save(tmp_path / folder, files)
        return written if form == "folder" else tmp_path
    (tmp_path / archive).write_bytes(writers.tar_of(inside, "w" if form == "tar" else "w:gz"))
    return tmp_path / archive if form != "parent of archive" else tmp_path


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_cifar10(form, binary, tmp_path):
    files, parts = writers.cifar10(binary=binary)
    layout = cifar.LAYOUTS["CIFAR-10"][binary]
    path = place(form, tmp_path, layout.folder, layout.archive, files)
    for split, (image, label) in parts.items():
        source = cifar10.build(split, str(path))
        np.testing.assert_array_equal(source.image, image)
        np.testing.assert_array_equal(source.label, label)
        assert (source.num_classes, source.classes) == (3, writers.CLASSES)
        assert source.name == f"CIFAR-10/{split}" and f"{len(image)} images, of" in source.notes[0]


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("form", ["folder", "archive"])
def test_cifar100(form, binary, tmp_path):
    files, parts = writers.cifar100(binary=binary)
    layout = cifar.LAYOUTS["CIFAR-100"][binary]
    path = str(place(form, tmp_path, layout.folder, layout.archive, files))
    for split, (image, fine, coarse) in parts.items():
        for source, label in ((cifar100.build(split, path), fine), (cifar100.build(split, path, "coarse"), coarse)):
            np.testing.assert_array_equal(source.image, image)
            np.testing.assert_array_equal(source.label, label)
    assert cifar100.build("test", path, "coarse").classes == ("fish", "fruit")
    assert "holds no CIFAR-10" in refusal(cifar10.build, "train", path)


def test_the_hand_written_pickle_is_one():
    """Python reads it as what the python version holds; the way that Python 3 writes one is read as well."""
    files, _ = writers.cifar10()
    batch = pickle.loads(files["data_batch_1"], encoding="latin1")
    assert batch["data"].shape == (2, 3072) and batch["labels"] == [0, 1] and batch["filenames"][1] == "000001.png"
    for protocol in range(2, 5):
        image, label = cifar._of_pickle(pickle.dumps(batch, protocol), cifar.LAYOUTS["CIFAR-10"][0], "")
        np.testing.assert_array_equal(image, batch["data"])
        assert label.tolist() == [0, 1]


def hostile(files, canary):
    """case -> (what to write over a file, words of the refusal)."""
    whole = files["data_batch_2"]
    batch = pickle.loads(whole, encoding="latin1")
    return {
        "cut": (whole[:-500], "data_batch_2"),
        "code": (pickle.dumps(Canary(canary), 2), "which is code, not images"),
        "float": (pickle.dumps(batch | {"data": batch["data"] / 255}, 2), "allowed: u1"),
        "flat": (pickle.dumps(batch | {"data": batch["data"][:, :-1].copy()}, 2), "no images"),
        "labels": (pickle.dumps(batch | {"labels": [0]}, 2), "holds 1 labels of 2 images"),
        "a label": (pickle.dumps(batch | {"labels": [0, 3]}, 2), "holds the label 3; allowed: 0 to 2"),
        "text": (b"hello", "cut off or damaged"),
        "empty": (b"", "cut off or damaged"),
    }


@pytest.mark.parametrize("case", hostile(writers.cifar10()[0], ""))
def test_a_damaged_batch_is_one_line(case, tmp_path):
    files, _ = writers.cifar10()
    content, words = hostile(files, tmp_path / "canary")[case]
    path = writers.save(tmp_path / "cifar-10-batches-py", files | {"data_batch_2": content})
    message = refusal(cifar10.build, "train", str(path))
    assert words in message and "data_batch_2" in message
    assert not (tmp_path / "canary").exists()


def test_a_damaged_archive_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "LARGEST", 1 << 16)
    monkeypatch.setattr(cifar, "REST", 1 << 20)
    files, _ = writers.cifar10(binary=True)
    whole = writers.tar_of(files)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    bomb = writers.tar_of({"zeros": bytes(cifar.LARGEST + 1)})
    endless = gzip.compress(gzip.decompress(whole) + bytes(cifar.REST))
    file = tmp_path / "cifar-10-binary.tar.gz"
    for content in (whole[:-100], bytes(flipped), bomb, endless, b"hello", b"", gzip.compress(b"hello")):
        file.write_bytes(content)
        assert "cifar-10-binary.tar.gz" in refusal(cifar10.build, "train", str(file))


def test_what_is_missing_is_named(tmp_path):
    files, _ = writers.cifar10()
    del files["data_batch_3"]
    path = writers.save(tmp_path / "cifar-10-batches-py", files)
    assert "lacks data_batch_3" in refusal(cifar10.build, "train", str(path))
    assert len(cifar10.build("test", str(path))) == 2
    message = refusal(cifar10.build, "train", str(tmp_path / "cifar-10-batches-py/test_batch"))
    assert "test_batch" in message
    assert "cifar-10-python.tar.gz" in refusal(cifar100.build, "train", str(path)).replace("100", "10")
    with pytest.raises(UserError, match="allowed: test, train"):
        cifar10.build("validation", str(path))
