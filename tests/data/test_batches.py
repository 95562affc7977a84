"""ImageNet's batches at 32 and 64 pixels, and files of keras: both splits, labels from 0, one line for what is odd."""

import os
import pickle

import numpy as np
import pytest

from score_flow.data import arrays
from tests.data.writers import noise, planes, refusal

LABELS = np.array([1, 3, 2, 1, 5, 4, 3])


def save_batch(file, image, labels):
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, data=planes(image), labels=labels, mean=np.zeros(image[0].size))
    return file


def expect(source, image, label):
    examples = source.read(np.arange(len(source))[::-1])
    np.testing.assert_array_equal(examples["image"], image[::-1])
    assert examples["label"].tolist() == list(label)[::-1]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("first", [0, 1])
def test_imagenet_batches(nested, first, tmp_path):
    image, labels = noise(7, 4, 4, 3), LABELS - 1 + first
    train = tmp_path / "Imagenet32_train_npz" if nested else tmp_path
    for k, rows in ((1, slice(0, 3)), (2, slice(3, 5))):
        save_batch(train / f"train_data_batch_{k}.npz", image[rows], labels[rows])
    save_batch((tmp_path / "val" if nested else tmp_path) / "val_data.npz", image[5:], labels[5:])
    source, test = (arrays.build(split, str(tmp_path)) for split in ("train", "test"))
    expect(source, image[:5], LABELS[:5] - 1)
    expect(test, image[5:], LABELS[5:] - 1)
    assert source.num_classes == test.num_classes == 5 and "Chrabaszcz et al. 2017" in source.name
    assert "/test (ImageNet-4" in test.name
    (train / "train_data_batch_1.npz").unlink()
    assert "lacks train_data_batch_1.npz" in refusal(arrays.build, "train", str(tmp_path))


def pickled(file, image, given, protocol=4, **other):
    """A batch as the authors pickle it, or with other contents."""
    batch = {"data": planes(image), "labels": [int(label) for label in given], "mean": planes(image).mean(axis=0)}
    file.write_bytes(pickle.dumps(batch | other, protocol=protocol))
    return file


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_pickled_batches(protocol, tmp_path):
    image = noise(7, 4, 4, 3)
    pickled(tmp_path / "train_data_batch_1", image[:3], LABELS[:3], protocol)
    save_batch(tmp_path / "train_data_batch_2.npz", image[3:5], LABELS[3:5])
    (tmp_path / "train_data_batch_2").write_bytes(b"\x80 of both, the npz")
    pickled(tmp_path / "val_data", image[5:], LABELS[5:], protocol)
    source, test = (arrays.build(split, str(tmp_path)) for split in ("train", "test"))
    expect(source, image[:5], LABELS[:5] - 1)
    expect(test, image[5:], LABELS[5:] - 1)
    alone = arrays.build("train", str(tmp_path / "train_data_batch_1"), test_share=0.0)
    expect(alone, image[:3], LABELS[:3] - 1)


class Hostile:
    """What runs a command where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_odd_pickles_are_one_line_and_none_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image, file = noise(2, 4, 4, 3), tmp_path / "train_data_batch_1"
    for fields, words in (
        (dict(more=Hostile()), "which is code"),
        (dict(labels=["a", "b"]), "no labels"),
        (dict(data=np.zeros((2, 48))), "no images"),
        (dict(labels=[1, 2, 3]), "3 labels"),
    ):
        pickled(file, image, [1, 2], **fields)
        message = refusal(arrays.build, "train", str(tmp_path))
        assert words in message and str(file) in message and not (tmp_path / "ran").exists()
    file.write_bytes(pickled(file, image, [1, 2]).read_bytes()[:-40])
    assert "cut off or damaged" in refusal(arrays.build, "train", str(tmp_path))
    pickled(file, image, [1, 2])
    assert "max_bytes = 90" in refusal(arrays.build, "train", str(tmp_path), max_bytes=90)


def test_a_batch_alone_has_a_share_held_out(tmp_path):
    image = noise(7, 4, 4, 3)
    file = save_batch(tmp_path / "train_data_batch_1.npz", image, LABELS)
    expect(arrays.build("train", str(file), test_share=0.0), image, LABELS - 1)
    assert len(arrays.build("test", str(file), test_share=0.3)) == 2
    assert arrays.build("train", str(file), pad_to=6).image_shape == (6, 6, 3)
    assert "batches have 256 levels; got levels = 17" in refusal(arrays.build, "train", str(file), levels=17)
    assert "range = (0.0, 255.0)" in refusal(arrays.build, "train", str(file), range=(0.0, 255.0))


def test_odd_batches_are_one_line(tmp_path):
    file = tmp_path / "train_data_batch_1.npz"
    for fields, words in (
        (dict(data=np.zeros((2, 12)), labels=np.ones(2, int)), "float64 of shape (2, 12)"),
        (dict(data=np.zeros((2, 13), np.uint8), labels=np.ones(2, int)), "shape (2, 13)"),
        (dict(data=np.zeros((2, 12), np.uint8), labels=np.ones(3, int)), "3 labels"),
        (dict(data=np.zeros((2, 12), np.uint8), labels=np.ones(2)), "labels are float64"),
        (dict(data=np.array([{}, {}]), labels=np.ones(2, int)), "object"),
    ):
        np.savez(file, **fields)
        message = refusal(arrays.build, "train", str(tmp_path))
        assert words in message and "train_data_batch_1.npz" in message
    save_batch(file, noise(2, 4, 4, 3), [1, 2])
    save_batch(tmp_path / "train_data_batch_2.npz", noise(2, 8, 8, 3), [1, 2])
    assert "allowed: one size" in refusal(arrays.build, "train", str(tmp_path))
    for k in (1, 2):
        save_batch(tmp_path / f"train_data_batch_{k}.npz", noise(6, 8, 8, 3), np.arange(1, 7))
    assert "2304 bytes; allowed: config.data.source.max_bytes = 2000" in refusal(
        arrays.build, "train", str(tmp_path), max_bytes=2000
    )


@pytest.mark.parametrize("column", [False, True])
def test_keras_has_both_splits_in_one_file(column, tmp_path):
    image, label = noise(9, 4, 4), np.arange(9) % 4
    y = label[:, None] if column else label
    np.savez(tmp_path / "mnist.npz", x_train=image[:6], y_train=y[:6], x_test=image[6:], y_test=y[6:])
    for split, rows in (("train", slice(0, 6)), ("test", slice(6, 9))):
        source = arrays.build(split, str(tmp_path / "mnist.npz"))
        expect(source, image[rows][..., None], label[rows])
        assert source.num_classes == 4 and source.name == f"mnist.npz/{split}"
    np.savez(tmp_path / "half.npz", x_train=image, y_train=label)
    assert "no x_test, y_test in it" in refusal(arrays.build, "train", str(tmp_path / "half.npz"))
