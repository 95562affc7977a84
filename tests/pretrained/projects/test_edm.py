"""EDM's CIFAR-10 networks: denoised images by its own code on drawn weights, from a pickle and from bare tensors."""

import json
import pickle
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.errors import UserError
from score_flow.model import count_parameters
from score_flow.pretrained import base
from score_flow.pretrained.projects import edm
from score_flow.pretrained.readers.files import read
from tests.golden_data import COMMITTED
from tests.pretrained.drawn_weights import drawn

SOURCE, FOLDER = edm.build(), COMMITTED / "edm"
CASES = json.loads((FOLDER / "meta.json").read_text())["cases"]
SMALL = {
    "img_resolution": 8, "img_channels": 3, "model_type": "SongUNet", "model_channels": 8, "channel_mult": [2, 2],
    "num_blocks": 1, "attn_resolutions": [4], "dropout": 0.1, "augment_dim": 9,
}  # fmt: skip
VP = {"embedding_type": "positional", "encoder_type": "standard", "channel_mult_noise": 1, "resample_filter": [1, 1]}
VE = {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1]}
ARGUMENTS = {"vp_cond": SMALL | VP | {"label_dim": 10}, "ve": SMALL | VE}
CIFAR10 = {
    "img_resolution": 32,
    "model_channels": 128,
    "channel_mult": [2, 2, 2],
    "num_blocks": 4,
    "attn_resolutions": [16],
}


def run_of(arguments, dtype="float32"):
    return experiment(load("configs/base.py", [], SOURCE.translate(arguments) | {"network.dtype": dtype}))


def shapes_of(run):
    return jax.eval_shape(run.init, jax.random.key(0))


@cache
def published(case):
    """The weights as a file of EDM's has them: of one case from a real pickle."""
    if case == "ve":
        return SOURCE.read(read(FOLDER / "ve.pkl"))
    network = {"class_name": "EDMPrecond", "arguments": ARGUMENTS[case], "tensors": drawn(CASES[case]["shapes"])}
    return SOURCE.read({"networks": {"ema": network}})


@pytest.mark.slow
@pytest.mark.parametrize("case", ["ve", "vp_cond"])
def test_denoised_images_are_the_sources(case):
    """D(x; sigma), which is our x0 at the time of that noise level."""
    with np.load(FOLDER / "io.npz") as arrays, jax.enable_x64(True):
        checkpoint = published(case)
        run = run_of(checkpoint.reference, "float64")
        tensors = {name: w.astype("float64") for name, w in checkpoint.weights["ema"].items()}
        params = base.fill(shapes_of(run), SOURCE.layout(run.model, run.image_shape), tensors)
        times = jnp.log(jnp.asarray(arrays["sigma"]) / 0.002) / np.log(80 / 0.002)
        condition = {"label": jnp.array([3, 7], "int32")} if case == "vp_cond" else None
        model = run.model
        x0 = jax.jit(lambda params, x: model.bind(params, condition).x0(x, times))
        out = x0(params, jnp.asarray(arrays["x"]))
        error = np.linalg.norm(out - arrays[case]) / np.linalg.norm(arrays[case])
        assert out.dtype == jnp.float64 and error < 1e-9


def test_a_pickle_holds_the_drawn_weights_and_the_arguments():
    """Its own source code is text, which is dropped; the filters of resampling are constants."""
    checkpoint = published("ve")
    assert {name: checkpoint.reference[name] for name in ("img_resolution", "encoder_type", "resample_filter")} == {
        "img_resolution": 8, "encoder_type": "residual", "resample_filter": [1, 3, 3, 1],
    }  # fmt: skip
    for name, w in drawn(CASES["ve"]["shapes"]).items():
        found = checkpoint.weights["ema"]
        if ".qkv." in name:
            np.testing.assert_array_equal(found[f"{name}.key"], w[1::3])
        else:
            np.testing.assert_array_equal(found[name], w)


@pytest.mark.slow
@pytest.mark.parametrize("arguments, parameters", [(VP, 55_733_891), (VE, 56_397_827)])
def test_published_sizes(arguments, parameters):
    """Their counts have what maps nine labels of augmentation to the features."""
    arguments = SMALL | CIFAR10 | arguments
    run = run_of(arguments)
    augment, frequencies = 9 * 128 * arguments["channel_mult_noise"], 128 if arguments["channel_mult_noise"] == 2 else 0
    assert count_parameters(shapes_of(run)) + augment - frequencies == parameters


FILTER, VALUE = "model.dec.8x8_up.conv0.resample_filter", "model.enc.4x4_block0.qkv.weight.value"


@pytest.mark.parametrize("changes, said", [
    ({"model.enc.4x4_down.affine.bias": None}, "model.enc.4x4_down.affine.bias is missing"),
    ({"model.enc.4x4_down.affine.scale": np.ones(3, np.float32)}, "affine.scale is not part of this network"),
    ({FILTER: np.ones((1, 1, 4, 4), np.float32)}, "is not what this network has fixed"),
    ({VALUE: np.ones((3, 16, 1, 1), np.float32)}, "qkv.weight.value has shape (3, 16"),
])  # fmt: skip
def test_tensors_that_do_not_fit_are_refused_by_name(changes, said):
    run = run_of(ARGUMENTS["ve"])
    tensors = {name: w for name, w in (dict(published("ve").weights["ema"]) | changes).items() if w is not None}
    with pytest.raises(UserError) as refused:
        base.fill(shapes_of(run), SOURCE.layout(run.model, run.image_shape), tensors)
    assert said in str(refused.value)


@pytest.mark.parametrize("settings, said", [
    ({"model_type": "DhariwalUNet"}, "model_type is 'DhariwalUNet'; allowed: 'SongUNet'"),
    ({"decoder_type": "skip"}, "decoder_type is 'skip'"),
    ({"channel_mult_noise": 1, "embedding_type": "fourier"}, "channel_mult_noise is 1; allowed: 2"),
    ({"img_chanels": 3}, "Did you mean 'img_channels'"),
    ({"img_resolution": None}, "img_resolution is not given"),
])  # fmt: skip
def test_other_arguments_are_refused_in_one_line(settings, said):
    with pytest.raises(UserError) as refused:
        SOURCE.translate(ARGUMENTS["ve"] | settings)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def refusal(file) -> str:
    with pytest.raises(UserError) as refused:
        read(file)
    assert "\n" not in str(refused.value) and str(file) in str(refused.value)
    return str(refused.value)


class Harm:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return (self.witness.touch, ())


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path):
    witness, file = tmp_path / "witness", tmp_path / "network.pkl"
    file.write_bytes(pickle.dumps({"torch_utils.persistence": Harm(witness)}))
    assert "which is code, not weights" in refusal(file)
    file.write_bytes(pickle.dumps({"ema": Harm(witness)}))  # of another program
    assert "is a bare pickle" in refusal(file)
    assert not witness.exists()


def test_a_pickle_that_was_cut_off(tmp_path):
    content = (FOLDER / "ve.pkl").read_bytes()
    for n in (len(content) // 2, len(content) - 3):
        (tmp_path / "cut.pkl").write_bytes(content[:n])
        assert "cannot be read; truncated or damaged?" in refusal(tmp_path / "cut.pkl")


def test_networks_of_other_classes_are_refused():
    network = {"class_name": "VPPrecond", "arguments": {}, "tensors": {}}
    with pytest.raises(UserError, match="the pickle holds VPPrecond of DhariwalUNet; allowed: EDMPrecond of SongUNet"):
        SOURCE.read({"networks": {"ema": network}})
    assert SOURCE.read({"networks": {}}) is None
