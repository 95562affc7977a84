"""LSUN's environments, by the package lmdb: images in the order of their keys, categories as classes."""

import hashlib

import numpy as np
import pytest

from score_flow.data import lmdb
from tests.data.writers import IMAGES, PNGS, N, expect, refusal, write_lmdb

theirs = pytest.importorskip("lmdb")
KEYS = [hashlib.sha1(png).hexdigest().encode() for png in PNGS]
ORDER = sorted(range(N), key=lambda i: KEYS[i])


def open_all(path, split="train", **fields):
    return lmdb.build(split, str(path), **({"image_size": 8, "test_share": 0.0} | fields))


def write(folder, rows):
    return write_lmdb(folder, {KEYS[i]: PNGS[i] for i in rows})


def test_one_environment(tmp_path):
    folder = write(tmp_path / "church_train_lmdb", range(N))
    expect(open_all(folder), IMAGES[ORDER])
    train, test = (open_all(folder, split, test_share=0.25) for split in ("train", "test"))  # both open at once
    assert (len(train), len(test)) == (9, 3) and len(train.read(np.arange(9))["image"]) == 9


def test_categories_are_classes_and_val_is_the_test_split(tmp_path):
    write(tmp_path / "church_outdoor_train_lmdb", range(5))
    write(tmp_path / "bedroom_train_lmdb", range(5, 9))
    write(tmp_path / "bedroom_val_lmdb", range(9, N))
    order = [*(i for i in ORDER if 5 <= i < 9), *(i for i in ORDER if i < 5)]
    source = open_all(tmp_path)
    expect(source, IMAGES[order], [0] * 4 + [1] * 5)
    assert source.classes == ("bedroom", "church_outdoor")
    expect(open_all(tmp_path, "test"), IMAGES[[i for i in ORDER if i >= 9]], [0] * 3)


def test_damage_is_one_line(tmp_path):
    (tmp_path / "none").mkdir()
    assert "environments: none" in refusal(open_all, tmp_path / "none")
    for k, content in enumerate((b"", b"hello", bytes(8192))):
        folder = tmp_path / f"{k}_train_lmdb"
        folder.mkdir()
        (folder / "data.mdb").write_bytes(content)
        assert folder.name in refusal(open_all, folder)
    file = write(tmp_path / "cut_train_lmdb", range(N)) / "data.mdb"
    file.write_bytes(file.read_bytes()[:-4096])
    assert "cut off?" in refusal(open_all, file.parent)
    folder = write_lmdb(tmp_path / "text_train_lmdb", {b"key": b"hello"})
    assert "text_train_lmdb: key" in refusal(open_all, folder)
    assert "no images" in refusal(open_all, write_lmdb(tmp_path / "empty_train_lmdb", {}))
