"""Consistency models' CIFAR-10 files: outputs of their own code, of weights drawn at random, and all else by name."""

import functools
import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization
from flax.traverse_util import unflatten_dict

from main import main
from sampling import consistency, flow_map
from sampling.base import keys
from score_flow.errors import UserError
from score_flow.numerics import expand
from score_flow.pretrained.base import fill
from score_flow.pretrained.projects import consistency_models
from tests.discover import thinned
from tests.golden_data import COMMITTED
from tests.pretrained.imported import Imported, bare_of, shapes_of

META = json.loads((COMMITTED / "consistency_models/meta.json").read_text())
KINDS = ("ve", "vp")


@functools.cache
def drawn(kind):
    """The weights that the golden outputs are of."""

    def draw(name, shape):
        noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        if name.endswith("/W") and len(shape) == 1:
            return np.float32(noise)
        return np.float32(noise / np.sqrt(np.prod(shape[:-1])) if len(shape) > 1 else 0.1 * noise + ("scale" in name))

    return {name: draw(name, shape) for name, shape in META["shapes"][kind].items()}


def written(file, kind, target=True):
    """A file as theirs: of distillation, with a target, or of EDM."""
    tree = unflatten_dict(drawn(kind), sep="/")
    raw = jax.tree.map(lambda w: 0.5 * w, tree)
    contents = {"step": 7, "lr": 4e-4, "ema_rate": 0.9999, "params": raw, "params_ema": tree, "model_state": {}}
    contents |= {"opt_state": {"0": {"count": np.int32(7)}}, "rng_state": {"0": np.zeros(2, np.uint32), "1": {}}}
    file.write_bytes(serialization.msgpack_serialize(contents | ({"target_params": raw} if target else {})))
    return file


def settings_of(kind, loss):
    config = META["config"][kind]
    return config | {"training": {"sde": "kvesde", "loss": loss}}


def imported(tmp_path, kind, loss, dtype="float32"):
    found = Imported(written(tmp_path / "checkpoint_80", kind, loss != "dsm"), settings_of(kind, loss), dtype)
    return found, found.model()


def golden():
    with np.load(COMMITTED / "consistency_models/outputs.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def time_of(path, level):
    """The time of a noise level of the two VE paths."""
    if path.schedule == "linear":
        return (level - path.sigma_min) / (path.sigma_max - path.sigma_min)
    return np.log(level / path.sigma_min) / np.log(path.sigma_max / path.sigma_min)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_denoised_images_are_those_of_their_code(kind, tmp_path):
    arrays = golden()
    with jax.enable_x64(True):
        found, model = imported(tmp_path, kind, "dsm", "float64")
        denoiser = model.bind(found.params(model, "ema"))
        ours = denoiser.x0(jnp.asarray(arrays["x"]), jnp.asarray(time_of(model.path, arrays["t"])))
        np.testing.assert_allclose(ours, arrays[f"{kind}_denoiser"], rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", thinned(KINDS, 2))
def test_a_jump_to_the_data_is_that_of_their_code(kind, tmp_path):
    """At every noise level, the least among them, where it is none; others are no numbers, all else is refused."""
    arrays = golden()
    with jax.enable_x64(True):
        found, model = imported(tmp_path, kind, "consistency_adaptive", "float64")
        denoiser = model.bind(found.params(model, "ema"))
        x, t = jnp.asarray(arrays["x"]), jnp.asarray(time_of(model.path, arrays["t"]))
        u = denoiser.average_velocity(x, t, jnp.zeros_like(t))
        np.testing.assert_allclose(x - expand(t, x) * u, arrays[f"{kind}_distiller"], rtol=0, atol=1e-11)
        np.testing.assert_array_equal((x - expand(t, x) * u)[0], x[0])
        assert np.isfinite(u).all() and np.isnan(denoiser.average_velocity(x, t, t / 2)[1:]).all()
    for ask in (denoiser.estimate, denoiser.score, denoiser.velocity):
        with pytest.raises(UserError, match="jump to t = 0 alone"):
            ask(x, t)


@pytest.mark.slow
def test_samples_are_those_of_algorithm_1(tmp_path):
    """One call: f(80 z, 80); of two the second begins at f + sqrt(s^2 - least^2) z'."""
    with jax.enable_x64(True):
        found, model = imported(tmp_path, "vp", "continuous", "float64")
        denoiser = model.bind(found.params(model, "ema"))
        f = lambda x, t: x - t * denoiser.average_velocity(x, jnp.full(len(x), t), jnp.zeros(len(x)))  # noqa: E731
        one = consistency.build()(keys(0, 2), denoiser, (8, 8, 3)).x
        start = denoiser.start(jax.vmap(jax.random.split)(keys(0, 2))[:, 0], (8, 8, 3), 1.0)
        np.testing.assert_allclose(one, f(start, 1.0), rtol=1e-12)
        assert abs(start.std() - 80) < 10  # of 384 numbers

        two = consistency.build(n_steps=2)(keys(0, 2), denoiser, (8, 8, 3)).x
        steps = jax.vmap(jax.random.split)(keys(0, 2))[:, 1]
        noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), (8, 8, 3)))(steps)
        level = (80 + 0.002) / 2
        np.testing.assert_allclose(two, f(one + (level**2 - 0.002**2) ** 0.5 * noise, 0.5), rtol=1e-9)
    for sampler, said in ((consistency.build(1e-5), "t_min is 1e-05"), (flow_map.build(0.0), "name = consistency")):
        with pytest.raises(UserError, match=said):
            sampler(keys(0, 2), denoiser, (8, 8, 3))


def test_both_sets_of_weights_and_the_step(tmp_path):
    found, model = imported(tmp_path, "ve", "dsm")
    assert (found.published.project, found.published.checkpoint.step) == ("consistency_models", 7)
    raw, ema = (found.params(model, kind) for kind in ("raw", "ema"))
    jax.tree.map(lambda raw, ema: np.testing.assert_array_equal(2 * raw, ema), raw, ema)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layout_is_strict_by_name_and_shape(kind, tmp_path):
    found, model = imported(tmp_path, kind, "consistency")
    layout, shapes, tensors = found.layout(model), shapes_of(bare_of(model), (8, 8, 3)), drawn(kind)
    fill(shapes, layout, tensors)
    for name in ("Conv_0/kernel", "AttnBlockpp_0/NIN_3/W", "ResnetBlockBigGANpp_1/Dense_0/bias"):
        with pytest.raises(UserError, match=f"{name} has shape"):
            fill(shapes, layout, tensors | {name: tensors[name][..., :-1]})
        with pytest.raises(UserError, match=f"{name} is missing"):
            fill(shapes, layout, {other: w for other, w in tensors.items() if other != name})
    with pytest.raises(UserError, match="Conv_9/kernel is not part"):
        fill(shapes, layout, tensors | {"Conv_9/kernel": tensors["Conv_0/kernel"]})


def test_settings_of_theirs():
    ours = consistency_models.translate(settings_of("ve", "dsm"))
    assert ours["model.prediction"] == "edm" and ours["sampling.name"] == "heun" and "path.schedule" not in ours
    ours = consistency_models.translate(settings_of("ve", "continuous"))
    assert ours["model.prediction"] == "consistency" and ours["path.schedule"] == "linear"
    assert ours["network.channel_mult"] == [1, 2] and ours["network.fir_kernel"] == [1, 3, 3, 1]


@pytest.mark.parametrize("section, change, said", [
    ("model", {"double_heads": True}, "model.double_heads of the reference config is True"),
    ("model", {"colour": 3}, "model.colour"),
    ("training", {"sde": "vpsde", "loss": "dsm"}, "training.sde of the reference config is 'vpsde'"),
    ("training", {"sde": "kvesde", "loss": "progressive_distillation"}, "progressive_distillation"),
    ("training", {"sde": "kvesde"}, "does not give training.loss"),
])  # fmt: skip
def test_other_settings_are_refused(section, change, said):
    config = META["config"]["ve"]
    changed = change if section == "training" else config[section] | change
    with pytest.raises(UserError, match=said):
        consistency_models.translate(config | {section: changed})


@pytest.mark.slow
def test_from_the_file_to_samples(tmp_path, capsys):
    reference, workdir = tmp_path / "settings.json", tmp_path / "run"
    reference.write_text(json.dumps(settings_of("vp", "consistency")))
    file = written(tmp_path / "checkpoint_80", "vp")
    flags = ["--mode=import", f"--checkpoint={file}", f"--reference_config={reference}", f"--workdir={workdir}"]
    assert main(flags) == 0
    assert main([f"--workdir={workdir}", "--mode=sample", "--config.eval.num_samples=4"]) == 0
    few = ["--config.sampling.n_steps=2", "--config.eval.num_samples=4"]
    assert main([f"--workdir={workdir}", "--mode=sample", "--eval_folder=two", *few]) == 0
    capsys.readouterr()
    for job in ("likelihood", "trajectory", "likelihood_flow_map", "bound"):
        assert main([f"--workdir={workdir}", "--mode=eval", f"--config.eval.only=('{job}',)"]) == 2
        assert f"the job {job} needs a velocity" in capsys.readouterr().err
