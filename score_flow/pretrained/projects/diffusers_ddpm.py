"""google/ddpm-*: DDPM's U-Nets at 32 x 32 and 256 x 256 as diffusers' UNet2DModel (Ho et al., arXiv:2006.11239)."""

from collections.abc import Mapping
from typing import Any

from score_flow.errors import UserError, check_choice
from score_flow.model import Model
from score_flow.networks.ddpm import DDPM
from score_flow.pretrained.base import Checkpoint, Layout, Project, refuse_other, size
from score_flow.pretrained.layouts import diffusers

OTHER_MARKS = ("time_proj.weight", "time_proj.W", "class_embedding.weight")  # of networks that this is not
# The fields of DDPM that these have one value of.
NETWORK = {
    "embedding": "positional",
    "conditional": True,
    "resblock": "ddpm",
    "resamp_with_conv": True,
    "fir": False,
    "skip_rescale": False,
    "progressive": "none",
    "progressive_input": "none",
    "nonlinearity": "swish",
    "groups": 32,
    "attention_up": "each",
    "num_classes": 0,
}
# Settings that DDPM has one value of, and what diffusers takes where a file is silent.
FIXED = {
    "_class_name": ("UNet2DModel", "UNet2DModel"),
    "in_channels": (3, 3),
    "out_channels": (3, 3),
    "act_fn": ("silu", "silu"),
    "time_embedding_type": ("positional", "positional"),
    "freq_shift": (1, 0),
    "flip_sin_to_cos": (False, True),
    "downsample_padding": (0, 1),
    "mid_block_scale_factor": (1, 1),
    "norm_eps": (1e-6, 1e-5),
    "norm_num_groups": (32, 32),
    "attention_head_dim": (None, 8),  # None: one head
    "add_attention": (True, True),
    "attn_norm_num_groups": (None, None),
    "center_input_sample": (False, False),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2D"),
    "resnet_time_scale_shift": ("default", "default"),
    "class_embed_type": (None, None),
    "num_class_embeds": (None, None),
}
BLOCKS = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("UpBlock2D", "AttnUpBlock2D")}
SCHEDULER = {  # of DDPMScheduler, whose file may be joined to the network's: the only values, and if not given
    "beta_schedule": ("linear", "linear"),
    "beta_start": (1e-4, 1e-4),
    "beta_end": (0.02, 0.02),
    "num_train_timesteps": (1000, 1000),
    "trained_betas": (None, None),
    "prediction_type": ("epsilon", "epsilon"),
}
VARIANCES = {"fixed_small": "small", "fixed_large": "large"}
OTHER = ("dropout", "variance_type", "clip_sample", "timestep_values")


def read(tree: Any) -> Checkpoint | None:
    """Read the weights of a UNet2DModel that is told of the step, without labels, under the names of today."""
    if not diffusers.is_unet(tree) or any(mark in tree for mark in OTHER_MARKS):
        return None
    return Checkpoint({"ema": {diffusers.current(name): w for name, w in tree.items()}})


def layout(model: Model, image_shape: tuple[int, int, int]) -> Layout:
    """Return diffusers' name of every parameter; raises UserError for a network that is not google/ddpm's."""
    network = model.network
    if not isinstance(network, DDPM):
        raise UserError(f"the checkpoint is diffusers' DDPM (ddpm); config.network is {type(network).__name__}.")
    refuse_other(network, NETWORK, "google/ddpm-*")
    return diffusers.layout(model, image_shape, *_modules(len(network.channel_mult), network.num_res_blocks))


def _modules(n_levels: int, num_res_blocks: int) -> tuple[dict[str, str], dict[str, str]]:
    """Return their names of single layers and of blocks, by ours; on the way up they count from the lowest level."""
    single = {
        "embedding/time_0": "time_embedding.linear_1",
        "embedding/time_1": "time_embedding.linear_2",
        "conv_in": "conv_in",
        "norm_out": "conv_norm_out",
        "conv_out": "conv_out",
    }
    blocks = {f"middle_{i}": f"mid_block.resnets.{i}" for i in range(2)}
    blocks["middle_attention"] = "mid_block.attentions.0"
    for level in range(n_levels):
        down, up = f"down_blocks.{level}", f"up_blocks.{n_levels - 1 - level}"
        for i in range(num_res_blocks + 1):  # the last one on the way up only
            for ours, theirs in (("down", down), ("up", up)):
                blocks[f"{ours}_{level}_{i}"] = f"{theirs}.resnets.{i}"
                blocks[f"{ours}_{level}_{i}_attention"] = f"{theirs}.attentions.{i}"
        # Resampling belongs to the level that it leaves.
        single[f"down_{level + 1}_resample"] = f"{down}.downsamplers.0.conv"
        single[f"up_{level}_resample"] = f"{up}.upsamplers.0.conv"
    return single, blocks


def translate(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides of our config from config.json, with the scheduler's settings joined to it or without them.

    Raises UserError for a setting that is unknown, or that google/ddpm-* does not have.
    """
    for name in settings:
        check_choice(
            "a setting of diffusers", name, (*FIXED, *diffusers.SIZES, *BLOCKS, *SCHEDULER, *OTHER, *diffusers.UNUSED)
        )
    for name, (allowed, default) in (FIXED | SCHEDULER).items():
        if (got := settings.get(name, default)) != allowed:
            raise UserError(f"diffusers: {name} is {got!r}; google/ddpm-* has {allowed!r}.")
    _, _, channels = (size(settings, name) for name in diffusers.SIZES)
    attending = diffusers.attending(settings, BLOCKS, len(channels), "google/ddpm-*")
    variance, n = settings.get("variance_type", "fixed_small"), SCHEDULER["num_train_timesteps"][0]
    check_choice("variance_type of diffusers", variance, VARIANCES)
    return diffusers.network_of(settings, NETWORK, attending, name="ddpm", whose="DDPM") | {
        "path.name": "ddpm",
        "path.schedule": "linear",
        "path.n": n,
        "model.prediction": "noise",
        "model.time": "t",  # step i of n is our t = (i + 1) / n
        "model.time_scale": float(n),
        "model.time_shift": -1.0,
        "model.input": "none",
        "data.centered": True,
        "sampling.name": "ancestral",
        "sampling.n_steps": n,
        "sampling.t_min": 0.0,
        "sampling.variance": VARIANCES[variance],
    }


def build() -> Project:
    """Return the project as a source of weights."""
    return Project(read, layout, translate, "the config.json beside the weights")
