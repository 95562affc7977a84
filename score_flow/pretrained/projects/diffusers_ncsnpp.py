"""google/ncsnpp-*: score_sde's NCSN++ at 256 x 256 and 1024 x 1024 as diffusers' UNet2DModel (arXiv:2011.13456).

diffusers' conversion copies score_sde's tensors one by one, and the names below follow it; no outputs of diffusers were
at hand to compare with.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from score_flow.errors import UserError, check_choice
from score_flow.model import Model
from score_flow.networks.ncsnpp import NCSNpp
from score_flow.pretrained.base import Checkpoint, Layout, Project, refuse_other, size
from score_flow.pretrained.layouts import diffusers

FREQUENCIES, OLD_FREQUENCIES = "time_proj.weight", "time_proj.W"  # one tensor under both names at first
# The fields of NCSNpp that their "skip" blocks have one value of.
NETWORK = {
    "embedding": "fourier",
    "conditional": True,
    "resblock": "biggan",
    "fir": True,
    "fir_kernel": (1.0, 3.0, 3.0, 1.0),
    "skip_rescale": True,
    "progressive": "output_skip",
    "progressive_input": "input_skip",
    "progressive_combine": "sum",
    "nonlinearity": "swish",
    "groups": None,
    "num_classes": 0,
}
# Settings that NCSNpp has one value of, and what diffusers takes where a file is silent.
FIXED = {
    "_class_name": ("UNet2DModel", "UNet2DModel"),
    "in_channels": (3, 3),
    "out_channels": (3, 3),
    "act_fn": ("silu", "silu"),
    "time_embedding_type": ("fourier", "positional"),
    "mid_block_scale_factor": (math.sqrt(2), 1),
    "norm_eps": (1e-6, 1e-5),
    "attention_head_dim": (None, 8),  # None: one head
    "add_attention": (True, True),
    "attn_norm_num_groups": (None, None),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2D"),
    "resnet_time_scale_shift": ("default", "default"),
    "class_embed_type": (None, None),
    "num_class_embeds": (None, None),
}
BLOCKS = {
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D"),
}
# Of ScoreSdeVeScheduler, whose file may be joined to the network's.
SCHEDULER = {
    "sigma_min": "path.sigma_min",
    "sigma_max": "path.sigma_max",
    "num_train_timesteps": "sampling.n_steps",
    "sampling_eps": "sampling.t_min",
    "snr": "sampling.snr",
    "correct_steps": "sampling.n_corrector_steps",
}
OTHER = ("center_input_sample", "dropout", "norm_num_groups")
UNUSED = (*diffusers.UNUSED, "downsample_padding", "flip_sin_to_cos", "freq_shift")  # by these blocks
WIDEST_GROUPING = 128  # channels from which min(channels / 4, 32) is 32


def read(tree: Any) -> Checkpoint | None:
    """Read the weights of a UNet2DModel with Fourier features, under the names of today."""
    if not diffusers.is_unet(tree):
        return None
    frequencies = [tree[name] for name in (FREQUENCIES, OLD_FREQUENCIES) if name in tree]
    if not frequencies:
        return None
    if not np.array_equal(frequencies[0], frequencies[-1]):
        raise UserError(f"{FREQUENCIES} and {OLD_FREQUENCIES} are one tensor to diffusers, but differ here.")
    tensors = {diffusers.current(name): w for name, w in tree.items() if name != OLD_FREQUENCIES}
    return Checkpoint({"ema": tensors | {FREQUENCIES: frequencies[0]}})


def layout(model: Model, image_shape: tuple[int, int, int]) -> Layout:
    """diffusers' name of every parameter. UserError for a network that is not google/ncsnpp's."""
    network = model.network
    if not isinstance(network, NCSNpp):
        raise UserError(f"the checkpoint is diffusers' NCSN++ (ncsnpp); config.network is {type(network).__name__}.")
    refuse_other(network, NETWORK, "diffusers' NCSN++")
    single, blocks = _modules(len(network.channel_mult), network.num_res_blocks)
    return diffusers.layout(model, image_shape, single, blocks)


def _modules(n_levels: int, num_res_blocks: int) -> tuple[dict[str, str], dict[str, str]]:
    """Their names of single layers and of blocks, by ours; on the way up they count from the lowest level."""
    single = {
        "time_features/fourier": "time_proj",
        "embedding/time_0": "time_embedding.linear_1",
        "embedding/time_1": "time_embedding.linear_2",
        "conv_in": "conv_in",
        "norm_up_0_output": "conv_norm_out",
        "conv_up_0_output": "conv_out",
    }
    blocks = {f"middle_{i}": f"mid_block.resnets.{i}" for i in range(2)} | {
        "middle_attention": "mid_block.attentions.0"
    }
    for level in range(n_levels):
        down, up = f"down_blocks.{level}", f"up_blocks.{n_levels - 1 - level}"
        for i in range(num_res_blocks + 1):  # the last one on the way up only
            blocks |= {f"down_{level}_{i}": f"{down}.resnets.{i}", f"up_{level}_{i}": f"{up}.resnets.{i}"}
            blocks[f"down_{level}_{i}_attention"] = f"{down}.attentions.{i}"
        blocks[f"up_{level}_attention"] = f"{up}.attentions.0"
        # Resampling belongs to the level that it leaves.
        blocks[f"down_{level + 1}_resample"] = f"{down}.resnet_down"
        single[f"down_{level + 1}_input"] = f"{down}.skip_conv"
        if level:
            blocks[f"up_{level}_resample"] = f"{up}.resnet_up"
            single |= {f"norm_up_{level}_output": f"{up}.skip_norm", f"conv_up_{level}_output": f"{up}.skip_conv"}
    return single, blocks


def translate(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides of our config from config.json, with the scheduler's settings joined to it or without a path.

    Raises UserError for a setting that is unknown, or that NCSNpp does not have.
    """
    for name in settings:
        check_choice("a setting of diffusers", name, (*FIXED, *diffusers.SIZES, *BLOCKS, *SCHEDULER, *OTHER, *UNUSED))
    for name, (allowed, default) in FIXED.items():
        got = settings.get(name, default)
        if got != allowed and not (isinstance(allowed, float) and math.isclose(got or 0, allowed, rel_tol=1e-6)):
            raise UserError(f"diffusers: {name} is {got!r}; google/ncsnpp-* has {allowed!r}.")
    _, _, channels = (size(settings, name) for name in diffusers.SIZES)
    attention = _attention(settings, channels)
    return diffusers.network_of(settings, NETWORK, attention, name="ncsnpp", whose="NCSNpp") | {
        "model.prediction": "scaled_score",
        "model.time": "log_sigma",
        "model.time_scale": 1.0,
        "model.time_shift": 0.0,
        "model.input": "2x-1" if settings.get("center_input_sample", False) else "none",
        "data.centered": False,  # diffusers' samples are in [0, 1]
        **_process(settings),
    }


def _attention(settings: Mapping[str, Any], channels: tuple[int, ...]) -> list[int]:
    """Return the levels with attention; both ways must agree, and their groups be those of NCSNpp."""
    levels = diffusers.attending(settings, BLOCKS, len(channels), "google/ncsnpp-*")
    # Their attention has 32 groups whatever its channels, the other layers of these blocks min(channels / 4, 32).
    narrow = [channels[level] for level in levels if channels[level] < WIDEST_GROUPING]
    groups = settings.get("norm_num_groups")
    other = [c for c in (channels[0], channels[-1]) if groups not in (None, min(c // 4, 32))]
    if narrow or other:
        raise UserError(f"diffusers: groups of {(narrow + other)[0]} channels are not those of google/ncsnpp-*.")
    return levels


def _process(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the path and score_sde's sampler for it, where the scheduler's settings are there."""
    given = {ours: settings[name] for name, ours in SCHEDULER.items() if settings.get(name) is not None}
    if not {"path.sigma_min", "path.sigma_max"} <= given.keys():
        return {}
    sampler = {"name": "predictor_corrector", "predictor": "reverse_diffusion", "corrector": "langevin"}
    return given | {"path.name": "ve"} | {f"sampling.{name}": value for name, value in sampler.items()}


def build() -> Project:
    return Project(read, layout, translate, "the config.json beside the weights")
