"""The table of docs/guide/data.md: every line trains, samples and evaluates what lies at its PATH."""

import json
import re
import shlex

import numpy as np
import pytest

from main import main
from tests.data import writers
from tests.data.writers import noise, png, tar_of, zip_of
from tests.launch import ROOT

TEXT = (ROOT / "docs/guide/data.md").read_text()
ROWS = dict(re.findall(r"^\| (.+?) \| `(--config\.data\.source\.name=.*?)`", TEXT, re.MULTILINE))
N = 20
PNGS = [png(image) for image in noise(N, 32, 32, 3)]
CLASSES = [("cat", "dog")[i % 2] for i in range(N)]
LABELLED = {f"{i:05d}.png": PNGS[i] for i in range(N)}
QUICK = [
    *("--config.network.name=mlp", "--config.network.width=8", "--config.network.depth=1"),
    *("--config.training.batch_size=8", "--config.training.n_iters=2", "--config.training.n_jitted_steps=1"),
    *("--config.training.eval_freq=0", "--config.training.snapshot_sampling=False", "--config.eval.num_samples=8"),
    *("--config.eval.solver.rtol=1e-1", "--config.eval.solver.atol=1e-1", "--config.eval.batch_size=8"),
    "--config.sampling.n_steps=2",
]


def stand_ins(path):
    """Write a small file of the real layout for every PATH of the table."""
    files = {f"{name}/{i}.png": PNGS[i] for i, name in enumerate(CLASSES)}
    writers.save_all(path / "images", files)
    table = {"labels": [[name, i % 3] for i, name in enumerate(LABELLED)]}
    shard = {**LABELLED, **{f"{i:05d}.cls": b"1" for i in range(N)}}
    partition = {"list_eval_partition.csv": "\n".join(f"{i:05d}.png,{i % 3}" for i in range(N)).encode()}
    cifar10, cifar100 = (
        {f"{stem}/{name}": content for name, content in made[0].items()}
        for stem, made in (("cifar-10-batches-py", writers.cifar10(4)), ("cifar-100-python", writers.cifar100(N)))
    )
    batch = {"data": writers.planes(noise(N, 32, 32, 3)), "labels": np.arange(N) % 3 + 1}
    npz = {"image": noise(N, 8, 8), "label": np.arange(N) % 3}
    keras = {
        f"{kind}_{split}": npz[name] for split in ("train", "test") for kind, name in (("x", "image"), ("y", "label"))
    }
    rows = [writers.example(image=image, label=i % 3) for i, image in enumerate(PNGS)]
    writers.save_all(path, {
        "images.zip": zip_of(files), "edm.zip": zip_of(LABELLED | {"dataset.json": json.dumps(table).encode()}),
        "shards/train-0000.tar": tar_of(shard, "w"), "shards/train-0001.tar": tar_of(shard, "w"),
        "celeba/img_align_celeba.zip": zip_of(LABELLED | partition),
        "cifar-10-python.tar.gz": tar_of(cifar10), "cifar-100-python.tar.gz": tar_of(cifar100),
        "mnist/train-images-idx3-ubyte": writers.idx(noise(N, 28, 28)),
        "mnist/train-labels-idx1-ubyte": writers.idx(np.arange(N) % 3),
        "Imagenet32_npz/train_data_batch_1.npz": writers.npz(**batch),
        "Imagenet32_npz/val_data.npz": writers.npz(**batch),
        "keras.npz": writers.npz(**keras), "images.npz": writers.npz(**npz),
    })  # fmt: skip
    splits = [{"name": split, "shardLengths": [str(N)]} for split in ("train", "test")]
    shape, classes = {"shape": {"dimensions": ["32", "32", "3"]}}, {"numClasses": "3"}
    features = {"features": {"image": {"image": shape}, "label": {"classLabel": classes}}}
    prepared = path / "tensorflow_datasets/cifar10/3.0.2"
    writers.save_all(prepared, {
        "dataset_info.json": json.dumps({"name": "cifar10", "version": "3.0.2", "splits": splits}).encode(),
        "features.json": json.dumps({"featuresDict": features}).encode(),
    })  # fmt: skip
    for split in ("train", "test"):
        writers.write_tfrecord(prepared / f"cifar10-{split}.tfrecord-00000-of-00001", rows)
    writers.stylegan(path / "ffhq", noise(N, 32, 32, 3))
    writers.write_tfrecord(path / "tfrecords/train-00000-of-00001", rows)
    signs = [(f"1F{i}", "Symbols", (), True) for i in range(600, 640)]
    writers.emoji_package(path / "node_modules/emoji-datasource-twitter", signs)
    writers.write_parquet(path / "parquet/train-00000-of-00001.parquet", PNGS, np.arange(N) % 3, ("a", "b", "c"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guide")
    stand_ins(folder / "PATH")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def test_the_table_has_every_data_set():
    named = {re.search(r"source\.name=(\w+)", line)[1] for line in ROWS.values()}
    assert len(ROWS) >= 17 and {"folder", "archive", "cifar10", "parquet", "tfds", "tfrecord", "lmdb", "mnist"} <= named


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_a_row_trains_samples_and_evaluates(row, place, capsys):
    given = shlex.split(ROWS[row])
    if "--config.data.source.name=lmdb" in given:
        pytest.importorskip("lmdb")
        values = {f"{i}".encode(): PNGS[i] for i in range(N)}
        writers.write_lmdb(place / "PATH/lsun/tower_train_lmdb", values)
    workdir = f"runs/{list(ROWS).index(row)}"
    flags = [f"--workdir={workdir}", *given, *QUICK]
    assert main(["--config=configs/digits.py", "--mode=train", *flags]) == 0, capsys.readouterr().err
    assert main([f"--workdir={workdir}", "--mode=sample", "--config.sampling.n_steps=2"]) == 0, capsys.readouterr().err
    few = ["--config.eval.enable_sampling=False", "--config.eval.jobs=()"]
    assert main([f"--workdir={workdir}", "--mode=eval", *few]) == 0, capsys.readouterr().err
    (results,) = (place / workdir / "eval").rglob("results.json")
    assert np.isfinite(json.loads(results.read_text())["likelihood"]["bits_per_dim"])
