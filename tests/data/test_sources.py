"""Every data source keeps the promises of `Source`."""

import importlib
import json
import pkgutil

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import score_flow.data
from score_flow.config import registries
from score_flow.config.components import Component, resolve
from score_flow.data import digits, latents, packed
from score_flow.data.base import ArraySource, Source, checksum
from score_flow.errors import UserError
from tests.data import writers
from tests.data.writers import noise

# ---- every source in the directory


def digits_sample(path):
    return {}


def arrays_sample(path):
    for split, n in (("train", 11), ("test", 5)):
        np.savez(path / f"{split}.npz", image=noise(n, 4, 6, 3), label=np.arange(n) % 4)
    return {"path": str(path)}


def folder_sample(path):
    for split in ("train", "test"):
        for i, image in enumerate(noise(7, 9, 12, 3)):
            (path / split / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path / split / f"class{i % 2}" / f"{i}.png")
    return {"path": str(path), "image_size": 8}


def latents_sample(path):
    for split, n in (("train", 11), ("test", 5)):
        (path / split).mkdir()
        facts = {"name": split, "n": n, "latent_shape": (4, 6, 2), "num_classes": 3}
        (path / split / latents.FACTS).write_text(json.dumps(facts))
        rng = np.random.default_rng(0)
        arrays = {"mean": rng.normal(size=(n, 4, 6, 2)), "std": rng.random((n, 4, 6, 2))}
        for name, array in arrays.items():
            np.save(path / split / f"{name}.npy", array.astype(np.float32))
        np.save(path / split / "label.npy", np.arange(n, dtype=np.int32) % 3)
    return {"path": str(path)}


def archive_sample(path):
    for split, pack in (("train", writers.zip_of), ("test", lambda files: writers.zip_of(files, True))):
        files = {
            f"{'cat' if i % 2 else 'dog'}/{i}.png": writers.png(image) for i, image in enumerate(noise(7, 9, 12, 3))
        }
        (path / f"{split}.zip").write_bytes(pack(files))
    return {"path": str(path), "image_size": 8}


def cifar10_sample(path):
    return {"path": str(writers.save(path / "cifar-10-batches-py", writers.cifar10()[0]))}


def cifar100_sample(path):
    return {"path": str(writers.save(path / "cifar-100-binary", writers.cifar100(binary=True)[0])), "labels": "coarse"}


def mnist_sample(path):
    for split, n in (("train", 9), ("t10k", 4)):
        (path / f"{split}-images-idx3-ubyte").write_bytes(writers.idx(noise(n, 7, 5)))
        (path / f"{split}-labels-idx1-ubyte").write_bytes(writers.idx(np.arange(n) % 3))
    return {"path": str(path)}


def lmdb_sample(path):
    pytest.importorskip("lmdb")
    for split in ("train", "val"):
        values = {f"{i}".encode(): writers.png(image) for i, image in enumerate(noise(7, 9, 12, 3))}
        for category in ("bridge", "tower"):
            writers.write_lmdb(path / f"{category}_{split}_lmdb", values)
    return {"path": str(path), "image_size": 8}


def packed_sample(path):
    for split, n in (("train", 11), ("test", 5)):
        source = ArraySource(split, noise(n, 4, 6, 3), np.arange(n, dtype=np.int32) % 3, num_classes=3)
        (path / split).mkdir()
        np.save(path / split / "image.npy", source.image)
        np.save(path / split / "label.npy", source.label)
        (path / split / packed.FACTS).write_text(json.dumps(packed.described(source)))
    return {"path": str(path)}


def parquet_sample(path):
    pytest.importorskip("pyarrow")
    for split in ("train", "test"):
        images = [writers.png(image) for image in noise(7, 9, 12, 3)]
        writers.write_parquet(path / f"{split}.parquet", images, np.arange(7) % 3, ("a", "b", "c"))
    return {"path": str(path), "image_size": 8}


def tfrecord_sample(path):
    writers.stylegan(path, noise(30, 8, 8, 3), np.eye(3)[np.arange(30) % 3])
    return {"path": str(path), "image_size": 8}


def tfds_sample(path):
    writers.tfds_builder()(data_dir=str(path), file_format="array_record").download_and_prepare()
    return {"dataset": "tiny", "data_dir": str(path)}


def emoji_sample(path):
    signs = [(f"1F{i}", ("Flags", "Objects")[i % 2], (), True) for i in range(600, 640)]
    return {"path": str(writers.emoji_package(path, signs)), "image_size": 8}


def sample_of(name):
    """What writes a small data set for a source to read, and returns its fields; one more may need nothing."""
    return globals().get(f"{name}_sample", lambda path: {})


SOURCES = [
    name
    for _, name, _ in pkgutil.iter_modules(score_flow.data.__path__)
    if hasattr(importlib.import_module(f"score_flow.data.{name}"), "build")
]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", SOURCES)
def test_source_reads_what_it_declares(name, split, tmp_path):
    fields = sample_of(name)(tmp_path)
    source = importlib.import_module(f"score_flow.data.{name}").build(split=split, **fields)
    assert isinstance(source, Source)
    indices = np.array([len(source) - 1, 0, 1, 1])
    examples = source.read(indices)
    if name == "latents":  # moments: means, then standard deviations
        h, w, c = source.image_shape
        assert examples["image"].dtype == np.float32 and examples["image"].shape == (4, h, w, 2 * c)
        assert examples["image"][..., c:].min() >= 0
    else:
        assert examples["image"].dtype == np.uint8 and examples["image"].shape == (4, *source.image_shape)
        assert examples["image"].max() < source.levels
    assert ("label" in examples) == (source.num_classes > 0)
    if source.num_classes:
        assert examples["label"].dtype == np.int32
        assert examples["label"].shape == (4,)
        assert 0 <= examples["label"].min() <= examples["label"].max() < source.num_classes
    for key, rows in source.read(indices[::-1].copy()).items():  # any order, any number of times
        np.testing.assert_array_equal(rows[::-1], examples[key])


def test_checksum_names_the_content_and_not_the_chunks():
    image, label = noise(10, 2, 2, 1), np.arange(10, dtype=np.int32)
    source = ArraySource("a", image, label, 256, 10)
    sums = {checksum(source, chunk=chunk) for chunk in (1, 3, 10, 64)}
    assert len(sums) == 1
    pixel, other_label = image.copy(), label.copy()
    pixel[9, 1, 1, 0] ^= 1
    other_label[3] = 0
    changed = [ArraySource("a", pixel, label, 256, 10), ArraySource("a", image, other_label, 256, 10)]
    changed += [ArraySource("a", image, None), ArraySource("a", image.reshape(10, 4, 1, 1), label, 256, 10)]
    assert len(sums | {checksum(other) for other in changed}) == 5
    assert checksum(source, limit=9) == checksum(ArraySource("b", pixel, label, 256, 10), limit=9)


# ---- arguments

OUTSIDE = [
    ("arrays", "levels", (1, 257)),
    ("arrays", "max_bytes", (0, -5)),
    ("arrays", "test_share", (-0.1, 1.0, float("nan"))),
    ("folder", "test_share", (-0.1, 1.0, float("nan"))),
    ("folder", "image_size", (0, -1, 2.5)),
    ("folder", "channels", (2, 4, 0)),
    ("folder", "max_pixels", (0, 10**10)),
    ("folder", "on_error", ("ignore", "", 1)),
    ("folder", "path", (None,)),
    ("cifar100", "labels", ("all", 1)),
    *((name, "split", ("train",)) for name in SOURCES),
    *((name, "no_such_argument", (1,)) for name in SOURCES),
]


@pytest.mark.parametrize(("name", "argument", "values"), OUTSIDE, ids=lambda value: str(value)[:20])
def test_arguments_are_checked_before_anything_is_opened(name, argument, values, tmp_path):
    fields = sample_of(name)(tmp_path) if name != "tfds" else {}
    for value in values:
        section = Component(name, fields | {argument: value})
        with pytest.raises(UserError, match=f"^[^\n]*{argument}[^\n]*$") as error:
            resolve(registries.SOURCES, section, "config.data.source", split="train")
        assert "config.data.source" in str(error.value)


# ---- digits


def test_digits_splits_share_out_the_whole_set():
    train, test = digits.build("train"), digits.build("test")
    assert (len(train), len(test)) == (1500, 297)
    rows = np.concatenate([train.image, test.image]).reshape(1797, 64)
    whole = load_digits().data.astype(np.uint8)
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], whole[np.lexsort(whole.T)])
    assert rows.max() == train.levels - 1
    # reported numbers rest on this split: it must never move
    assert (checksum(train), checksum(test)) == ("a22749978074494a", "81b2580730a2728b")


def test_digits_has_two_splits():
    with pytest.raises(UserError, match="'validation'; allowed: test, train"):
        digits.build("validation")


# ---- tfds


def test_tfds_tells_how_to_prepare_what_is_missing(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    from score_flow.data import tfds

    with pytest.raises(UserError, match="^.*TensorFlow is: tfds build cifar10 .*source.name=cifar10 and .path$"):
        tfds.build(data_dir=str(tmp_path))
