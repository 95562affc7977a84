"""Published weights of improved-diffusion and guided-diffusion: CIFAR-10, ImageNet, LSUN and the upsamplers.

Nichol and Dhariwal 2021 (arXiv:2102.09672, arXiv:2105.05233). Settings that guided-diffusion alone has tell the two
apart, whose defaults differ.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from score_flow.errors import UserError, check_choice
from score_flow.model import Model
from score_flow.networks.adm import ADM
from score_flow.pretrained import base
from score_flow.pretrained.layouts import adm

MARKS = ("time_embed.0.weight", "input_blocks.0.0.weight")
CHANNEL_MULT = {32: (1, 2, 2, 2), 64: (1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4)}  # by image size
GUIDED_MULT = {64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4), 512: (0.5, 1, 1, 2, 2, 4, 4)}
UPSAMPLER_MULT = {64: (1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4), 512: (1, 1, 2, 2, 4, 4)}  # of guided-diffusion
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
GUIDED = {"num_head_channels": -1, "resblock_updown": False, "use_new_attention_order": False}  # what it alone has
GUIDED_DIFFUSION = {"rescale_timesteps": False, "rescale_learned_sigmas": False}
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
    return adm.layout(model, image_shape)


def translate(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Their flags, or the arguments of their UNetModel, as overrides of our config; what is absent has their default.

    The image's size is `image_size`, or `large_size` (and `small_size`) for the upsampler, whose low-resolution image
    then is a condition. Raises UserError for an unknown setting, a value of another type, or one that we cannot say.
    """
    given, upsampler = _complete(settings)
    size = given["large_size"] if upsampler else given["image_size"]
    network = given if "model_channels" in settings else _constructor(given, size, upsampler)
    channels, classes = network["in_channels"], network["num_classes"] or 0
    if network["dims"] != 2 or network["out_channels"] not in (channels, 2 * channels):
        raise UserError(
            f"improved-diffusion: dims must be 2 and out_channels in_channels = {channels} or its double, "
            f"got dims={network['dims']}, out_channels={network['out_channels']}."
        )
    return {
        "network.name": "adm",
        **_widths(network),
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
        **_guided(given),
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
    network = CONSTRUCTOR if "model_channels" in settings else FLAGS
    guided = GUIDED | GUIDED_DIFFUSION | ({} if network is CONSTRUCTOR else {"channel_mult": ""})
    defaults = network | DIFFUSION | TRAIN | sizes | (guided if settings.keys() & GUIDED.keys() else {})
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
        return isinstance(value, tuple | list) and all(type(v) is int or v == 0.5 for v in value)
    return type(value) is type(default) or (type(default) in (float, type(None)) and type(value) is int)


def _constructor(flags: Mapping[str, Any], size: int, upsampler: bool) -> dict[str, Any]:
    """Return the arguments of UNetModel that their flags mean."""
    guided = "num_head_channels" in flags
    table = CHANNEL_MULT if not guided else UPSAMPLER_MULT if upsampler else GUIDED_MULT
    mult = _heights(flags, "channel_mult") if flags.get("channel_mult") else table.get(size)
    if mult is None:
        project = "guided-diffusion" if guided else "improved-diffusion"
        raise UserError(f"{project}: image size is {size}; allowed: {', '.join(map(str, table))}.")
    return {name: flags[name] for name in SHARED} | {
        "model_channels": flags["num_channels"],
        "num_res_blocks": flags["num_res_blocks"],
        "num_heads": flags["num_heads"],
        "attention_resolutions": tuple(size // height for height in _heights(flags, "attention_resolutions")),
        "in_channels": 3,
        "out_channels": 6 if flags["learn_sigma"] else 3,
        "channel_mult": tuple(mult),
        "conv_resample": True,
        "dims": 2,
        "num_classes": CLASSES if flags["class_cond"] else None,
        "use_scale_shift_norm": flags["use_scale_shift_norm"],
    }


def _heights(flags: Mapping[str, Any], name: str) -> list[int]:
    """Their "16,8"; a command line may have read it as 16 or (16, 8)."""
    given = flags[name]
    try:
        heights = [int(height) for height in (given if isinstance(given, tuple | list) else str(given).split(","))]
    except (TypeError, ValueError):
        heights = []
    if not heights or min(heights) < 1:
        raise UserError(f"improved-diffusion: {name} is {given!r}; give numbers such as '16,8'.")
    return heights


def _widths(network: Mapping[str, Any]) -> dict[str, Any]:
    """Return the channels of the first level, and those of each over it; theirs may begin with half a width."""
    width, mult = network["model_channels"], tuple(network["channel_mult"])
    if mult[0] >= 1:
        return {"network.width": width, "network.channel_mult": mult}
    first = int(mult[0] * width)
    return {
        "network.width": first,
        "network.channel_mult": tuple(int(m * width) // first for m in mult),
        "network.embedding_width": width,
    }


def _guided(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what only guided-diffusion's networks have."""
    if "num_head_channels" not in given:
        return {}
    heads = given["num_head_channels"]
    return {
        "network.head_channels": None if heads == -1 else heads,
        "network.resample_blocks": given["resblock_updown"],
        "network.qkv_first": given["use_new_attention_order"],
    }


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
