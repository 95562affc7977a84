"""Latents of a data set: encoded once, drawn anew in each step; broken off and gone on; hostile files refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from main import EXIT_USER_ERROR, main
from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.data import latents
from score_flow.data.base import Source
from score_flow.errors import UserError
from score_flow.pretrained import autoencoder_kl
from tests.golden_data import golden_dir
from tests.launch import run

FOLDER = golden_dir() / "autoencoder_kl" / "kl_8_16_l1"
N = {"train": 20, "test": 6}
MOMENTS = (("after:latents (train).2:SIGKILL", -9), ("before:latents (train).3:SIGTERM", 75))
MOMENTS += (("before:latents (test).1:SIGKILL", -9), ("none", 0))
SIZE = 8
MODEL = ["network.name=mlp", "network.width=8", "network.depth=1", "training.batch_size=8", "training.n_iters=4"]
MODEL += ["training.snapshot_freq=4", "training.log_freq=1", "training.eval_freq=4", "sampling.name=heun"]
MODEL += ["sampling.n_steps=2", "eval.num_samples=8", "eval.batch_size=8", "eval.enable_bpd=False", "optim.warmup=0"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of train.npz and test.npz: small colour images of three classes."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, n in N.items():
        image = rng.integers(0, 256, (n, SIZE, SIZE, 3), np.uint8)
        np.savez(folder / f"{split}.npz", image=image, label=np.arange(n) % 3)
    return folder


def encode_flags(images, *more):
    flags = ["data.source.name=arrays", f"data.source.path={images}", "data.random_flip=True", "eval.batch_size=8"]
    return [f"--config.{flag}" for flag in (*flags, f"eval.autoencoder={FOLDER}", *more)]


@pytest.fixture(scope="module")
def encoded(images, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("encoded")
    assert main(["--config=configs/base.py", f"--workdir={workdir}", "--mode=encode", *encode_flags(images)]) == 0
    return workdir


def of_latents(encoded, *more):
    flags = ["data.source.name=latents", f"data.source.path={encoded}", *MODEL, *more]
    return [f"--config.{flag}" for flag in flags]


def test_moments_are_the_autoencoders(images, encoded):
    """mean and std of (latent - shift) scale, then those of the mirrored images; labels twice; facts complete."""
    network, params, scale, shift = autoencoder_kl.load(FOLDER)
    for split, n in N.items():
        with np.load(images / f"{split}.npz") as file:
            x, label = file["image"] / 127.5 - 1.0, file["label"]
        source = latents.build(split, str(encoded))
        assert isinstance(source, Source) and len(source) == 2 * n and source.image_shape == (SIZE // 2, SIZE // 2, 4)
        assert source.num_classes == 3 and source.levels == 256
        got = source.read(np.arange(2 * n))
        both = jnp.asarray(np.concatenate([x, x[:, :, ::-1]]), jnp.float32)
        law = network.apply({"params": params}, both, method="encode")
        wanted = np.concatenate([(law.mean - shift) * scale, law.std * scale], axis=-1)
        np.testing.assert_allclose(got["image"], wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(got["label"], np.concatenate([label, label]))
        facts = json.loads((encoded / split / latents.FACTS).read_text())
        assert facts["mirrored"] and facts["n"] == 2 * n and len(facts["autoencoder_sha256"]) == 64
        assert {path.name for path in (encoded / split).iterdir()} == {
            latents.FACTS,
            "mean.npy",
            "std.npy",
            "label.npy",
        }


def test_a_step_sees_fresh_draws(encoded):
    """x0 = mean + std noise: the mean and the variance of many draws are those of the file."""
    built = experiment(load("configs/base.py", of_latents(encoded)))
    batch = {name: jnp.asarray(array) for name, array in built.train_source.read(np.arange(4)).items()}
    x0 = lambda key: built.loss.noising.prepare(key, batch)[0]  # noqa: E731
    draws = jax.jit(jax.vmap(x0))(jax.random.split(jax.random.key(0), 4000))
    mean, std = np.split(np.asarray(batch["image"]), 2, axis=-1)
    assert draws.shape[1:] == mean.shape == (4, *built.image_shape)
    z = (np.asarray(draws) - mean) / std
    assert np.abs(z.mean(axis=0)).max() < 5 / 4000**0.5  # 256 means of 4 000 standard normal numbers
    assert np.abs(z.std(axis=0) - 1).max() < 5 / 8000**0.5


@pytest.mark.slow
def test_train_and_evaluate(encoded, tmp_path, capsys):
    """A model of latents trains, draws decoded sheets, and is evaluated; without the autoencoder it says what to do."""
    flags = ["--config=configs/base.py", f"--workdir={tmp_path}", *of_latents(encoded)]
    assert main([*flags, "--mode=train"]) == EXIT_USER_ERROR
    assert "give --config.eval.autoencoder=FOLDER" in capsys.readouterr().err
    flags += [f"--config.eval.autoencoder={FOLDER}"]
    assert main([*flags, "--mode=train"]) == 0
    assert main([*flags, "--mode=eval", "--config.eval.enable_sampling=False"]) == 0
    folder = tmp_path / "eval" / "4"
    loss = json.loads((folder / "loss" / "result.json").read_text())
    assert loss["n_images"] == 2 * N["test"] and np.isfinite(loss["loss"]) and "latents of" in loss["split"]
    assert "latents of" in json.loads((folder / "results.json").read_text())["data"]
    with Image.open(tmp_path / "samples" / "00000004.png") as sheet:
        assert sheet.mode == "RGB" and min(sheet.size) >= 6 * SIZE


@pytest.mark.slow
def test_broken_off_and_gone_on(images, encoded, tmp_path):
    """SIGKILL and SIGTERM between batches: the bits of a run without a break, and on 8 devices the same numbers."""
    flags = ["--config=configs/base.py", *encode_flags(images)]
    for moment, expected in MOMENTS:
        run(tmp_path / "broken", *flags, mode="encode", moment=moment, expected=expected)
    run(tmp_path / "whole", *flags, mode="encode")
    for split in N:
        for name in ("mean", "std", "label"):
            file = f"{split}/{name}.npy"
            ours, whole, other = (np.load(f / file) for f in (tmp_path / "broken", tmp_path / "whole", encoded))
            np.testing.assert_array_equal(ours, whole)
            np.testing.assert_allclose(ours, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.eval.autoencoder="], "needs an autoencoder"),
        (["--config.eval.autoencoder=/nowhere"], "/nowhere holds no config.json"),
        (
            ["--config.data.source.name=latents", "--config.data.random_flip=False", "--config.network.name=mlp"],
            "is latents; give their data set",
        ),
    ],
)
def test_what_cannot_be_encoded_is_refused(flags, message, images, encoded, tmp_path, capsys):
    source = encoded if "latents" in flags[0] else images
    flags = [*encode_flags(source), *flags]
    assert main(["--config=configs/base.py", f"--workdir={tmp_path}", "--mode=encode", *flags]) == EXIT_USER_ERROR
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["data.random_flip=True", "model.low_res=2", "training.objective=vlb"])
def test_what_latents_cannot_have_is_refused(flag, encoded):
    with pytest.raises(UserError, match=f"config.{flag.split('=')[0]} is .*latents allows"):
        experiment(load("configs/base.py", of_latents(encoded, flag)))


@pytest.mark.slow
def test_latents_may_have_a_loss_that_is_weighed_by_itself(encoded):
    run = experiment(load("configs/base.py", of_latents(encoded, "training.objective=uncertainty")))
    assert run.latent and set(run.loss.own(run.image_shape)) == {"heights"}


def test_unfinished_and_hostile_folders_are_refused(encoded, tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        latents.build("train", str(tmp_path / "none"))
    train = tmp_path / "train"
    train.mkdir()
    with pytest.raises(UserError, match="holds no latents.json"):
        latents.build("train", str(tmp_path))
    facts = json.loads((encoded / "train" / latents.FACTS).read_text())
    (train / latents.FACTS).write_text(json.dumps(facts))
    shape = (facts["n"], *facts["latent_shape"])
    good = {
        "mean": np.zeros(shape, np.float32),
        "std": np.ones(shape, np.float32),
        "label": np.zeros(shape[0], np.int32),
    }
    for name, array in (
        ("mean", np.zeros(shape, np.float64)),
        ("std", np.zeros(shape[1:], np.float32)),
        ("label", np.zeros(3, np.int32)),
        ("mean", np.array([{}], object)),
    ):
        for key, value in (good | {name: array}).items():
            np.save(train / f"{key}.npy", value, allow_pickle=True)
        with pytest.raises(UserError) as error:
            latents.build("train", str(tmp_path))
        assert str(train) in str(error.value) and "\n" not in str(error.value)
    (train / latents.FACTS).write_text('{"n": 3}')
    with pytest.raises(UserError, match="cannot be read as latents"):
        latents.build("train", str(tmp_path))
