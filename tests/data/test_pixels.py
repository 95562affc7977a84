"""Decoded samples: latents in, pixel levels out, with nothing of the data set's pixels needed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evaluation.fold import write_arrays
from main import EXIT_USER_ERROR, main
from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.data.levels import Pixels
from score_flow.data.scaling import Scaling
from score_flow.pretrained import autoencoder_kl
from score_flow.runs.checkpoint import Checkpoints
from tests.golden_data import golden_dir

FOLDER = golden_dir() / "autoencoder_kl" / "kl_8_16_l1"
FLAGS = [
    "--config.data.image_shape=(8,8,4)", "--config.data.source.name=arrays", "--config.data.levels=256",
    "--config.data.uniform_dequantization=False", "--config.network.name=mlp", "--config.network.width=8",
    "--config.network.depth=1", "--config.sampling.name=heun", "--config.sampling.n_steps=2",
    "--config.eval.enable_loss=False", "--config.eval.enable_bpd=False", "--config.eval.num_samples=8",
    "--config.eval.batch_size=8", f"--config.eval.autoencoder={FOLDER}",
]  # fmt: skip


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A milestone of a small model of latents with random weights; its data set is nowhere."""
    folder = tmp_path_factory.mktemp("latents")
    config = load("configs/digits.py", FLAGS)
    params = experiment(config).init(jax.random.key(0))
    milestones, settings = Checkpoints(folder / "checkpoints"), config.to_json()
    meta = {"config": json.loads(settings), "weights": {"raw": "raw", "ema": "ema"}}
    milestones.save(1, {"params": params, "ema": [params] * len(config.model.ema_rate)}, meta, wait=True)
    milestones.close()
    (folder / "config.json").write_text(settings)
    return folder


def evaluate(workdir, *flags, mode="eval"):
    return main(["--config=configs/digits.py", f"--workdir={workdir}", f"--mode={mode}", *FLAGS, *flags])


def test_levels_are_the_nearest_to_the_references_images():
    """decode(z) of the golden run, in float64, as the levels that lie nearest; a scaled, shifted latent is undone."""
    network, params, scale, shift = autoencoder_kl.load(FOLDER)
    with np.load(FOLDER / "io.npz") as arrays:
        z, images = (arrays[name].transpose(0, 2, 3, 1) for name in ("s16x16.z", "s16x16.decode64"))
    pixels = Pixels(Scaling(), False, network, params, scale, 0.5)
    got = np.asarray(jax.jit(lambda pixels, x: pixels(x))(pixels, jnp.asarray((z - 0.5) * scale, jnp.float32)))
    exact = np.clip(127.5 * images + 127.5, 0, 255)
    assert got.dtype == np.uint8 and got.shape == images.shape == (len(z), *pixels.shape(z.shape[1:]))
    assert np.abs(got - exact).max() < 0.5 + 1e-3  # float32 of levels
    assert scale == 0.18215 and shift == 0.0


def test_leading_axes_and_pixels_as_they_are():
    x = jax.random.uniform(jax.random.key(0), (2, 3, 4, 4, 1), minval=-1.0)
    pixels = Pixels(Scaling(), False)
    np.testing.assert_array_equal(pixels(x)[1], Scaling().quantise(x[1]))
    assert pixels.shape((4, 4, 1)) == (4, 4, 1)


@pytest.mark.slow
def test_samples_are_decoded(workdir):
    """Samples and trajectory of latents come out as images, without any data set; the report shows them."""
    assert evaluate(workdir) == 0
    folder = workdir / "eval" / "1"
    with np.load(folder / "samples" / "samples.npz", allow_pickle=False) as arrays:
        assert arrays["image"].shape == (8, 16, 16, 3) and np.ptp(arrays["image"]) > 10
    with np.load(folder / "trajectory" / "trajectory.npz", allow_pickle=False) as arrays:
        assert arrays["image"].shape[-3:] == arrays["x0"].shape[-3:] == (16, 16, 3)
    assert (workdir / "report.html").stat().st_size > 10_000
    assert "frechet_distance" not in json.loads((folder / "samples" / "result.json").read_text())


@pytest.mark.slow
def test_the_fid_of_decoded_samples(workdir, tmp_path, monkeypatch):
    """By an extractor of 16 x 16 x 3 pixels against a file of mu and sigma."""
    from evaluation.metrics.extractors import inception
    from evaluation.metrics.extractors.small import Components

    directions = np.eye(16 * 16 * 3, 4, dtype=np.float32)
    extractor = Components("corner", 4, np.zeros(16 * 16 * 3, np.float32), directions, 256)
    monkeypatch.setattr(inception, "build", lambda weights="": extractor)
    write_arrays(tmp_path / "reference.npz", mu=np.zeros(4), sigma=np.eye(4))
    flags = ["--config.eval.jobs=('fid',)", f"--config.eval.stats={tmp_path / 'reference.npz'}", "--eval_folder=fid"]
    flags += ["--config.eval.extractor.name=inception", "--config.eval.enable_sampling=False"]
    assert evaluate(workdir, *flags) == 0
    result = json.loads((workdir / "fid" / "1" / "fid" / "result.json").read_text())
    with np.load(workdir / "eval" / "1" / "samples" / "samples.npz", allow_pickle=False) as arrays:
        x = arrays["image"].reshape(8, -1)[:, :4] / 255.0
    mean, covariance = x.mean(axis=0), np.cov(x, rowvar=False)
    root = np.sqrt(np.maximum(np.linalg.eigvalsh(covariance), 0)).sum()
    assert result["frechet_distance"] == pytest.approx(mean @ mean + np.trace(covariance) + 4 - 2 * root, abs=1e-5)


@pytest.mark.parametrize(
    ("flags", "mode", "message"),
    [
        (["--config.eval.autoencoder=/nowhere"], "eval", "/nowhere holds no config.json"),
        (["--config.eval.jobs=('gallery',)"], "eval", "gallery needs pixels"),
        (["--config.eval.jobs=('fid',)"], "eval", "config.eval.stats: got nothing"),
        (["--config.eval.jobs=('fid',)", "--config.eval.stats=FILE"], "eval", "small is fitted to images"),
        (["--config.data.levels=17"], "eval", "makes 256 levels: config.data.levels is 17"),
        (["--config.data.image_shape=(8,8,3)"], "eval", "decodes latents of 4 channels; the model's have 3"),
        ([], "control", "needs a model of pixels"),
        ([], "stats", "--mode=stats is of images"),
    ],
)  # fmt: skip
def test_what_latents_cannot_do_is_refused(flags, mode, message, workdir, tmp_path, capsys):
    write_arrays(tmp_path / "s.npz", mu=np.zeros(4), sigma=np.eye(4))
    flags = [flag.replace("FILE", str(tmp_path / "s.npz")) for flag in flags]
    assert evaluate(workdir, *flags, "--eval_folder=other", mode=mode) == EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert message in error and error.strip().count("\n") == 0
