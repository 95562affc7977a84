"""Published weights of improved-diffusion: CIFAR-10, ImageNet 64 x 64, LSUN and the upsampler (arXiv:2102.09672)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from score_flow.model import Model
from score_flow.networks.adm import ADM
from score_flow.pretrained import base
from score_flow.types import UserError, check_choice

MARKS = ("time_embed.0.weight", "input_blocks.0.0.weight")
CHANNEL_MULT = {32: (1, 2, 2, 2), 64: (1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4)}  # by image size
CLASSES = 1000
SCHEDULES = {"uniform": "grid", "loss-second-moment": "loss_second_moment"}  # laws of the step in training

# Their settings with the values that they have when they are not given.
DIFFUSION = {
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "predict_xstart": False,
    "rescale_timesteps": True,
    # How to sample and what to minimise.
    "sigma_small": False,
    "timestep_respacing": "",
    "use_kl": False,
    "rescale_learned_sigmas": True,
}
SHARED = {"dropout": 0.0, "num_heads_upsample": -1, "use_checkpoint": False}
TRAIN = {  # of their training script
    "lr": 1e-4,
    "weight_decay": 0.0,
    "batch_size": 1,
    "ema_rate": "0.9999",
    "log_interval": 10,
    "save_interval": 10_000,
    "lr_anneal_steps": 0,
    "schedule_sampler": "uniform",
    # How their program runs: no result depends on it here.
    "microbatch": -1,
    "resume_checkpoint": "",
    "use_fp16": False,
    "fp16_scale_growth": 1e-3,
}
FLAGS = SHARED | {
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "attention_resolutions": "16,8",
    "learn_sigma": False,
    "class_cond": False,
    "use_scale_shift_norm": True,
}
CONSTRUCTOR = SHARED | {  # of their UNetModel, which has none for the width, the blocks, attention and channels
    "model_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 1,
    "attention_resolutions": (),
    "in_channels": 3,
    "out_channels": 3,
    "channel_mult": (1, 2, 4, 8),
    "conv_resample": True,
    "dims": 2,
    "num_classes": None,
    "use_scale_shift_norm": False,
}

# Ours -> theirs within a block.
RESIDUAL = {
    "norm_0": "in_layers.0",
    "conv_0": "in_layers.2",
    "embedding": "emb_layers.1",
    "norm_1": "out_layers.0",
    "conv_1": "out_layers.3",
    "shortcut": "skip_connection",
}
ATTENTION = {"norm": "norm", "qkv": "qkv", "out": "proj_out"}


def read(tree: Any) -> base.Checkpoint | None:
    """Read the weights of a bare state_dict, or None; only the name of the file says which: here always "ema"."""
    if not isinstance(tree, Mapping) or not all(isinstance(tree.get(mark), np.ndarray) for mark in MARKS):
        return None
    return base.Checkpoint({"ema": tree})


def layout(model: Model, image_shape: tuple[int, int, int]) -> base.Layout:
    """Return the tensors of an ADM. The label table gets a row of zeros for the null class, which they do not have."""
    network = model.network
    if not isinstance(network, ADM):
        raise UserError(
            f"the checkpoint is improved-diffusion's U-Net (adm); config.network is {type(network).__name__}."
        )
    condition = {"label": jnp.zeros(1, jnp.int32), "low_res": jnp.zeros((1, *image_shape))}
    shapes = jax.eval_shape(lambda key: model.init(key, (1, *image_shape), condition), jax.random.key(0))
    modules = _modules(network.channel_mult, network.num_res_blocks, set(shapes))
    leaves = {}
    for (*path, kind), leaf in flatten_dict(shapes).items():
        module = "/".join(path)
        name = f"{modules[module]}.{'bias' if kind == 'bias' else 'weight'}"
        leaves[f"{module}/{kind}"] = base.Leaf((name,), _reading(kind, len(leaf.shape)))
    return base.Layout(leaves, {})


def _reading(kind: str, rank: int) -> Callable[[np.ndarray], np.ndarray]:
    if kind == "embedding":
        return lambda table: np.concatenate([table, np.zeros_like(table[:1])])
    if kind == "kernel":
        return base.conv if rank == 4 else base.pointwise  # the latter reads a dense layer too
    return base.same


def _modules(channel_mult: tuple[int, ...], num_res_blocks: int, ours: set[str]) -> dict[str, str]:
    """The name of each module of theirs by ours ("down_0_1/conv_0"): they count the blocks of each way through."""
    single = {
        "embedding/time_0": "time_embed.0",
        "embedding/time_1": "time_embed.2",
        "embedding/label": "label_emb",
        "conv_in": "input_blocks.0.0",
        "norm_out": "out.0",
        "conv_out": "out.2",
    }
    blocks = {"middle_0": "middle_block.0", "middle_attention": "middle_block.1", "middle_1": "middle_block.2"}
    i = 0
    for level in range(len(channel_mult)):
        for block in range(num_res_blocks):
            i += 1
            blocks[f"down_{level}_{block}"] = f"input_blocks.{i}.0"
            blocks[f"down_{level}_{block}_attention"] = f"input_blocks.{i}.1"
        i += 1  # resampling to the next level counts as a block, with or without weights
        single[f"down_{level + 1}_resample"] = f"input_blocks.{i}.0.op"
    i = 0
    for level in reversed(range(len(channel_mult))):
        for block in range(num_res_blocks + 1):
            blocks[f"up_{level}_{block}"] = f"output_blocks.{i}.0"
            blocks[f"up_{level}_{block}_attention"] = f"output_blocks.{i}.1"
            i += 1
        # On the way up it is part of the level's last block, after the attention if there is one.
        place = 2 if f"up_{level}_{block}_attention" in ours else 1
        single[f"up_{level}_resample"] = f"output_blocks.{i - 1}.{place}.conv"
    inner = {
        f"{name}/{part}": f"{theirs}.{their_part}"
        for name, theirs in blocks.items()
        for part, their_part in (ATTENTION if name.endswith("attention") else RESIDUAL).items()
    }
    return single | inner


def translate(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Their flags, or the arguments of their UNetModel, as overrides of our config; what is absent has their default.

    The image's size is `image_size`, or `large_size` (and `small_size`) for the upsampler, whose low-resolution image
    then is a condition. Raises UserError for an unknown setting, a value of another type, or one that we cannot say.
    """
    given, upsampler = _complete(settings)
    size = given["large_size"] if upsampler else given["image_size"]
    network = given if "model_channels" in settings else _constructor(given, size)
    channels, classes = network["in_channels"], network["num_classes"] or 0
    if network["dims"] != 2 or network["out_channels"] not in (channels, 2 * channels):
        raise UserError(
            f"improved-diffusion: dims must be 2 and out_channels in_channels = {channels} or its double, "
            f"got dims={network['dims']}, out_channels={network['out_channels']}."
        )
    return {
        "network.name": "adm",
        "network.width": network["model_channels"],
        "network.channel_mult": tuple(network["channel_mult"]),
        "network.num_res_blocks": network["num_res_blocks"],
        "network.attention_resolutions": tuple(size // rate for rate in network["attention_resolutions"] if rate),
        "network.num_heads": network["num_heads"],
        "network.num_heads_upsample": network["num_heads_upsample"],
        "network.scale_shift_norm": network["use_scale_shift_norm"],
        "network.conv_resample": network["conv_resample"],
        "network.remat": "full" if network["use_checkpoint"] else "none",
        "network.dropout": float(network["dropout"]),
        "model.low_res": given["small_size"] if upsampler else 0,
        "model.learn_sigma": network["out_channels"] == 2 * channels,
        "model.class_conditional": classes > 0,
        "data.image_shape": (size, size, channels),
        "data.num_classes": classes,
        **_process(given),
        **_training(given, network["out_channels"] == 2 * channels),
    }


def _training(given: dict[str, Any], learned: bool) -> dict[str, Any]:
    """Return what is minimised on the steps of the chain, AdamW without warm-up or clipping, ancestral sampling."""
    n = given["diffusion_steps"]
    check_choice("schedule_sampler of improved-diffusion", given["schedule_sampler"], SCHEDULES)
    fixed, hybrid = "small" if given["sigma_small"] else "large", learned and not given["use_kl"]
    return {
        "training.objective": "vlb" if given["use_kl"] else "hybrid" if hybrid else "simple",
        # Theirs adds L_t times n/1000, or as it is; ours adds n L_t times this.
        "training.vlb_weight": 1e-3 if given["rescale_learned_sigmas"] or not hybrid else 1 / n,
        "training.variance": "range" if learned else fixed,
        "data.uniform_dequantization": False,
        "model.ema_rate": tuple(float(rate) for rate in str(given["ema_rate"]).split(",")),
        "model.ema_warmup": False,
        "training.batch_size": given["batch_size"],
        "training.log_freq": given["log_interval"],
        "training.snapshot_freq": given["save_interval"],
        "training.time_sampler.name": SCHEDULES[given["schedule_sampler"]],
        "training.time_sampler.n": n,
        "training.smallest_time": 0.0,
        "optim.optimizer": "AdamW",
        "optim.lr": given["lr"],
        "optim.weight_decay": given["weight_decay"],
        "optim.warmup": 0,
        "optim.grad_clip": 0.0,
        "sampling.name": "ancestral",
        "sampling.n_steps": n,
        "sampling.t_min": 0.0,
        "sampling.variance": "range" if learned else fixed,
        "sampling.respacing": given["timestep_respacing"],
    }


def _complete(settings: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """(the settings with their defaults, whether they are an upsampler's)."""
    upsampler = "large_size" in settings or "small_size" in settings
    sizes = {"large_size": 256, "small_size": 64} if upsampler else {"image_size": 64}
    defaults = (CONSTRUCTOR if "model_channels" in settings else FLAGS) | DIFFUSION | TRAIN | sizes
    for name, value in settings.items():
        check_choice("a setting of improved-diffusion", name, defaults)
        if not _fits(value, defaults[name]):
            raise UserError(
                f"improved-diffusion: {name} is {value!r}; give one such as its default, {defaults[name]!r}."
            )
    return defaults | dict(settings), upsampler


def _fits(value: Any, default: Any) -> bool:
    """Say whether a value is of the type of a default."""
    if isinstance(default, str):  # read where it is used
        return True
    if isinstance(default, tuple):
        return isinstance(value, tuple | list) and all(type(v) is int for v in value)
    return type(value) is type(default) or (type(default) in (float, type(None)) and type(value) is int)


def _constructor(flags: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Return the arguments of UNetModel that their flags mean."""
    if size not in CHANNEL_MULT:
        raise UserError(f"improved-diffusion: image size is {size}; allowed: {', '.join(map(str, CHANNEL_MULT))}.")
    return {name: flags[name] for name in SHARED} | {
        "model_channels": flags["num_channels"],
        "num_res_blocks": flags["num_res_blocks"],
        "num_heads": flags["num_heads"],
        "attention_resolutions": tuple(size // height for height in _heights(flags["attention_resolutions"])),
        "in_channels": 3,
        "out_channels": 6 if flags["learn_sigma"] else 3,
        "channel_mult": CHANNEL_MULT[size],
        "conv_resample": True,
        "dims": 2,
        "num_classes": CLASSES if flags["class_cond"] else None,
        "use_scale_shift_norm": flags["use_scale_shift_norm"],
    }


def _heights(given: Any) -> list[int]:
    """Their "16,8"; a command line may have read it as 16 or (16, 8)."""
    try:
        heights = [int(height) for height in (given if isinstance(given, tuple | list) else str(given).split(","))]
    except (TypeError, ValueError):
        heights = []
    if not heights or min(heights) < 1:
        raise UserError(f"improved-diffusion: attention_resolutions is {given!r}; give heights such as '16,8'.")
    return heights


def _process(given: Mapping[str, Any]) -> dict[str, Any]:
    """Path, prediction and what the network is told of the time: step i of n is our t = (i + 1) / n."""
    n = given["diffusion_steps"]
    check_choice("noise_schedule of improved-diffusion", given["noise_schedule"], ("linear", "cosine"))
    if n < 1:
        raise UserError(f"improved-diffusion: diffusion_steps is {n}; it must be at least 1.")
    step = 1000 / n if given["rescale_timesteps"] else 1.0  # the network is told i * step
    return {
        "path.name": "ddpm",
        "path.schedule": given["noise_schedule"],
        "path.n": n,
        "model.prediction": "data" if given["predict_xstart"] else "noise",
        "model.time": "t",
        "model.time_scale": n * step,
        "model.time_shift": -step,
    }


def build() -> base.Project:
    """The project as a source of weights."""
    return base.Project(read, layout, translate, "json.dump(vars(args), open(FILE, 'w')) in its image_train.py")
