"""EDM2's networks: denoised images by its own code on drawn weights, from a snapshot as it writes them and by name."""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.errors import UserError
from score_flow.pretrained import base
from score_flow.pretrained.projects import edm, edm2
from score_flow.pretrained.readers.files import read
from score_flow.process.times import uniform
from score_flow.training.matrices import unit_kernels
from score_flow.training.optimiser import make_optimiser
from tests.golden_data import COMMITTED
from tests.pretrained.drawn_weights import drawn
from tests.toy_losses import denoising
from tests.training.test_training import ADAM

SOURCE, FOLDER = edm2.build(), COMMITTED / "edm2"
CASES = json.loads((FOLDER / "meta.json").read_text())["cases"]


def run_of(arguments, dtype="float32"):
    return experiment(load("configs/base.py", [], SOURCE.translate(arguments) | {"network.dtype": dtype}))


def shapes_of(run):
    return jax.eval_shape(run.init, jax.random.key(0))


def weights_of(case):
    """Weights of a layout by their names alone: gains and waves of order 1."""
    return {name: np.asarray(w if w.ndim > 1 else 10 * w) for name, w in drawn(CASES[case]["shapes"]).items()}


@cache
def published(case):
    """The weights as a file of theirs has them: of one case from a real pickle."""
    if case == "cond":
        return SOURCE.read(read(FOLDER / "cond.pkl"))
    network = {"class_name": "Precond", "arguments": CASES[case]["arguments"], "tensors": weights_of(case)}
    return SOURCE.read({"networks": {"ema": network}})


@pytest.mark.parametrize("case", ["cond", pytest.param("uncond", marks=pytest.mark.slow)])
def test_denoised_images_are_the_sources(case):
    """D(x; sigma), which is our x0 at the time of that noise level; the last example is of no class."""
    with np.load(FOLDER / "io.npz") as arrays, jax.enable_x64(True):
        checkpoint = published(case)
        run = run_of(checkpoint.reference, "float64")
        tensors = {name: w.astype("float64") for name, w in checkpoint.weights["ema"].items()}
        params = base.fill(shapes_of(run), SOURCE.layout(run.model, run.image_shape), tensors)
        times = jnp.log(jnp.asarray(arrays["sigma"]) / 0.002) / np.log(80 / 0.002)
        condition = {"label": jnp.asarray(arrays["label"], "int32")} if case == "cond" else None
        model = run.model
        x0 = jax.jit(lambda params, x: model.bind(params, condition).x0(x, times))
        out = x0(params, jnp.asarray(arrays["x"]))
        error = np.linalg.norm(out - arrays[case]) / np.linalg.norm(arrays[case])
        assert out.dtype == jnp.float64 and error < 1e-9


def test_a_snapshot_holds_the_drawn_weights_in_half_precision_and_the_arguments():
    checkpoint = published("cond")
    assert checkpoint.reference == CASES["cond"]["arguments"]
    assert set(checkpoint.weights) == {"ema"} and set(checkpoint.weights["ema"]) == set(CASES["cond"]["shapes"])
    for name, w in weights_of("cond").items():
        np.testing.assert_array_equal(checkpoint.weights["ema"][name], w.astype(np.float16))


QKV, WAVES = "unet.enc.4x4_block0.attn_qkv.weight", "unet.emb_fourier.freqs"


@pytest.mark.parametrize("changes, said", [
    ({"unet.enc.4x4_down.emb_gain": None}, "unet.enc.4x4_down.emb_gain is missing"),
    ({WAVES: None}, f"{WAVES} is missing"),
    ({"unet.dec.4x4_in1.attn_qkv.weight": np.ones((3, 1), np.float32)}, "in1.attn_qkv.weight is not part of this"),
    ({QKV: np.ones((45, 16, 1, 1), np.float32)}, "attn_qkv.weight has shape (45, 16"),
])  # fmt: skip
def test_tensors_that_do_not_fit_are_refused_by_name(changes, said):
    run = run_of(CASES["uncond"]["arguments"])
    tensors = {name: w for name, w in (weights_of("uncond") | changes).items() if w is not None}
    with pytest.raises(UserError) as refused:
        base.fill(shapes_of(run), SOURCE.layout(run.model, run.image_shape), tensors)
    assert said in str(refused.value)


@pytest.mark.parametrize("settings, said", [
    ({"label_balance": 0.3}, "EDM2: label_balance is 0.3; allowed: 0.5."),
    ({"resample_filter": [1, 3, 3, 1]}, "resample_filter is (1, 3, 3, 1); allowed: (1, 1)"),
    ({"model_chanels": 64}, "Did you mean 'model_channels'"),
    ({"label_dim": None}, "label_dim is not given"),
    ({"preset": "edm2-img64-xxl"}, "'edm2-img64-xxl'; allowed"),
    ({"preset": "edm2-img64-s", "lr": 0.1}, "an option of train_edm2.py"),
])  # fmt: skip
def test_other_arguments_are_refused_in_one_line(settings, said):
    with pytest.raises(UserError) as refused:
        SOURCE.translate(settings if "preset" in settings else CASES["cond"]["arguments"] | settings)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_each_project_leaves_the_pickles_of_the_other():
    theirs, other = read(FOLDER / "cond.pkl"), read(COMMITTED / "edm" / "ve.pkl")
    assert edm.build().read(theirs) is None and SOURCE.read(other) is None
    assert SOURCE.read(theirs) and edm.build().read(other)


@pytest.mark.slow
def test_training_steps_are_the_sources():
    """Two of Adam on the error of F, each from kernels that are normalised, theirs before a step and ours after it."""
    with np.load(FOLDER / "io.npz") as arrays, jax.enable_x64(True):
        run = run_of(published("uncond").reference, "float64")
        tensors = {name: w.astype("float64") for name, w in published("uncond").weights["ema"].items()}
        params = base.fill(shapes_of(run), SOURCE.layout(run.model, run.image_shape), tensors)
        t = jnp.log(jnp.asarray(arrays["sigma"]) / 0.002) / np.log(80 / 0.002)
        x, noise = jnp.asarray(arrays["x"]), jnp.asarray(arrays["noise"])
        loss = denoising(run.model, uniform(run.model.path, 0.0), "edm")
        mean = jax.jit(jax.value_and_grad(lambda params: loss.at(params, jnp.clip(x / 2, -1, 1), noise, t).mean()))
        adam = make_optimiser("Adam", **ADAM | {"lr": 0.02, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8})
        params, losses = unit_kernels(jax.tree.map(jnp.asarray, params)), []
        state = adam.init(params)
        for _ in range(2):
            value, gradient = mean(params)
            updates, state = adam.update(gradient, state, params)
            params = unit_kernels(optax.apply_updates(params, updates))
            losses.append(float(value))
        np.testing.assert_allclose(losses, arrays["losses"], rtol=1e-9)
        out = jax.jit(lambda params: run.model.bind(params).x0(x, t))(params)
        assert np.linalg.norm(out - arrays["trained"]) / np.linalg.norm(arrays["trained"]) < 1e-9
        assert np.linalg.norm(out - arrays["uncond"]) / np.linalg.norm(out) > 1e-2
