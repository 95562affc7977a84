"""idx files of MNIST and its like: both splits, gzipped or not; what is cut off is one line."""

import gzip

import numpy as np
import pytest

from score_flow.data import mnist
from tests.data.writers import expect, idx, noise, refusal

IMAGE, LABEL = noise(9, 7, 5), np.arange(9) % 4


def save(folder, split, rows, packed=False, dot="-", labels=True):
    folder.mkdir(exist_ok=True)
    kinds = {"images": (IMAGE[rows], 3)} | ({"labels": (LABEL[rows], 1)} if labels else {})
    for kind, (values, axes) in kinds.items():
        content = idx(values)
        name = f"{split}-{kind}{dot}idx{axes}-ubyte{'.gz' if packed else ''}"
        (folder / name).write_bytes(gzip.compress(content) if packed else content)
    return folder


@pytest.mark.parametrize(
    ("packed", "dot", "stem"), [(True, "-", ""), (False, "-", ""), (False, ".", "emnist-letters-")]
)
def test_both_splits(packed, dot, stem, tmp_path):
    tmp_path = tmp_path / "MNIST"
    save(tmp_path, f"{stem}train", slice(0, 6), packed, dot)
    save(tmp_path, f"{stem}t10k" if not stem else f"{stem}test", slice(6, 9), packed, dot)
    for split, rows in (("train", slice(0, 6)), ("test", slice(6, 9))):
        source = mnist.build(split, str(tmp_path))
        expect(source, IMAGE[rows][..., None], LABEL[rows])
        assert source.num_classes == 4
    tmp_path.rename(tmp_path.with_name("raw"))  # as torchvision keeps them
    assert len(mnist.build("train", str(tmp_path.parent))) == 6


def test_one_split_or_one_file_has_a_share_held_out(tmp_path):
    folder = save(tmp_path / "d", "train", slice(0, 9), labels=False)
    source = mnist.build("train", str(folder), test_share=0.0)
    expect(source, IMAGE[..., None])
    assert "no labels-idx1-ubyte beside" in source.unlabelled
    padded = mnist.build("train", str(folder), 8, 0.0).read(np.arange(9))["image"][..., 0]
    np.testing.assert_array_equal(padded, np.pad(IMAGE, ((0, 0), (1, 0), (2, 1))))
    assert "pad_to: got 6; allowed: from 7 x 5 on" in refusal(mnist.build, "train", str(folder), 6)
    assert len(mnist.build("test", str(folder / "train-images-idx3-ubyte"), test_share=0.3)) == 3


def test_what_is_odd_is_one_line(tmp_path):
    file = save(tmp_path, "train", slice(0, 9)) / "train-images-idx3-ubyte"
    whole = file.read_bytes()
    labels = tmp_path / "train-labels-idx1-ubyte"
    for content, words in (
        (whole[:-1], "Cut off?"),
        (whole + b"1", "316 bytes behind its header; allowed: 315"),
        (b"hello", "no idx file"),
        (labels.read_bytes(), "no idx file of uint8 with 3 axes"),
        (b"\0\0\x0d\3" + whole[4:], "begins with 00000d03"),
        (b"\0\0\x08\3" + b"\xff" * 12, "allowed: 4294967296"),
        (gzip.compress(whole)[:-9], "cut off or damaged"),
        (gzip.compress(whole)[:-8] + bytes(8), "cut off or damaged"),
    ):
        file.write_bytes(content)
        message = refusal(mnist.build, "train", str(tmp_path))
        assert words in message and file.name in message
    file.write_bytes(whole)
    labels.write_bytes(idx(LABEL[:5]))
    assert "9 images for 5 labels" in refusal(mnist.build, "train", str(tmp_path))
    save(tmp_path, "kmnist-train", slice(0, 9))
    assert "allowed: one, give its file" in refusal(mnist.build, "train", str(tmp_path))
    (tmp_path / "none").mkdir()
    assert "has no train-images-idx3-ubyte" in refusal(mnist.build, "train", str(tmp_path / "none"))
