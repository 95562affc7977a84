"""Outputs of JiT's and LightningDiT's own code, from their checkpoints through the importer; time is mirrored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evaluation.modes.importing import open_published
from score_flow.build import build_conditioning, build_model
from score_flow.config.loading import load, with_settings
from score_flow.errors import UserError
from score_flow.pretrained.base import fill
from tests.discover import thinned
from tests.golden_data import COMMITTED
from tests.golden_data import load as golden
from tests.pretrained.imported import Imported, allowed, nhwc, relative_error, shapes_of

FOLDER = COMMITTED / "dit"
CASES = sorted(f.stem for f in FOLDER.glob("*.json"))
PROJECTS = {"jit": "jit", "lig": "lightningdit"}  # by the first letters of a case


def opened(case):
    description, arrays = golden(str(FOLDER / case))
    return description, arrays, FOLDER / description["checkpoint"]


def test_the_cases_have_every_option():
    kwargs = [golden(str(FOLDER / case))[0]["kwargs"] for case in CASES]
    for option in ("use_swiglu", "use_rope", "use_rmsnorm", "use_qknorm", "wo_shift", "in_context_len"):
        assert any(each.get(option) for each in kwargs) and not all(each.get(option) for each in kwargs), option


@pytest.mark.parametrize("x64", thinned([True, False], 2))
@pytest.mark.parametrize("case", CASES)
def test_outputs_of_their_code(case, x64):
    description, arrays, file = opened(case)
    dtype, stored = ("float64", "out64") if x64 else ("float32", "out")
    with jax.enable_x64(x64):
        imported = Imported(file, description["kwargs"], dtype)
        model = imported.model()
        denoiser = model.bind(imported.params(model, "raw"), {"label": jnp.asarray(arrays["y"], jnp.int32)})
        x, t = nhwc(arrays["x"], dtype), jnp.asarray(arrays["t"], dtype)
        # JiT's predicts x0, the others velocities, from noise to data.
        ours = denoiser.x0(x, 1 - t) if case.startswith("jit") else -denoiser.velocity(x, 1 - t)
        assert relative_error(ours, arrays[stored]) <= allowed(stored, arrays, "out64")


@pytest.mark.parametrize("case", thinned(CASES, 2))
def test_both_sets_of_weights_are_read_and_known_for_their_project(case):
    description, _, file = opened(case)
    published = open_published(str(file))
    assert published.project == PROJECTS[case[:3]] and set(published.checkpoint.weights) == {"raw", "ema"}
    imported = Imported(file, description["kwargs"], "float32")
    model = imported.model()
    raw, ema = (imported.params(model, kind) for kind in ("raw", "ema"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, 1.03 * a, rtol=1e-6), raw, ema)


def test_what_a_loss_learns_beside_the_network_is_in_no_published_file():
    description, _, file = opened("lightningdit_plain")
    published = open_published(str(file))
    model, shape = model_of(description["kwargs"], published.source.translate)
    with pytest.raises(UserError, match="learns heights beside the network.*import with training.objective = simple"):
        published.params(model, shape, shapes_of(model, shape) | {"objective": {"heights": None}}, "raw")


def model_of(settings, translate):
    config = with_settings(load("configs/base.py", [], translate(settings)), {})
    shape = tuple(config.data.image_shape)
    return build_model(config, shape[-1], build_conditioning(config, config.data.num_classes)), shape


@pytest.mark.parametrize("case", thinned(CASES, 2))
def test_a_layout_is_strict_by_name_and_shape(case):
    description, _, file = opened(case)
    published = open_published(str(file))
    model, shape = model_of(description["kwargs"], published.source.translate)
    layout, shapes = published.source.layout(model, shape), shapes_of(model, shape)
    tensors = dict(published.checkpoint.weights["raw"])
    for name in ("blocks.0.attn.qkv.weight", "final_layer.linear.bias", "pos_embed"):
        changed = tensors | {name: tensors[name][..., :-1]}
        with pytest.raises(UserError, match=name):
            fill(shapes, layout, changed)
    with pytest.raises(UserError, match="blocks.9.attn.qkv.weight is not part"):
        fill(shapes, layout, tensors | {"blocks.9.attn.qkv.weight": tensors["blocks.0.attn.qkv.weight"]})
    del tensors["y_embedder.embedding_table.weight"]
    with pytest.raises(UserError, match="y_embedder.embedding_table.weight is missing"):
        fill(shapes, layout, tensors)
