"""Features of patches: what DINOv2 makes of each image, stored by --mode=encode, read in training, never exchanged."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from main import EXIT_USER_ERROR, main
from score_flow.data import latents, packed
from score_flow.data.base import Source
from score_flow.data.features import FEATURES, WithFeatures, digest
from score_flow.networks.dinov2 import MEAN, STD, cubic, resized
from score_flow.pretrained import dinov2
from tests.data.test_latent_source import FOLDER, images  # noqa: F401 - a fixture
from tests.launch import losses, run, run_together
from tests.pretrained.drawn_weights import drawn
from tests.training.test_resume import assert_same, largest_difference

WIDTH, STRIDE = 4, 4  # of the encoder; pixels of a patch: 2 x 2 patches of images of 8 x 8
N = {"train": 20, "test": 6}
MODEL = ["network.name=sit", "network.patch_size=4", "network.width=16", "network.depth=2", "network.num_heads=2"]
ALIGNED = ["training.alignment=0.5", "training.alignment_block=1", "training.alignment_width=6"]


def dino(file, bias=0.0):
    """A file of the authors' names with one block of width 4."""
    w = WIDTH
    shapes = {
        "cls_token": (1, 1, w), "pos_embed": (1, 1370, w), "patch_embed.proj.weight": (w, 3, 14, 14),
        "patch_embed.proj.bias": (w,), "norm.weight": (w,), "norm.bias": (w,),
    }  # fmt: skip
    layers = {"attn.qkv": (3 * w, w), "attn.proj": (w, w), "mlp.fc1": (4 * w, w), "mlp.fc2": (w, 4 * w)}
    for name, shape in layers.items():
        shapes |= {f"blocks.0.{name}.weight": shape, f"blocks.0.{name}.bias": shape[:1]}
    for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
        shapes[f"blocks.0.{name}"] = (w,)
    tensors = drawn(shapes)
    tensors["norm.bias"] += np.float32(bias)
    np.savez(file, **tensors)
    return file


def flags_of(images, encoder, *more):  # noqa: F811
    flags = ["data.source.name=arrays", f"data.source.path={images}", "data.random_flip=True", "eval.batch_size=8"]
    flags += [f"eval.encoder={encoder}", f"eval.encoder_stride={STRIDE}", *more]
    return ["--config=configs/base.py", *(f"--config.{flag}" for flag in flags)]


def encode(images, encoder, workdir, *more):  # noqa: F811
    return main([*flags_of(images, encoder, *more), f"--workdir={workdir}", "--mode=encode"])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return dino(tmp_path_factory.mktemp("encoder") / "weights.npz")


@pytest.fixture(scope="module")
def encoded(images, encoder, tmp_path_factory):  # noqa: F811
    workdir = tmp_path_factory.mktemp("features")
    assert encode(images, encoder, workdir) == 0
    return workdir


def made(image, encoder):
    """Tokens of the patches of images that the encoder sees at 28 x 28, by the bicubic kernel of no antialiasing."""
    network, params, _ = dinov2.load(encoder)
    x = resized(jnp.asarray(image, jnp.float32) / 255, *[cubic(8, 28)] * 2)
    x = (x - jnp.asarray(MEAN)) / jnp.asarray(STD)
    return jax.jit(lambda p, x: network.apply({"params": p}, x, method="tokens"))(params, x).patches


def test_features_are_the_encoders_of_each_image_and_of_its_mirror_image(images, encoder, encoded):  # noqa: F811
    for split, n in N.items():
        with np.load(images / f"{split}.npz") as file:
            image, label = file["image"], file["label"]
        source = packed.build(split, str(encoded))
        assert isinstance(source, Source) and len(source) == 2 * n and source.num_classes == 3
        both = np.concatenate([image, image[:, :, ::-1]])
        plain, more = (each.read(np.arange(2 * n)) for each in (source, WithFeatures(source)))
        assert plain.keys() == {"image", "label"} and more.keys() == {*plain, FEATURES}
        np.testing.assert_array_equal(plain["image"], both)
        np.testing.assert_array_equal(plain["label"], np.concatenate([label, label]))
        assert more[FEATURES].dtype == np.float16 and more[FEATURES].shape == (2 * n, 4, WIDTH)
        np.testing.assert_allclose(more[FEATURES], made(both, encoder), rtol=2e-3, atol=2e-3)
        assert np.abs(np.diff(more[FEATURES], axis=1)).max() > 0.1
        facts = json.loads((encoded / split / packed.FACTS).read_text())[FEATURES]
        assert facts | {"patches": 4, "channels": WIDTH, "stride": STRIDE} == facts and len(facts["sha256"]) == 64


def test_other_features_have_another_digest(encoded):
    source = packed.build("train", str(encoded))
    other = source.__class__(**{**vars(source), FEATURES: np.array(source.features) + np.float16(1)})
    assert digest(source) == digest(packed.build("train", str(encoded))) != digest(other)


def refused(capsys, *flags):
    assert main(list(flags)) == EXIT_USER_ERROR
    return capsys.readouterr().err


def test_what_cannot_be_stored_is_refused(images, encoder, encoded, tmp_path, capsys):  # noqa: F811
    here = (*flags_of(images, encoder), "--mode=encode")
    said = refused(capsys, *here, f"--workdir={tmp_path}", "--config.eval.encoder_stride=3")
    assert "encoder_stride is 3; it must divide the images' sides, 8 x 8" in said
    said = refused(capsys, *here, f"--workdir={tmp_path}", "--config.eval.encoder=/nowhere.pth")
    assert "no such file" in said and not list(tmp_path.iterdir())
    other = dino(tmp_path / "other.npz", bias=1.0)
    said = refused(capsys, *here, f"--workdir={encoded}", f"--config.eval.encoder={other}")
    assert "images and features of other data or another network (features is" in said


def of_run(encoded, workdir, *more):
    flags = ["data.source.name=packed", f"data.source.path={encoded}", *MODEL, *ALIGNED, *more]
    return [*(f"--config.{flag}" for flag in flags), f"--workdir={workdir}"]


@pytest.mark.slow
def test_other_tokens_than_patches_are_refused_before_work(encoded, tmp_path, capsys):
    flags = ["--config=configs/digits.py", *of_run(encoded, tmp_path / "run", "network.patch_size=2")]
    said = refused(capsys, *flags, "--mode=train")
    assert "features are of 4 patches, and the network has 16 tokens" in said
    assert not list((tmp_path / "run").glob("checkpoints*"))


@pytest.mark.slow
def test_beside_latents_and_packed_again(images, encoder, tmp_path):  # noqa: F811
    """Latents and features of one round, at the same rows, in full and in half precision."""
    assert encode(images, encoder, tmp_path / "both", f"eval.autoencoder={FOLDER}") == 0
    source = latents.build("test", str(tmp_path / "both"))
    with np.load(images / "test.npz") as file:
        image = file["image"]
    np.testing.assert_allclose(source.features[: len(image)], made(image, encoder), rtol=2e-3, atol=2e-3)
    flags = ["--config.data.source.name=latents", f"--config.data.source.path={tmp_path / 'both'}"]
    flags += ["--config.network.name=mlp"]
    assert main(["--config=configs/base.py", *flags, f"--workdir={tmp_path / 'half'}", "--mode=pack"]) == 0
    half = latents.build("test", str(tmp_path / "half"))
    np.testing.assert_array_equal(half.features, source.features)
    assert half.mean.dtype == np.float16 and digest(half) == digest(source)


@pytest.mark.slow
def test_interruptions_devices_and_processes_change_nothing(encoded, tmp_path, cache):
    """Killed and gone on: bitwise the same; on 8 devices, split over them, and by 2 processes to rounding."""

    def flags(name, *more):
        return tmp_path / name, *of_run(encoded, tmp_path / name, "model.ema_rate=(0.9,)", *more)[:-1]

    run(*flags("whole"), cache=cache)
    for moment, expected in (("step:17:SIGTERM", 75), ("step:31:SIGKILL", -9), ("none", 0)):
        run(*flags("broken"), moment=moment, expected=expected, cache=cache)
    assert_same(tmp_path / "broken", tmp_path / "whole")
    run(*flags("eight"), devices=8, cache=cache)
    run(*flags("split", "training.fsdp=True", "training.microbatches=2"), devices=4, cache=cache)
    run_together(2, *flags("two"), devices=2, cache=cache)
    for name in ("eight", "split", "two"):
        assert largest_difference(tmp_path / name, tmp_path / "whole") <= 1e-5
    assert losses(tmp_path / "whole")[40][0] < losses(tmp_path / "whole")[1][0]


@pytest.mark.slow
def test_a_run_is_drawn_from_begun_from_and_gone_on_with_its_features_alone(images, encoded, tmp_path, capsys):  # noqa: F811
    """Evaluation reads no projector; runs begin with weights with and without one; other features are refused."""
    short = ["training.n_iters=4", "training.batch_size=8", "training.eval_freq=4", "eval.num_samples=4"]
    short += ["sampling.name=heun", "sampling.n_steps=2", "eval.enable_bpd=False", "training.snapshot_sampling=False"]
    base = ["--config=configs/digits.py"]
    flags = [*base, *of_run(encoded, tmp_path / "run", *short)]
    assert main([*flags, "--mode=train"]) == 0
    meta = json.loads((tmp_path / "run" / "checkpoints" / "4" / "meta" / "metadata").read_text())
    assert meta["data"][FEATURES] == digest(packed.build("train", str(encoded)))
    assert main([f"--workdir={tmp_path / 'run'}", "--mode=eval"]) == 0
    for name, start, off in (("without", "run", ["training.alignment=0.0"]), ("with", "without", [])):
        off += ["training.alignment_block=8", "training.alignment_width=2048"] if off else []
        more = [*short, *off, f"training.init={tmp_path / start}"]
        assert main([*base, *of_run(encoded, tmp_path / name, *more), "--mode=train"]) == 0
    assert "objective/projector/dense_0/kernel is absent there" in capsys.readouterr().out
    other = tmp_path / "other"
    assert encode(images, dino(tmp_path / "other.npz", bias=1.0), other) == 0
    longer = [*base, *of_run(other, tmp_path / "run", *short, "training.n_iters=6"), "--mode=train"]
    assert "stored features" in refused(capsys, *longer)
