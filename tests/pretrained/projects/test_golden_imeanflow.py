"""Outputs of improved MeanFlow's own code, from its checkpoint through the importer."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

from evaluation.modes.importing import open_published
from main import main
from score_flow.errors import UserError
from score_flow.networks import mit
from score_flow.pretrained.base import fill
from score_flow.pretrained.projects import imeanflow
from tests.golden_data import COMMITTED, load
from tests.pretrained.imported import Imported, allowed, bare_of, shapes_of

FOLDER = COMMITTED / "imeanflow"
FILE = FOLDER / "mit.msgpack"


@pytest.fixture(scope="module")
def stored():
    description, arrays = load(str(FOLDER / "mit"))
    return description["kwargs"], arrays


def told(arrays, dtype):
    guidance = np.stack([1 - 1 / arrays["w"], arrays["t_min"], arrays["t_max"]], axis=1)
    return {
        "label": jnp.asarray(arrays["y"]), "span": jnp.asarray(arrays["h"], dtype),
        "guidance": jnp.asarray(guidance, dtype),
    }  # fmt: skip


@pytest.mark.parametrize(
    "dtype, head",
    [
        ("float64", 2),
        ("float32", 0),
        pytest.param("float64", 0, marks=pytest.mark.slow),
        pytest.param("float32", 2, marks=pytest.mark.slow),
    ],
)
def test_outputs_of_their_code(stored, dtype, head):
    """The average velocity, with the second head and without it, and what that head says."""
    kwargs, arrays = stored
    suffix = "64" if dtype == "float64" else ""
    with jax.enable_x64(dtype == "float64"):
        imported = Imported(FILE, kwargs, dtype, **{"network.velocity_head": head})
        model = imported.model()
        params, x, t = imported.params(model, "ema"), *(jnp.asarray(arrays[name], dtype) for name in "xt")
        outputs = jax.jit(bare_of(model).with_velocity)(params, x, t, told(arrays, dtype))
        velocity = np.asarray(model.bind(params, told(arrays, dtype)).velocity(x, t))
    np.testing.assert_allclose(velocity, outputs[0], rtol=1e-5, atol=1e-6)
    assert (outputs[1] is None) == (head == 0)
    for ours, name in zip(outputs, ("out", "velocity"), strict=True):
        if ours is not None:
            reference = arrays[f"{name}{suffix}"]
            error = np.linalg.norm(np.asarray(ours, float) - reference) / np.linalg.norm(reference)
            assert error <= allowed(f"{name}{suffix}", arrays, f"{name}64")


def test_sampling_knows_nothing_of_the_second_head(stored):
    """Its parameters reach no operation of what samples; those of the first do."""
    imported = Imported(FILE, stored[0], "float32")
    model = bare_of(imported.model())
    shapes = shapes_of(model, (4, 4, 3))
    leaves, tree = jax.tree.flatten_with_path(shapes)
    x, times = jnp.zeros((1, 4, 4, 3)), jnp.ones(1)

    def jump(*leaves):
        denoiser = model.bind(jax.tree.unflatten(tree, leaves), {"label": jnp.zeros(1, jnp.int32)})
        return denoiser.average_velocity(x, times, 0 * times)

    program = jax.make_jaxpr(jump)(*(leaf for _, leaf in leaves)).jaxpr
    used = {id(variable) for equation in program.eqns for variable in equation.invars}
    names = [path[0].key for path, _ in leaves]
    unused = {name for name, variable in zip(names, program.invars, strict=True) if id(variable) not in used}
    assert unused == {"velocity_blocks", "velocity_norm_out", "velocity_out"}


def test_both_sets_of_weights_are_read_whole(stored):
    published = open_published(str(FILE))
    assert published.project == "imeanflow" and published.checkpoint.step == 7
    raw, ema = (published.checkpoint.weights[kind] for kind in ("raw", "ema"))
    assert raw.keys() == ema.keys() and "v_heads_1/attn_scale" in ema
    for name in ema:
        np.testing.assert_allclose(ema[name], 1.03 * raw[name], rtol=1e-6)


def test_names_of_the_first_releases():
    tree = serialization.msgpack_restore(FILE.read_bytes())
    back = {theirs: former for former, theirs in imeanflow.FORMER.items()}
    rename = lambda tree: {back.get(k, k): rename(v) if isinstance(v, dict) else v for k, v in tree.items()}  # noqa: E731
    former = imeanflow.read({"step": 7, "ema_params": rename(tree["ema_params"])})
    assert former.implied == {"network.velocity_head": 2}
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
    for name in [name for name in tensors if name.startswith("v_")]:
        with pytest.raises(UserError, match=f"{name} is missing"):
            fill(shapes, layout, {other: w for other, w in tensors.items() if other != name})
    with pytest.raises(UserError, match="u_heads_5/attn_scale is not part"):
        fill(shapes, layout, tensors | {"u_heads_5/attn_scale": tensors["u_heads_0/attn_scale"]})
    del tensors["omega_tokens"]
    with pytest.raises(UserError, match="omega_tokens is missing"):
        fill(shapes, layout, tensors)


def _rest(model):
    return model.path, model.prediction, model.preconditioning


WHOLE = {"B_2": 145_596_960, "M_2": 230_570_016, "L_2": 509_752_352, "XL_2": 711_113_760}


@pytest.mark.parametrize("size, millions", [("B_2", 89), ("M_2", 174), ("L_2", 409), ("XL_2", 610)])
def test_the_published_sizes(size, millions):
    """The counts of the paper's table, without the second head, to a million; with it those of their code."""
    width, depth, heads = imeanflow.SIZES[size]
    x, label = jnp.zeros((1, 32, 32, 4)), {"label": jnp.zeros(1, jnp.int32)}
    for head in (0, 8):
        network = mit.build(
            width=width, depth=depth, num_heads=heads, see_time=False, span=True, guidance=True, num_classes=1000,
            velocity_head=head,
        )  # fmt: skip
        shapes = jax.eval_shape(network.init, jax.random.key(0), x, jnp.zeros(1), label)["params"]
        n = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        assert n == WHOLE[size] if head else round(n / 1e6) == millions


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
