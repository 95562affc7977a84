"""Data of real numbers with a declared range: scaled without noise, their density in their own units, samples too."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from main import EXIT_USER_ERROR, main
from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.data import arrays
from score_flow.data.base import facts
from score_flow.data.scaling import Scaling
from score_flow.errors import UserError
from score_flow.losses.dequantisation import UniformDequantiser
from tests.data.test_regular_files import refusal

LOW, HIGH = -3.0, 7.0
VALUES = np.random.default_rng(0).uniform(LOW, HIGH, (20, 4, 6, 5)).astype(np.float32)
MODEL = ["network.name=mlp", "network.width=8", "network.depth=1", "training.batch_size=8", "training.n_iters=2"]
MODEL += ["training.snapshot_freq=2", "training.log_freq=1", "training.eval_freq=2", "eval.batch_size=8"]
MODEL += ["eval.num_samples=8", "sampling.name=heun", "sampling.n_steps=2", "optim.warmup=0"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    file = tmp_path_factory.mktemp("real") / "a.npz"
    np.savez(file, image=VALUES.astype(np.float64))
    return file


def flags(file, *more):
    source = ["data.source.name=arrays", f"data.source.path={file}", f"data.source.range=({LOW}, {HIGH})"]
    return [f"--config.{flag}" for flag in (*source, *MODEL, *more)]


def test_numbers_are_read_as_they_are(file):
    source = arrays.build(path=str(file), range=(LOW, HIGH), test_share=0.0)
    np.testing.assert_array_equal(source.read(np.arange(20))["image"], VALUES)
    known = json.loads(json.dumps(facts(source)))
    assert (known["levels"], known["range"], known["image_shape"]) == (0, [LOW, HIGH], [4, 6, 5])
    padded = arrays.build(path=str(file), range=(LOW, HIGH), test_share=0.0, pad_to=8).read(np.arange(20))["image"]
    np.testing.assert_array_equal(padded[:, 2:6, 1:7], VALUES)
    assert padded.shape == (20, 8, 8, 5) and padded[0, 0, 0, 0] == LOW
    assert "allowed: uint8 (numbers of other kinds: config.data.source.range" in refusal(arrays.build, path=str(file))
    message = refusal(arrays.build, path=str(file), range=(0.0, 1.0))
    assert "a.npz: pixel values reach from -2" in message and "range: 0 to 1" in message


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
def test_numbers_of_any_kind(dtype, tmp_path):
    values = np.arange(32).reshape(2, 4, 4).astype(dtype)
    np.savez(tmp_path / "a.npz", image=values)
    image = arrays.build(path=str(tmp_path / "a.npz"), range=(0, 31), test_share=0.0).read(np.arange(2))["image"]
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image[..., 0], values)
    np.savez(tmp_path / "b.npz", image=np.full((2, 4, 4), np.nan, np.float32))
    assert "b.npz" in refusal(arrays.build, path=str(tmp_path / "b.npz"), range=(0, 31))


def test_the_range_meets_the_models_and_back():
    scaling = Scaling(-1.0, 1.0, range=(LOW, HIGH))
    ends = scaling.normalise(jnp.array([LOW, (LOW + HIGH) / 2, HIGH]))
    np.testing.assert_allclose(ends, [-1, 0, 1], atol=1e-7)
    np.testing.assert_allclose(scaling.to_data(scaling.normalise(jnp.asarray(VALUES))), VALUES, atol=2e-6)
    assert scaling.quantise(ends).tolist() == [0, 127, 255]  # pictures


def test_density_is_of_the_numbers_own_units():
    """log p(v) = log p(x) + log |dx/dv|; and nothing is added inside a level."""
    scaling = Scaling(-1.0, 1.0, range=(LOW, HIGH))
    slope = jax.grad(lambda v: scaling.normalise(v))(jnp.float32(0.3))
    x, bits = UniformDequantiser(scaling)(jax.random.split(jax.random.key(0), len(VALUES)), jnp.asarray(VALUES))
    np.testing.assert_array_equal(x, scaling.normalise(jnp.asarray(VALUES)))
    np.testing.assert_allclose(bits, -math.log2(slope), rtol=1e-6)


def test_a_run_of_real_numbers_trains_without_dequantisation(file):
    run = experiment(load("configs/digits.py", flags(file)))
    assert run.real and not run.dequantised and run.image_shape == (4, 6, 5)
    batch = {"image": jnp.asarray(run.train_source.read(np.arange(8))["image"])}
    x0, _ = run.loss.noising.prepare(jax.random.key(0), batch)
    np.testing.assert_allclose(x0, run.scaling.normalise(batch["image"]), rtol=1e-6)
    again = experiment(load("configs/digits.py", flags(file)), json.loads(json.dumps(run.data_facts)))
    assert again.scaling == run.scaling
    declared = flags(file, "data.image_shape=(4, 6, 5)", "data.levels=0", f"data.range=({LOW}, {HIGH})")
    assert experiment(load("configs/digits.py", declared)).scaling == run.scaling
    other = flags(file, "data.image_shape=(4, 6, 5)", "data.levels=0", "data.range=(0.0, 1.0)")
    with pytest.raises(UserError, match="numbers in .* but config.data declares numbers in"):
        experiment(load("configs/digits.py", other)).train_source  # noqa: B018
    with pytest.raises(UserError, match="levels = 0 goes with a range"):
        experiment(load("configs/digits.py", flags(file, "data.image_shape=(4, 6, 5)", "data.levels=0")))


@pytest.mark.slow
def test_train_sample_and_evaluate(file, tmp_path, capsys):
    command = ["--config=configs/digits.py", f"--workdir={tmp_path}", *flags(file)]
    assert main([*command, "--mode=train"]) == 0
    assert main([*command, "--mode=eval"]) == 0
    folder = tmp_path / "eval" / "2"
    figures = json.loads((folder / "likelihood" / "result.json").read_text())
    bits = np.load(folder / "likelihood" / "bits.npz")["bits"]
    assert figures["nats_per_dim"] == pytest.approx(bits.mean() * math.log(2)) and "bits_per_dim" not in figures
    with np.load(folder / "samples" / "samples.npz") as samples:
        unit = (samples["value"] - LOW) / (HIGH - LOW)
        assert samples["value"].dtype == np.float32 and samples["image"].dtype == np.uint8
        np.testing.assert_allclose(samples["image"], np.clip(np.floor(255 * unit + 2**-12), 0, 255), atol=1)
    for flag, said in (("eval.jobs=('vlb',)", "needs pixel levels"), ("eval.dequantizer=decoder", "have no levels")):
        assert main([*command, "--mode=eval", f"--config.{flag}", "--eval_folder=other"]) == EXIT_USER_ERROR
        assert said in capsys.readouterr().err
