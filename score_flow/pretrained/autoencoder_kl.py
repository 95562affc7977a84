"""Published weights of AutoencoderKL, in a folder: diffusers' two files, or VA-VAE's and its latents' moments."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from score_flow.config.loading import read_json
from score_flow.errors import UserError, check_choice
from score_flow.networks.autoencoder_kl import AutoencoderKL
from score_flow.pretrained import compvis_autoencoder
from score_flow.pretrained.base import Layout, Leaf, as_dtype, conv, fill, pointwise, same, size
from score_flow.pretrained.readers.files import read
from score_flow.runs.files import sha256_of
from score_flow.runs.places import local, place_of

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
VA_VAE, MOMENTS = "vavae-imagenet256-f16d32-dinov2.pt", "latents_stats.pt"  # as its authors name them
FILES = (WEIGHTS, VA_VAE)  # the weights of a folder
Scale = float | tuple[float, ...]  # of all channels, or of each

SIZES = {  # diffusers' sizes as fields of AutoencoderKL
    "block_out_channels": "channels",
    "layers_per_block": "layers_per_block",
    "latent_channels": "latent_channels",
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "norm_num_groups": "groups",
}
FIXED = {  # settings that AutoencoderKL has only these values of
    "_class_name": ("AutoencoderKL",),
    "act_fn": ("silu", "swish"),
    "mid_block_add_attention": (True,),
}
BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
QUANT_CONVS = ("use_quant_conv", "use_post_quant_conv")
SCALES = {"scaling_factor": 0.18215, "shift_factor": 0.0}  # by default: Stable Diffusion's file is older than both
OF_CHANNELS = ("latents_mean", "latents_std")  # beside them, where there are any
UNUSED = ("sample_size", "force_upcast", "_diffusers_version", "_name_or_path")  # no part of the function
CENTERED = "centered"  # of ours: false where it was shown pixels in [0, 1]
KNOWN = (*SIZES, *FIXED, *BLOCKS, *QUANT_CONVS, *SCALES, *OF_CHANNELS, *UNUSED, CENTERED)

OLD_ATTENTION = {"query": "query", "key": "key", "value": "value", "out": "proj_attn"}
NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
OLD_KEY = "encoder.mid_block.attentions.0.query.weight"


def load(path: str | Path, dtype: str = "float32") -> tuple[AutoencoderKL, PyTree, Scale, Scale]:
    """(network, parameters, scale, shift) of a folder; a diffusion model works on (latent - shift) scale.

    Both are a number, or one for each channel.

    `dtype` is that of the computation; the parameters are float64 for "float64", else float32. Raises UserError for a
    folder without one of the files, settings that AutoencoderKL does not have, or weights that do not fit them.
    """
    folder = local(place_of(path))
    if (folder / VA_VAE).is_file() and not (folder / WEIGHTS).is_file():
        return _va_vae(folder, dtype)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} holds no {name}: an autoencoder is a folder with {CONFIG} and {WEIGHTS}.")
    config, tensors = read_json(folder / CONFIG), read(folder / WEIGHTS)
    network = network_of(config).clone(dtype=dtype)
    params = fill(_shapes(network), layout(network, OLD_KEY in tensors), tensors)
    return network, as_dtype(params, "float64" if dtype == "float64" else "float32"), *_scales(config)


def weights_of(folder: Path) -> Path:
    """Return the file of a folder's weights, which tells one autoencoder from another."""
    return next((folder / name for name in FILES if (folder / name).is_file()), folder / WEIGHTS)


def settings_of(folder: Path) -> dict[str, Any]:
    """Return what a folder says beside its weights, {} where that is what Stable Diffusion's says."""
    if weights_of(folder).name == VA_VAE:
        return {MOMENTS: sha256_of(folder / MOMENTS)} if (folder / MOMENTS).is_file() else {}
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    usual = SCALES | dict.fromkeys(OF_CHANNELS) | {CENTERED: True}
    return {name: config[name] for name, value in usual.items() if config.get(name, value) != value}


def _va_vae(folder: Path, dtype: str) -> tuple[AutoencoderKL, PyTree, Scale, Scale]:
    """VA-VAE's file and the moments of its latents, by which they have mean 0 and standard deviation 1 a channel."""
    if not (folder / MOMENTS).is_file():
        raise UserError(f"{folder} holds {VA_VAE} and no {MOMENTS}: the means and deviations of its latents' channels.")
    network, tensors = compvis_autoencoder.read(read(folder / VA_VAE))
    network, moments = network.clone(dtype=dtype), read(folder / MOMENTS)
    params = fill(_shapes(network), compvis_autoencoder.layout(_shapes(network)), tensors)
    if not isinstance(moments, dict) or not {"mean", "std"} <= moments.keys():
        raise UserError(f"{folder / MOMENTS} does not hold mean and std.")
    mean, std = (np.asarray(moments[name], np.float64).ravel() for name in ("mean", "std"))
    if {len(mean), len(std)} != {network.latent_channels} or not np.isfinite([mean, std]).all() or std.min() <= 0:
        raise UserError(
            f"{folder / MOMENTS} has {len(mean)} means and {len(std)} deviations; allowed: {network.latent_channels} "
            "finite ones of each, deviations above 0."
        )
    params = as_dtype(params, "float64" if dtype == "float64" else "float32")
    return network, params, tuple((1 / std).tolist()), tuple(mean.tolist())


def _scales(config: Mapping[str, Any]) -> tuple[Scale, Scale]:
    """(scale, shift): two numbers, or where the latents' means and deviations are given, as many as channels."""
    scale, shift = (_number(config, name, default) for name, default in SCALES.items())
    moments = [config.get(name) for name in OF_CHANNELS]
    if moments == [None, None]:
        return scale, shift
    channels = config["latent_channels"]
    for name, values in zip(OF_CHANNELS, moments, strict=True):
        if not isinstance(values, list) or len(values) != channels or not all(type(v) in (int, float) for v in values):
            raise UserError(f"{name} is {values!r}; allowed: {channels} numbers, with both or neither given.")
    if shift:
        raise UserError(f"shift_factor is {shift}, beside latents_mean: allowed is one of them.")
    return tuple(scale / std for std in moments[1]), tuple(map(float, moments[0]))


def network_of(config: Mapping[str, Any]) -> AutoencoderKL:
    """Build the network of diffusers' settings; UserError for one that is unknown, missing or not of ours."""
    for name in config:
        check_choice("a setting of the autoencoder", name, KNOWN)
    fields = {ours: size(config, theirs) for theirs, ours in SIZES.items()}
    given = dict.fromkeys((*QUANT_CONVS, CENTERED), True) | dict(config)
    quant_conv, post_quant_conv = QUANT_CONVS
    allowed = FIXED | {quant_conv: (True, False), post_quant_conv: (given[quant_conv],), CENTERED: (True, False)}
    allowed |= {name: ([block] * len(fields["channels"]),) for name, block in BLOCKS.items()}
    for name, values in allowed.items():
        if name in given and given[name] not in values:
            raise UserError(f"{name} is {given[name]!r}; allowed: {' or '.join(map(repr, values))}.")
    return AutoencoderKL(**fields, quant_convs=given[quant_conv], centered=given[CENTERED])


def layout(network: AutoencoderKL, old_keys: bool) -> Layout:
    """diffusers' name of every parameter; old keys are those from before its attention layers were one class (2023)."""
    attention = OLD_ATTENTION if old_keys else NEW_ATTENTION
    levels = tuple(enumerate(network.channels))
    leaves = _half("encoder", "down", levels, network.layers_per_block, attention)
    leaves |= _half("decoder", "up", levels[::-1], network.layers_per_block + 1, attention)
    if network.quant_convs:
        for name in ("quant_conv", "post_quant_conv"):
            leaves |= _layer(name, name, pointwise)
    return Layout(leaves, {})


def _half(
    half: str, direction: str, levels: Sequence[tuple[int, int]], n_blocks: int, attention: dict[str, str]
) -> dict[str, Leaf]:
    """Return the encoder or decoder, its levels (our number, channels) in the order of its blocks."""
    leaves = {}
    for end in ("conv_in", "conv_out"):
        leaves |= _layer(f"{half}/{end}", f"{half}.{end}", conv)
    leaves |= _norm(f"{half}/norm_out", f"{half}.conv_norm_out")
    middle, mid_block = f"{half}/middle", f"{half}.mid_block"
    for block in range(2):
        leaves |= _residual(f"{middle}/block_{block}", f"{mid_block}.resnets.{block}", shortcut=False)
    leaves |= _norm(f"{middle}/attention/norm", f"{mid_block}.attentions.0.group_norm")
    for ours, theirs in attention.items():
        leaves |= _layer(f"{middle}/attention/{ours}", f"{mid_block}.attentions.0.{theirs}", pointwise)

    channels_in = levels[0][1]
    for i, (level, channels) in enumerate(levels):
        ours, theirs = f"{half}/{direction}_{level}", f"{half}.{direction}_blocks.{i}"
        for block in range(n_blocks):
            leaves |= _residual(f"{ours}_{block}", f"{theirs}.resnets.{block}", channels_in != channels)
            channels_in = channels
        if i + 1 < len(levels):
            leaves |= _layer(f"{ours}_resample", f"{theirs}.{direction}samplers.0.conv", conv)
    return leaves


def _residual(ours: str, theirs: str, shortcut: bool) -> dict[str, Leaf]:
    leaves = _layer(f"{ours}/shortcut", f"{theirs}.conv_shortcut", pointwise) if shortcut else {}
    for i in range(2):
        leaves |= _norm(f"{ours}/norm_{i}", f"{theirs}.norm{i + 1}")
        leaves |= _layer(f"{ours}/conv_{i}", f"{theirs}.conv{i + 1}", conv)
    return leaves


def _norm(ours: str, theirs: str) -> dict[str, Leaf]:
    return {f"{ours}/scale": Leaf((f"{theirs}.weight",), same), f"{ours}/bias": Leaf((f"{theirs}.bias",), same)}


def _layer(ours: str, theirs: str, kernel: Callable[[np.ndarray], np.ndarray]) -> dict[str, Leaf]:
    return {f"{ours}/kernel": Leaf((f"{theirs}.weight",), kernel), f"{ours}/bias": Leaf((f"{theirs}.bias",), same)}


def _number(config: Mapping[str, Any], name: str, default: float) -> float:
    value = default if config.get(name) is None else config[name]
    if type(value) not in (int, float):
        raise UserError(f"{name} is {value!r}; allowed: a number.")
    return float(value)


def _shapes(network: AutoencoderKL) -> PyTree:
    side = 2 ** (len(network.channels) - 1)
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, side, side, network.in_channels)))["params"]
