"""google/ddpm-*: the outputs of diffusers' own code on drawn weights, and the published sizes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.errors import UserError
from score_flow.model import count_parameters
from score_flow.networks import ddpm
from score_flow.pretrained import base
from score_flow.pretrained.projects import diffusers_ddpm
from tests.golden_data import COMMITTED
from tests.pretrained.drawn_weights import drawn

SOURCE, FOLDER = diffusers_ddpm.build(), COMMITTED / "diffusers_ddpm"
META = json.loads((FOLDER / "meta.json").read_text())
TENSORS = drawn(META["shapes"])
CIFAR10_32 = META["config"] | {
    "sample_size": 32,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
CELEBAHQ_256 = META["config"] | {
    "sample_size": 256,
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
}


def run_of(settings, dtype="float32"):
    return experiment(load("configs/base.py", [], SOURCE.translate(settings) | {"network.dtype": dtype}))


def shapes_of(run):
    return jax.eval_shape(run.init, jax.random.key(0))


def filled(tensors):
    run = run_of(META["config"])
    return base.fill(shapes_of(run), SOURCE.layout(run.model, run.image_shape), SOURCE.read(tensors).weights["ema"])


def test_outputs_are_diffusers():
    """The noise at a step i, which is our t = (i + 1) / n."""
    with np.load(FOLDER / "io.npz") as arrays, jax.enable_x64(True):
        run, params = run_of(META["config"], "float64"), base.as_dtype(filled(TENSORS), "float64")
        times = (jnp.asarray(arrays["t"], "float64") + 1) / 1000
        output = jax.jit(run.model.apply)(params, jnp.asarray(arrays["x"]), times)
        error = np.linalg.norm(output - arrays["out"]) / np.linalg.norm(arrays["out"])
        assert output.dtype == jnp.float64 and error < 1e-9


@pytest.mark.parametrize("settings, parameters", [(CIFAR10_32, 35_746_307), (CELEBAHQ_256, 113_673_219)])
def test_published_settings_give_the_published_sizes(settings, parameters):
    run = run_of(settings)
    assert count_parameters(shapes_of(run)) == parameters
    names = [name for leaf in SOURCE.layout(run.model, run.image_shape).leaves.values() for name in leaf.names]
    assert len(names) == len(set(names)) == len(jax.tree.leaves(shapes_of(run)))


def test_names_of_2022_are_the_same_weights():
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, w in TENSORS.items():
        for new, old in older.items():
            name = name.replace(f".{new}.", f".{old}.")
        renamed[name] = w
    assert renamed.keys() != TENSORS.keys()
    assert jax.tree.all(jax.tree.map(np.array_equal, filled(renamed), filled(TENSORS)))


@pytest.mark.parametrize("changes, said", [
    ({"conv_out.bias": None}, "conv_out.bias is missing"),
    ({"conv_out.extra": np.ones(3, np.float32)}, "conv_out.extra is not part of this network"),
    ({"up_blocks.1.attentions.2.to_k.bias": np.ones(3, np.float32)}, "to_k.bias has shape (3,)"),
])  # fmt: skip
def test_tensors_that_do_not_fit_are_refused_by_name(changes, said):
    with pytest.raises(UserError) as error:
        filled({name: w for name, w in (TENSORS | changes).items() if w is not None})
    assert said in str(error.value)


@pytest.mark.parametrize("settings, said", [
    ({"freq_shift": 0}, "freq_shift is 0; google/ddpm-* has 1"),
    ({"attention_head_dim": 8}, "attention_head_dim is 8"),
    ({"downsample_padding": 1}, "downsample_padding is 1"),
    ({"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier'"),
    ({"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule is 'squaredcos_cap_v2'"),
    ({"variance_type": "learned"}, "variance_type of diffusers"),
    ({"up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"]}, "attend at different levels"),
    ({"down_block_types": ["DownBlock2D"]}, "down_block_types is ['DownBlock2D']; google/ddpm-* has 3 of"),
    ({"norm_epsilon": 1e-6}, "Did you mean 'norm_eps'"),
])  # fmt: skip
def test_other_settings_are_refused_in_one_line(settings, said):
    with pytest.raises(UserError) as error:
        SOURCE.translate(META["config"] | settings)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_settings_that_are_not_given_mean_diffusers_defaults():
    for name in ("freq_shift", "flip_sin_to_cos", "downsample_padding", "norm_eps", "attention_head_dim"):
        with pytest.raises(UserError, match=f"{name} is"):
            SOURCE.translate({key: value for key, value in META["config"].items() if key != name})


def test_other_files_and_networks_are_refused():
    assert SOURCE.read(TENSORS | {"time_proj.weight": np.ones(3)}) is None  # google/ncsnpp-*
    model = run_of(META["config"]).model
    other = model.__class__(ddpm.build(), model.path, model.prediction, model.preconditioning)
    with pytest.raises(UserError, match="attention_up is 'last'; google/ddpm-. has 'each'"):
        SOURCE.layout(other, (16, 16, 3))
