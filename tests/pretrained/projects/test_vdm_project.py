"""VDM's and i-DODE's files: outputs of their own code, and everything else by name and shape."""

import json
import zlib
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization
from flax.traverse_util import unflatten_dict

from evaluation.modes.importing import open_published
from score_flow.build import build_conditioning, build_model
from score_flow.config.loading import load, with_settings
from score_flow.errors import UserError
from score_flow.pretrained.base import fill
from score_flow.pretrained.projects import vdm
from tests.golden_data import COMMITTED

PROJECT = vdm.build()
META = json.loads((COMMITTED / "vdm/meta.json").read_text())
SMALL = META["model"] | {"gamma_type": "fixed"}
IDODE = {"schedule": "VP", "second_order": True, "velocity": True, "importance": True, "dequantization": "tn"}
LEARNED = {f"gamma/{name}": np.array([value]) for name, value in META["gamma"].items()}


@cache
def drawn():
    """The weights that the golden outputs are of."""

    def draw(name, shape):
        noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        if len(shape) == 1:
            return 0.1 * noise + name.endswith("scale")
        return noise / np.sqrt(np.prod(shape[:-1]))

    return {name: LEARNED[name] if name in LEARNED else draw(name, shape) for name, shape in META["shapes"].items()}


def without_ends():
    return {name: w for name, w in drawn().items() if name not in LEARNED}


def written(file, tensors):
    tree = unflatten_dict({name: np.float32(w) for name, w in tensors.items()}, sep="/")
    contents = {"step": 7, "params": tree, "ema_params": tree, "opt_state": {"0": {"count": np.int32(7)}}}
    file.write_bytes(serialization.msgpack_serialize(contents))
    return str(file)


def model_of(settings, dtype="float32"):
    """The model of settings of theirs, on images that are small enough."""
    config = load("configs/base.py", [], PROJECT.translate(settings) | {"data.image_shape": (8, 8, 3)})
    config = with_settings(config, {"network.dtype": dtype})
    return build_model(config, 3, build_conditioning(config, 0))


def shapes_of(model):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), (1, 8, 8, 3)))


@cache
def learned():
    """Shapes and layout of the network with the ends that the drawn weights hold."""
    model = model_of({"model": SMALL | {"gamma": (-13.1, 4.8)}})
    return shapes_of(model), PROJECT.layout(model, (8, 8, 3))


@pytest.mark.slow
@pytest.mark.parametrize("output", ["vdm", "idode_VP", "idode_SP"])
def test_outputs_are_those_of_their_own_code(output, tmp_path):
    """The noise at times of the path; the first by what its file alone says."""
    if output == "vdm":
        settings = open_published(written(tmp_path / "ckpt-1.flax", drawn())).checkpoint.reference
        tensors = drawn()
    else:
        settings, tensors = {"model": SMALL | IDODE | {"schedule": output.removeprefix("idode_")}}, without_ends()
    with jax.enable_x64(True), np.load(COMMITTED / "vdm/outputs.npz", allow_pickle=False) as golden:
        model = model_of(settings, "float64")
        params = jax.tree.map(jnp.asarray, fill(shapes_of(model), PROJECT.layout(model, (8, 8, 3)), tensors))
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        estimate = jax.jit(lambda x, t: model.bind(params).estimate(x, t).noise)
        found = np.asarray(estimate(jnp.asarray(golden["x"]), jnp.asarray(golden["t"])))
        expected = golden[output]
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < (1e-7 if output == "vdm" else 1e-9)  # ends of the log SNR go through float32


def test_a_file_with_learned_ends_says_what_its_network_is(tmp_path):
    published = open_published(written(tmp_path / "ckpt-1.flax", drawn()))
    assert (published.project, published.checkpoint.step) == ("vdm", 7)
    settings = published.settings(None, recipe=False)
    assert settings["network.width"] == 32 and settings["network.num_res_blocks"] == 2
    assert settings["network.fourier_powers"] == (6, 7) and settings["model.prediction"] == "noise"
    w, b = META["gamma"].values()
    np.testing.assert_allclose([settings["path.log_snr_max"], settings["path.log_snr_min"]], [-b, -b - w], rtol=1e-6)
    np.testing.assert_allclose(settings["model.time_scale"], 1000 * w / 18.3, rtol=1e-6)
    np.testing.assert_allclose(settings["model.time_shift"], 1000 * (b + 13.3) / 18.3, rtol=1e-4)
    model = model_of(published.checkpoint.reference)
    params = published.params(model, (8, 8, 3), shapes_of(model), "ema")
    assert not params["down_0_0"]["embedding"]["bias"].any()


@pytest.mark.parametrize("change, complaint", [
    (lambda t: t | {"gamma/b": np.array([-12.0])}, "gamma/b is not what this network has fixed"),
    (lambda t: {n: w for n, w in t.items() if n != "score_model/mid.attn_1/q/bias"}, "mid.attn_1/q/bias is missing"),
    (lambda t: t | {"score_model/down.attn_0/q/bias": np.zeros(32)}, "down.attn_0/q/bias is not part of this network"),
    (lambda t: t | {"score_model/conv_in/kernel": np.zeros((3, 3, 15, 64))}, "conv_in/kernel has shape"),
])  # fmt: skip
def test_other_tensors_are_refused(change, complaint):
    with pytest.raises(UserError, match=complaint):
        fill(*learned(), change(drawn()))


def test_settings_of_theirs():
    """What i-DODE's training is here; the published config of VDM on CIFAR-10 learns its ends."""
    ours = PROJECT.translate({"model": SMALL | IDODE, "data": {"dataset": "cifar10"}, "optimizer": {"ema_rate": 0.999}})
    assert ours["model.prediction"] == "unit_velocity" and ours["training.second_order"] == 0.1
    assert ours["training.time_sampler.name"] == "log_variance" and ours["eval.dequantizer"] == "truncated_normal"
    assert ours["model.time_scale"] == pytest.approx(1000) and ours["model.time_shift"] == pytest.approx(0)
    assert ours["model.ema_rate"] == (0.999,) and ours["data.source.name"] == "cifar10"
    decoded = PROJECT.translate({"model": SMALL | IDODE | {"dequantization": "v"}})
    assert decoded["eval.dequantizer"] == "decoder"  # levels by the decoder's softmax: no flow is trained for it
    refused = {
        "ends are in the weights": {"gamma_type": "learnable_scalar"},
        "with_attention .* can only be False": {"with_attention": True},
        "'model.sm_n_head'; allowed": {"sm_n_head": 2},
        "schedule .*allowed: SP, VP": {"schedule": "VE"},
    }
    for complaint, changed in refused.items():
        with pytest.raises(UserError, match=complaint):
            PROJECT.translate({"model": SMALL | changed})
