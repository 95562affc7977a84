"""Outputs of improved MeanFlow's own code, from its checkpoint through the importer."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

from evaluation.modes.importing import open_published
from main import main
from score_flow.networks import mit
from score_flow.pretrained.base import fill
from score_flow.pretrained.projects import imeanflow
from score_flow.types import UserError
from tests.golden_data import COMMITTED, load
from tests.pretrained.imported import Imported, allowed, shapes_of

FOLDER = COMMITTED / "imeanflow"
FILE = FOLDER / "mit.msgpack"


@pytest.fixture(scope="module")
def stored():
    description, arrays = load(str(FOLDER / "mit"))
    return description["kwargs"], arrays


@pytest.mark.parametrize("x64", [True, False], ids=["float64", "float32"])
def test_outputs_of_their_code(stored, x64):
    kwargs, arrays = stored
    dtype, name = ("float64", "out64") if x64 else ("float32", "out")
    with jax.enable_x64(x64):
        imported = Imported(FILE, kwargs, dtype)
        model = imported.model()
        told = np.stack([1 - 1 / arrays["w"], arrays["t_min"], arrays["t_max"]], axis=1)
        condition = {
            "label": jnp.asarray(arrays["y"]), "span": jnp.asarray(arrays["h"], dtype),
            "guidance": jnp.asarray(told, dtype),
        }  # fmt: skip
        denoiser = model.bind(imported.params(model, "ema"), condition)
        ours = np.asarray(denoiser.velocity(jnp.asarray(arrays["x"], dtype), jnp.asarray(arrays["t"], dtype)), float)
    reference = arrays[name]
    assert np.linalg.norm(ours - reference) / np.linalg.norm(reference) <= allowed(name, arrays, "out64")


def test_both_sets_of_weights_are_read_without_the_auxiliary_head(stored):
    published = open_published(str(FILE))
    assert published.project == "imeanflow" and published.checkpoint.step == 7
    raw, ema = (published.checkpoint.weights[kind] for kind in ("raw", "ema"))
    assert raw.keys() == ema.keys() and not any(name.startswith(imeanflow.AUXILIARY) for name in ema)
    for name in ema:
        np.testing.assert_allclose(ema[name], 1.03 * raw[name], rtol=1e-6)


def test_names_of_the_first_releases():
    tree = serialization.msgpack_restore(FILE.read_bytes())
    back = {theirs: former for former, theirs in imeanflow.FORMER.items()}
    rename = lambda tree: {back.get(k, k): rename(v) if isinstance(v, dict) else v for k, v in tree.items()}  # noqa: E731
    former = imeanflow.read({"step": 7, "ema_params": rename(tree["ema_params"])})
    assert former.weights["ema"].keys() == imeanflow.read(tree).weights["ema"].keys() and set(former.weights) == {"ema"}


def test_a_layout_is_strict_by_name_and_shape(stored):
    imported = Imported(FILE, stored[0], "float32")
    model = imported.model()
    layout, shapes = imported.layout(model), shapes_of(type(model)(model.network.inner, *_rest(model)), (4, 4, 3))
    tensors = dict(imported.published.checkpoint.weights["ema"])
    fill(shapes, layout, tensors)
    for name in ("shared_blocks_0/attn/q_proj/_flax_linear/kernel", "u_final_layer/linear/_flax_linear/bias"):
        with pytest.raises(UserError, match=name):
            fill(shapes, layout, tensors | {name: tensors[name][..., :-1]})
    with pytest.raises(UserError, match="u_heads_5/attn_scale is not part"):
        fill(shapes, layout, tensors | {"u_heads_5/attn_scale": tensors["u_heads_0/attn_scale"]})
    del tensors["omega_tokens"]
    with pytest.raises(UserError, match="omega_tokens is missing"):
        fill(shapes, layout, tensors)


def _rest(model):
    return model.path, model.prediction, model.preconditioning


@pytest.mark.parametrize("size, millions", [("B_2", 89), ("M_2", 174), ("L_2", 409), ("XL_2", 610)])
def test_the_published_sizes(size, millions):
    """The counts of the paper's table, without the head that is not read, to a million."""
    width, depth, heads = imeanflow.SIZES[size]
    network = mit.build(
        width=width, depth=depth, num_heads=heads, see_time=False, span=True, guidance=True, num_classes=1000
    )
    x, label = jnp.zeros((1, 32, 32, 4)), {"label": jnp.zeros(1, jnp.int32)}
    shapes = jax.eval_shape(network.init, jax.random.key(0), x, jnp.zeros(1), label)["params"]
    assert round(sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6) == millions


@pytest.mark.slow
def test_from_the_file_to_samples_in_one_call(stored, tmp_path, capsys):
    """Guidance and its interval are told to the network."""
    reference = tmp_path / "settings.json"
    reference.write_text(json.dumps(stored[0]))
    workdir = tmp_path / "run"
    flags = ["--mode=import", f"--checkpoint={FILE}", f"--reference_config={reference}", f"--workdir={workdir}"]
    assert main(flags) == 0
    few = ["--config.eval.num_samples=4", "--config.guidance.scale=4.0", "--config.guidance.interval=(0.2, 0.7)"]
    assert main([f"--workdir={workdir}", "--mode=sample", *few]) == 0
