"""guided-diffusion's U-Nets and classifiers: the outputs of its own code on drawn weights, and the published sizes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.errors import UserError
from score_flow.model import count_parameters
from score_flow.networks.adm_classifier import ADMClassifier
from score_flow.pretrained import base
from score_flow.pretrained.layouts import adm
from score_flow.pretrained.projects import improved_diffusion
from tests.golden_data import COMMITTED
from tests.pretrained.drawn_weights import drawn

SOURCE, FOLDER = improved_diffusion.build(), COMMITTED / "guided_diffusion"
CASES = json.loads((FOLDER / "meta.json").read_text())["cases"]
SIDE = 16
SLOW = ("old_order", "upsampler")
SMALL = {"width": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (8,), "head_channels": 16}


def golden():
    with np.load(FOLDER / "io.npz") as arrays:
        return dict(arrays)


def settings_of(case):
    arguments = dict(CASES[case]["arguments"])
    if case == "upsampler":
        arguments |= {"large_size": arguments.pop("image_size"), "small_size": 8}
    return arguments


def run_of(settings, dtype="float32"):
    return experiment(load("configs/base.py", [], SOURCE.translate(settings) | {"network.dtype": dtype}))


def shapes_of(run):
    return jax.eval_shape(run.init, jax.random.key(0))


def error(value, reference):
    return np.linalg.norm(value - reference) / np.linalg.norm(reference)


@pytest.mark.parametrize("case", ["new_order", *(pytest.param(c, marks=pytest.mark.slow) for c in SLOW)])
def test_outputs_are_the_sources(case):
    """Of either order of attention's channels, of half a width at first, of labels and of a small image."""
    with jax.enable_x64(True):
        arrays, tensors = golden(), drawn(CASES[case]["shapes"])
        run = run_of(settings_of(case), "float64")
        params = base.fill(
            shapes_of(run), SOURCE.layout(run.model, run.image_shape), SOURCE.read(tensors).weights["ema"]
        )
        condition = {"label": jnp.asarray(arrays["y"], "int32")} if case == "new_order" else {}
        condition |= {"low_res": jnp.asarray(arrays["low_res"])} if case == "upsampler" else {}
        network = run.model.network
        out = jax.jit(network.apply)(
            {"params": base.as_dtype(params, "float64")}, arrays["x"], jnp.asarray(arrays["t"]), condition
        )
        assert out.dtype == jnp.float64 and error(out, arrays[case]) < 1e-9


def test_logits_are_the_sources():
    with jax.enable_x64(True):
        arrays, network = golden(), ADMClassifier(**SMALL, num_classes=1000, dtype="float64")
        shape, tensors = (SIDE, SIDE, 3), drawn(CASES["classifier"]["shapes"])
        shapes = adm.classifier_shapes(network, shape)
        params = base.as_dtype(base.fill(shapes, adm.classifier_layout(network, shape), tensors), "float64")
        out = jax.jit(network.apply)({"params": params}, arrays["x"], jnp.asarray(arrays["t"]))
        assert out.dtype == jnp.float64 and error(out, arrays["classifier"]) < 1e-9


SHARED = {"learn_sigma": True, "resblock_updown": True, "attention_resolutions": "32,16,8", "num_channels": 256}
HEADS, UPSAMPLER = {"num_head_channels": 64}, {"num_channels": 192, "class_cond": True}
PUBLISHED = {  # their flags, and how many parameters their own code makes of them
    "64": (
        SHARED | HEADS | UPSAMPLER | {"image_size": 64, "num_res_blocks": 3, "use_new_attention_order": True},
        295904454,
    ),
    "128": (SHARED | {"image_size": 128, "num_heads": 4, "class_cond": True}, 421529606),
    "256": (SHARED | HEADS | {"image_size": 256, "class_cond": True}, 553838086),
    "512": (SHARED | HEADS | {"image_size": 512, "class_cond": True}, 558997638),
    "64_256": (SHARED | UPSAMPLER | {"large_size": 256, "small_size": 64, "num_heads": 4}, 311795910),
    "128_512": (
        SHARED | HEADS | UPSAMPLER | {"large_size": 512, "small_size": 128, "attention_resolutions": "32,16"},
        308835270,
    ),
}
CLASSIFIERS = {
    64: ({"channel_mult": (1, 2, 3, 4), "num_res_blocks": 4}, 65438568),
    128: ({"channel_mult": (1, 1, 2, 3, 4)}, 42568040),
    256: ({"channel_mult": (1, 1, 2, 2, 4, 4)}, 54096360),
    512: ({"width": 64, "channel_mult": (1, 2, 2, 4, 4, 8, 8), "embedding_width": 128}, 54448360),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_flags_give_the_published_sizes(name):
    """Ours have a row of labels more, for the null class."""
    flags, parameters = PUBLISHED[name]
    run = run_of(flags)
    assert count_parameters(shapes_of(run)) == parameters + 4 * flags["num_channels"]
    names = [name for leaf in SOURCE.layout(run.model, run.image_shape).leaves.values() for name in leaf.names]
    assert len(names) == len(set(names))


@pytest.mark.slow
@pytest.mark.parametrize("side", CLASSIFIERS)
def test_published_classifiers(side):
    fields, parameters = CLASSIFIERS[side]
    assert (
        count_parameters(adm.classifier_shapes(ADMClassifier(**fields, num_classes=1000), (side, side, 3)))
        == parameters
    )


def test_flags_that_it_alone_has_tell_it_from_improved_diffusion():
    """Whose defaults differ: what the network is told of the step, and the weight of the bound."""
    flags = {"image_size": 64, "learn_sigma": True}
    improved, guided = (
        SOURCE.translate(flags),
        SOURCE.translate(flags | {"resblock_updown": False, "diffusion_steps": 500}),
    )
    assert (improved["model.time_scale"], improved["model.time_shift"]) == (1000.0, -1.0)
    assert (guided["model.time_scale"], guided["model.time_shift"]) == (500.0, -1.0)
    assert (improved["training.vlb_weight"], guided["training.vlb_weight"]) == (1e-3, 1 / 500)
    assert not any("resample_blocks" in key for key in improved) and guided["network.resample_blocks"] is False
    half = SOURCE.translate({"image_size": 512, "num_channels": 256, "num_head_channels": 64})
    assert (half["network.width"], half["network.embedding_width"], half["network.head_channels"]) == (128, 256, 64)
    assert half["network.channel_mult"] == (1, 2, 2, 4, 4, 8, 8)
    assert SOURCE.translate(flags | {"resblock_updown": True, "channel_mult": "1,2"})["network.channel_mult"] == (1, 2)


@pytest.mark.parametrize("settings, said", [
    ({"image_size": 32, "resblock_updown": True}, "guided-diffusion: image size is 32; allowed: 64, 128, 256, 512"),
    ({"image_size": 64, "resblock_updown": 1}, "resblock_updown is 1"),
    ({"image_size": 64, "resblock_updown": True, "channel_mult": "1;2"}, "channel_mult is '1;2'"),
    ({"image_size": 128}, "improved-diffusion: image size is 128"),
])  # fmt: skip
def test_what_we_cannot_say_is_refused(settings, said):
    with pytest.raises(UserError) as refused:
        SOURCE.translate(settings)
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("changes, said", [
    ({"input_blocks.2.0.emb_layers.1.bias": None}, "input_blocks.2.0.emb_layers.1.bias is missing"),
    ({"input_blocks.2.0.op.weight": np.ones((32, 32, 3, 3), np.float32)}, "op.weight is not part of this network"),
    ({"output_blocks.1.2.in_layers.2.bias": np.ones(3, np.float32)}, "in_layers.2.bias has shape (3,)"),
])  # fmt: skip
def test_tensors_that_do_not_fit_are_refused_by_name(changes, said):
    run = run_of(settings_of("new_order"))
    tensors = {name: w for name, w in (drawn(CASES["new_order"]["shapes"]) | changes).items() if w is not None}
    with pytest.raises(UserError) as refused:
        base.fill(shapes_of(run), SOURCE.layout(run.model, run.image_shape), tensors)
    assert said in str(refused.value)


def test_heads_that_do_not_divide_are_refused():
    network = ADMClassifier(**SMALL | {"head_channels": 24}, num_classes=3)
    with pytest.raises(UserError, match="heads of 24 channels do not divide the 64 of down_1_0_attention"):
        adm.classifier_shapes(network, (SIDE, SIDE, 3))
