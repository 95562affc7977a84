"""Checkpoints of improved-diffusion give the outputs that their own code gives; their flags give our config."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.errors import UserError
from score_flow.model import count_parameters
from score_flow.pretrained import base
from score_flow.pretrained.projects import improved_diffusion
from score_flow.pretrained.readers.files import read
from tests.discover import thinned
from tests.golden_data import golden_dir, some

SOURCE = improved_diffusion.build()
CASES = sorted(config.parent for config in golden_dir().glob("improved_diffusion/models/*/config.json"))


def experiment_of(settings, dtype="float32"):
    return experiment(load("configs/base.py", [], SOURCE.translate(settings) | {"network.dtype": dtype}))


def shapes_of(ours):
    """Shapes of the parameters; nothing is computed."""
    return jax.eval_shape(ours.init, jax.random.key(0))


def settings_of(config):
    """Flags, or the constructor's arguments with the sizes under the names that the flags have."""
    if "kw" in config:
        return config["kw"]
    names = {"S": "large_size" if config["cls"] == "SuperResModel" else "image_size", "low": "small_size"}
    return {names.get(name, name): value for name, value in config.items() if name != "cls"}


@functools.cache
def converted(folder):
    """(the source's settings, our parameters in float32)."""
    settings = settings_of(json.loads((folder / "config.json").read_text())["config"])
    tensors = SOURCE.read(read(next(folder.glob("*.pt")))).weights["ema"]
    ours = experiment_of(settings)
    return settings, base.fill(shapes_of(ours), SOURCE.layout(ours.model, ours.image_shape), tensors)


@pytest.mark.parametrize("folder", some(CASES, 4), ids=lambda folder: folder.name)
@pytest.mark.parametrize("dtype", thinned(["float64", "float32"], 2))
def test_outputs_are_those_of_the_source(folder, dtype):
    settings, params = converted(folder)
    with np.load(folder / "io.npz", allow_pickle=False) as arrays, jax.enable_x64(dtype == "float64"):
        io = {name: array.transpose(0, 2, 3, 1) if array.ndim == 4 else array for name, array in arrays.items()}
        ours, params = experiment_of(settings, dtype), base.as_dtype(params, dtype)
        x = jnp.asarray(io["x"], dtype)
        condition = {"low_res": jnp.asarray(io["low_res"], dtype)} if "low_res" in io else {}
        condition |= {"label": jnp.asarray(io["y"], "int32")} if "y" in io else {}
        run = jax.jit(lambda params, time: ours.model.network.apply({"params": params}, x, time, condition))
        for time in ("t_int", "t_float"):
            output, exact = run(params, jnp.asarray(io[time], dtype)), io[f"out_{time}64"]
            bound = 1e-9 if dtype == "float64" else max(1e-5, 3 * relative_error(io[f"out_{time}"], exact))
            assert output.dtype == dtype and relative_error(output, exact) < bound


def relative_error(a, b):
    return np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b)


CIFAR = {"image_size": 32, "num_channels": 128, "num_res_blocks": 3, "learn_sigma": True, "dropout": 0.3}
IMAGENET = {"image_size": 64, "num_channels": 128, "num_res_blocks": 3, "learn_sigma": True}
CONDITIONAL = IMAGENET | {"num_channels": 192, "class_cond": True}
LSUN = {"image_size": 256, "num_res_blocks": 2, "num_heads": 1, "learn_sigma": True, "attention_resolutions": "16"}
UPSAMPLER = {"large_size": 256, "small_size": 64, "num_channels": 192, "learn_sigma": True, "class_cond": True}


@pytest.mark.parametrize(
    "flags, parameters",
    [
        (CIFAR, 52_546_438),
        (IMAGENET, 121_063_942),
        (CONDITIONAL, 273_049_350),
        (LSUN | {"use_scale_shift_norm": False}, 113_676_678),
        (UPSAMPLER, 279_792_390),
    ],
    ids=["cifar10", "imagenet64", "imagenet64_cond", "lsun", "upsampler"],
)
@pytest.mark.slow
def test_published_flags_give_the_published_sizes(flags, parameters):
    ours = experiment_of(flags)
    null_row = 4 * ours.model.network.width if flags.get("class_cond") else 0  # theirs has no null class
    assert count_parameters(shapes_of(ours)) == parameters + null_row


FLAGS = CIFAR | {"diffusion_steps": 4000, "noise_schedule": "cosine", "use_checkpoint": True}
MODEL = {
    "network.name": "adm",
    "network.width": 128,
    "network.channel_mult": (1, 2, 2, 2),
    "network.num_res_blocks": 3,
    "network.attention_resolutions": (16, 8),
    "network.num_heads": 4,
    "network.num_heads_upsample": -1,
    "network.scale_shift_norm": True,
    "network.conv_resample": True,
    "network.remat": "full",
    "network.dropout": 0.3,
    "path.name": "ddpm",
    "path.schedule": "cosine",
    "path.n": 4000,
    "model.prediction": "noise",
    "model.time": "t",
    "model.time_scale": 1000.0,
    "model.time_shift": -0.25,
    "model.low_res": 0,
    "model.learn_sigma": True,
    "model.class_conditional": False,
    "data.image_shape": (32, 32, 3),
    "data.num_classes": 0,
}
TRAINING = {
    "training.objective": "hybrid",
    "training.vlb_weight": 1e-3,
    "training.variance": "range",
    "data.uniform_dequantization": False,
    "model.ema_rate": (0.9999,),
    "model.ema_warmup": False,
    "training.batch_size": 1,
    "training.log_freq": 10,
    "training.snapshot_freq": 10_000,
    "training.time_sampler.name": "grid",
    "training.time_sampler.n": 4000,
    "training.smallest_time": 0.0,
    "optim.optimizer": "AdamW",
    "optim.lr": 1e-4,
    "optim.weight_decay": 0.0,
    "optim.warmup": 0,
    "optim.grad_clip": 0.0,
    "sampling.name": "ancestral",
    "sampling.n_steps": 4000,
    "sampling.t_min": 0.0,
    "sampling.variance": "range",
    "sampling.respacing": "",
}


def test_flags_become_a_config():
    overrides = SOURCE.translate(FLAGS)
    training = {key: value for key, value in overrides.items() if key not in MODEL}
    assert overrides == MODEL | training and training == TRAINING


@pytest.mark.parametrize(
    "settings, changed",
    [
        ({"class_cond": True}, {"model.class_conditional": True, "data.num_classes": 1000}),
        ({"predict_xstart": True}, {"model.prediction": "data"}),
        ({"attention_resolutions": 32}, {"network.attention_resolutions": (32,)}),  # as a command line reads 32 and
        ({"attention_resolutions": (8, 4)}, {"network.attention_resolutions": (8, 4)}),  # 8,4
        ({"sigma_small": True}, {"sampling.variance": "small", "training.variance": "small"}),
        ({"use_kl": True, "rescale_learned_sigmas": False}, {"training.objective": "vlb", "training.vlb_weight": 1e-3}),
        ({"ema_rate": "0.999,0.9999"}, {"model.ema_rate": (0.999, 0.9999)}),
        ({"schedule_sampler": "loss-second-moment"}, {"training.time_sampler.name": "loss_second_moment"}),
        ({"timestep_respacing": "ddim25"}, {"sampling.respacing": "ddim25"}),
    ],
)
def test_each_flag_changes_its_fields_only(settings, changed):
    assert SOURCE.translate(settings) == SOURCE.translate({}) | changed


def test_flags_and_arguments_of_the_constructor_say_the_same():
    arguments = {
        "model_channels": 128,
        "in_channels": 3,
        "out_channels": 6,
        "num_res_blocks": 3,
        "attention_resolutions": [2, 4],  # rates of downsampling
        "channel_mult": [1, 2, 2, 2],
        "num_heads": 4,
        "use_scale_shift_norm": True,
        "dropout": 0.3,
        "image_size": 32,
    }
    assert SOURCE.translate(arguments) == SOURCE.translate(CIFAR)


@pytest.mark.parametrize("n", [10, 1000, 4000])
@pytest.mark.parametrize("rescale", [True, False])
def test_the_network_is_told_the_label_of_each_step(n, rescale):
    overrides = SOURCE.translate({"diffusion_steps": n, "rescale_timesteps": rescale})
    steps = np.arange(n)
    told = overrides["model.time_scale"] * (steps + 1) / n + overrides["model.time_shift"]
    labels = steps * (1000 / n) if rescale else steps
    np.testing.assert_allclose(told, labels, rtol=0, atol=4 * np.finfo(float).eps * max(n, 1000))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_chanels": 64}, "'num_chanels'.*Did you mean 'num_channels'"),
        ({"image_size": 128}, "image size is 128; allowed: 32, 64, 256"),
        ({"num_channels": "128"}, "num_channels is '128'; give one such as its default, 128"),
        ({"class_cond": 1}, "class_cond is 1; .*False"),
        ({"noise_schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"attention_resolutions": "16;8"}, "attention_resolutions is '16;8'"),
        ({"attention_resolutions": "16,0"}, "attention_resolutions is '16,0'"),
        ({"diffusion_steps": 0}, "diffusion_steps is 0"),
        ({"model_channels": 32, "out_channels": 4}, "out_channels=4"),
        ({"model_channels": 32, "attention_resolutions": "2,4"}, "attention_resolutions is '2,4'"),
        ({"model_channels": 32, "num_classes": True}, "num_classes is True"),
        ({"model_channels": 32, "num_channels": 32}, "'num_channels'"),
        ({"large_size": 256, "image_size": 256}, "'image_size'"),
    ],
)
def test_what_we_cannot_say_is_refused(settings, message):
    with pytest.raises(UserError, match=message) as error:
        SOURCE.translate(settings)
    assert "\n" not in str(error.value)


def synthetic(settings):
    """(shapes of our parameters, their layout, tensors of the shapes that the source gives them)."""
    ours = experiment_of(settings)
    shapes, layout = shapes_of(ours), SOURCE.layout(ours.model, ours.image_shape)
    tensors = {}
    for path, leaf in flatten_dict(shapes).items():
        n = len(leaf.shape)
        shape = leaf.shape if n == 1 else (leaf.shape[-1], leaf.shape[-2], *leaf.shape[:-2])
        if path[-1] == "embedding":
            shape = (leaf.shape[0] - 1, leaf.shape[1])  # no null class
        tensors[layout.leaves["/".join(path)].names[0]] = np.ones(shape, np.float32)
    return shapes, layout, tensors


def test_names_count_the_blocks_of_each_way():
    arguments = {"model_channels": 8, "num_res_blocks": 1, "channel_mult": (1, 2), "attention_resolutions": (2,)}
    shapes, layout, tensors = synthetic(arguments | {"image_size": 8, "num_classes": 5})
    names = {
        "conv_in/bias": "input_blocks.0.0.bias",
        "down_0_0/conv_0/kernel": "input_blocks.1.0.in_layers.2.weight",
        "down_1_resample/kernel": "input_blocks.2.0.op.weight",
        "down_1_0/shortcut/kernel": "input_blocks.3.0.skip_connection.weight",
        "down_1_0_attention/norm/scale": "input_blocks.3.1.norm.weight",
        "middle_attention/out/bias": "middle_block.1.proj_out.bias",
        "up_1_1_attention/qkv/kernel": "output_blocks.1.1.qkv.weight",
        "up_1_resample/kernel": "output_blocks.1.2.conv.weight",  # after the attention
        "up_0_0/embedding/kernel": "output_blocks.2.0.emb_layers.1.weight",
        "conv_out/kernel": "out.2.weight",
        "embedding/time_1/kernel": "time_embed.2.weight",
        "embedding/label/embedding": "label_emb.weight",
    }
    assert {path: layout.leaves[path].names for path in names} == {path: (name,) for path, name in names.items()}
    table = base.fill(shapes, layout, tensors)["embedding"]["label"]["embedding"]
    assert table.shape == (6, 32) and table[:5].all() and not table[5].any()


def test_a_state_dict_is_known_by_its_names():
    shapes, layout, tensors = synthetic({"model_channels": 8, "channel_mult": (1,), "image_size": 8})
    assert SOURCE.read(tensors).weights == {"ema": tensors}
    foreign = (tensors | {improved_diffusion.MARKS[0]: "text"}, {}, [], None)
    assert [SOURCE.read(tree) for tree in foreign] == [None] * len(foreign)
    del tensors["out.2.bias"]
    with pytest.raises(UserError, match=r"out\.2\.bias is missing.*label_emb\.weight is not part"):
        base.fill(shapes, layout, tensors | {"label_emb.weight": np.zeros((3, 32), np.float32)})


def test_another_network_is_refused():
    other = experiment(load("configs/base.py", [], {"network.name": "mlp", "data.image_shape": (2, 2, 1)}))
    with pytest.raises(UserError, match=r"adm.*MLP"):
        SOURCE.layout(other.model, other.image_shape)
