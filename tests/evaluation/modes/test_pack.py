"""Packed data sets: what their source is, made in rounds that a kill does not lose, and damaged ones refused."""

import json

import numpy as np
import pytest
from PIL import Image

from evaluation.modes import pack as mode
from main import EXIT_USER_ERROR, main
from score_flow.data import compare, folder, latents, packed
from score_flow.data.base import ArraySource, facts
from score_flow.errors import UserError
from tests.launch import run

N = 23
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 8, 12, 4), np.uint8)
SOURCE = {"image_size": (6, 8), "test_share": 0.2}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Transparent images of three classes, none of them held out yet."""
    root = tmp_path_factory.mktemp("d") / "images"
    for i, image in enumerate(IMAGES):
        file = root / "abc"[i % 3] / f"{i:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    return root


def flags(images, *more):
    fields = ["name=folder", f"path={images}", "image_size=(6, 8)", "test_share=0.2", *more]
    fields = [f"data.source.{field}" for field in fields] + ["network.name=mlp", "network.width=8", "network.depth=1"]
    return ["--config=configs/digits.py", *(f"--config.{field}" for field in fields)]


@pytest.fixture(scope="module")
def packed_folder(images, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("packed")
    assert main([*flags(images), f"--workdir={workdir}", "--mode=pack"]) == 0
    return workdir


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_packed_copy_is_its_source(split, images, packed_folder):
    """The same examples and the same facts, so that a run goes on with either."""
    source, copy = folder.build(split, str(images), **SOURCE), packed.build(split, str(packed_folder))
    assert facts(copy) == facts(source) and facts(copy)["decoding"] == {"background": "white"}
    assert (copy.classes, copy.notes, copy.test_share) == (source.classes, source.notes, 0.2)
    ours, theirs = (each.read(np.arange(len(source))) for each in (copy, source))
    for name in ("image", "label"):
        np.testing.assert_array_equal(ours[name], theirs[name])
        assert ours[name].dtype == theirs[name].dtype
    compare.refuse_other_data(facts(source), copy, "a run")
    assert {file.name for file in (packed_folder / split).iterdir()} == {packed.FACTS, "image.npy", "label.npy"}
    assert set(json.loads((packed_folder / split / packed.FACTS).read_text())["sha256"]) == {"image.npy", "label.npy"}


def test_what_is_done_is_done_and_of_other_data_is_refused(images, packed_folder, capsys):
    before = (packed_folder / "train/image.npy").stat().st_mtime_ns
    assert main([*flags(images), f"--workdir={packed_folder}", "--mode=pack"]) == 0
    assert (packed_folder / "train/image.npy").stat().st_mtime_ns == before
    other = [*flags(images, "background=black"), f"--workdir={packed_folder}", "--mode=pack"]
    assert main(other) == EXIT_USER_ERROR
    assert "holds a copy of other data" in capsys.readouterr().err


def test_packed_data_are_packed_already(packed_folder, tmp_path, capsys):
    again = ["--config.data.source.name=packed", f"--config.data.source.path={packed_folder}"]
    command = ["--config=configs/digits.py", f"--workdir={tmp_path}", "--mode=pack", *again]
    assert main([*command, "--config.network.name=mlp"]) == EXIT_USER_ERROR
    assert "is packed, which is packed already" in capsys.readouterr().err


def test_latents_are_packed_in_half_precision(tmp_path):
    """A copy in the layout of latents; read as float32 again, rounded to 11 bits."""
    rng, given = np.random.default_rng(0), tmp_path / "given" / "train"
    given.mkdir(parents=True)
    arrays = {name: rng.standard_normal((N, 4, 4, 2)).astype(np.float32) for name in ("mean", "std")}
    for name, array in (arrays | {"label": np.arange(N, dtype=np.int32) % 3}).items():
        np.save(given / f"{name}.npy", array)
    about = {"name": "latents of d", "n": N, "latent_shape": [4, 4, 2], "num_classes": 3, "scale": 0.5}
    (given / latents.FACTS).write_text(json.dumps(about))
    mode.halve(latents.build("train", str(tmp_path / "given")), given, tmp_path / "half" / "train")
    half = latents.build("train", str(tmp_path / "half"))
    got = half.read(np.arange(N))
    assert half.mean.dtype == np.float16 and got["image"].dtype == np.float32
    np.testing.assert_allclose(got["image"], np.concatenate([arrays["mean"], arrays["std"]], axis=-1), rtol=2**-11)
    np.testing.assert_array_equal(got["label"], np.arange(N) % 3)
    assert json.loads((tmp_path / "half" / "train" / latents.FACTS).read_text())["scale"] == 0.5
    with pytest.raises(UserError, match="in half precision, which are packed already"):
        mode.halve(half, tmp_path / "half" / "train", tmp_path / "again" / "train")


def test_real_numbers_are_packed_as_they_are(tmp_path):
    image = np.random.default_rng(0).uniform(-2, 3, (N, 4, 4, 5)).astype(np.float32)
    source = ArraySource("real", image, levels=0, range=(-2.0, 3.0))
    mode.pack_split(source, tmp_path / "train", packed.described(source))
    copy = packed.build("train", str(tmp_path))
    np.testing.assert_array_equal(copy.read(np.arange(N))["image"], image)
    assert facts(copy) == facts(source) and copy.range == (-2.0, 3.0)


def test_a_disk_without_place_is_known_before(images, tmp_path, monkeypatch):
    monkeypatch.setattr(mode.files, "free", lambda path: 100)
    with pytest.raises(UserError, match="needed, 100 B free"):
        mode.pack_split(folder.build("train", str(images), **SOURCE), tmp_path, {"range": None})


def test_damaged_copies_are_refused(packed_folder, tmp_path):
    train = tmp_path / "train"

    def refusal(**files):
        train.mkdir(exist_ok=True)
        for name in (packed.FACTS, "image.npy", "label.npy"):
            (train / name).write_bytes(files.get(name.split(".")[0], (packed_folder / "train" / name).read_bytes()))
        with pytest.raises(UserError) as error:
            packed.build("train", str(tmp_path))
        assert "\n" not in str(error.value)
        return str(error.value)

    whole = (packed_folder / "train/image.npy").read_bytes()
    with pytest.raises(UserError, match="holds no packed.json: make it by --mode=pack"):
        packed.build("train", str(packed_folder / "train"))
    assert "is not what --mode=pack wrote" in refusal(image=whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "cannot be read as a packed data set" in refusal(image=whole[:-1])
    assert "cannot be read as a packed data set" in refusal(packed=b"{")
    facts_of = json.loads((packed_folder / "train" / packed.FACTS).read_text())
    assert "labels run from 0 to 2" in refusal(packed=json.dumps(facts_of | {"num_classes": 2}).encode())
    assert "holds uint8 of shape" in refusal(packed=json.dumps(facts_of | {"n": 3}).encode())


@pytest.mark.slow
def test_broken_off_and_gone_on(images, packed_folder, tmp_path):
    """SIGKILL and SIGTERM between rounds: the bytes of a copy without a break."""
    moments = (("after:packing (train).2:SIGKILL", -9), ("before:packing (train).3:SIGTERM", 75), ("none", 0))
    for moment, expected in moments:
        run(tmp_path, *flags(images), mode="pack", moment=moment, expected=expected)
    for split in ("train", "test"):
        for name in ("image.npy", "label.npy"):
            assert (tmp_path / split / name).read_bytes() == (packed_folder / split / name).read_bytes()
