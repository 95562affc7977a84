"""What the networks of diffusers' UNet2DModel share: names within a block, sizes, and where each tensor goes."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from score_flow.errors import UserError
from score_flow.model import Model
from score_flow.pretrained.base import Layout, Leaf, conv, pointwise, same, size

MARKS = ("conv_in.weight", "time_embedding.linear_1.weight", "down_blocks.0.resnets.0.time_emb_proj.weight")
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # until 2023

# Ours -> theirs within a block.
RESIDUAL = {
    "norm_0": "norm1",
    "conv_0": "conv1",
    "embedding": "time_emb_proj",
    "norm_1": "norm2",
    "conv_1": "conv2",
    "shortcut": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
SIZES = ("sample_size", "layers_per_block", "block_out_channels")
UNUSED = ("downsample_type", "upsample_type", "_diffusers_version", "_name_or_path", "tensor_format")


def is_unet(tree: Any) -> bool:
    """Say whether a file's contents are the weights of a UNet2DModel."""
    return isinstance(tree, Mapping) and all(isinstance(tree.get(mark), np.ndarray) for mark in MARKS)


def current(name: str) -> str:
    """Return the name that a tensor has today."""
    module, _, layer = name.partition(".attentions.")
    index, _, rest = layer.partition(".")
    old, _, kind = rest.partition(".")
    return f"{module}.attentions.{index}.{OLD_ATTENTION[old]}.{kind}" if old in OLD_ATTENTION else name


def layout(
    model: Model, image_shape: tuple[int, int, int], single: Mapping[str, str], blocks: Mapping[str, str]
) -> Layout:
    """Return their name of every parameter, from those of single layers and of blocks by ours ("down_0_1")."""
    shapes = jax.eval_shape(lambda key: model.init(key, (1, *image_shape)), jax.random.key(0))
    modules = dict(single) | {
        f"{name}/{part}": f"{theirs}.{their_part}"
        for name, theirs in blocks.items()
        for part, their_part in (ATTENTION if name.endswith("attention") else RESIDUAL).items()
    }
    leaves = {}
    for (*path, kind), leaf in flatten_dict(shapes).items():
        module = "/".join(path)
        name = f"{modules[module]}.{'bias' if kind == 'bias' else 'weight'}"
        # pointwise reads a dense layer too.
        read_weight = same if kind != "kernel" else conv if len(leaf.shape) == 4 else pointwise
        leaves[f"{module}/{kind}"] = Leaf((name,), read_weight)
    return Layout(leaves, {})


def network_of(
    settings: Mapping[str, Any], fields: Mapping[str, Any], levels: list[int], *, name: str, whose: str
) -> dict[str, Any]:
    """Return the overrides of config.network and of the data: a network's fixed fields and what the settings say.

    levels: those with attention; whose: the network's class. Raises UserError for sizes that it cannot have.
    """
    side, num_res_blocks, channels = (size(settings, what) for what in SIZES)
    network = fields | {
        "name": name,
        "width": channels[0],
        "channel_mult": multiples(channels, whose),
        "num_res_blocks": num_res_blocks,
        "attention_resolutions": tuple(side >> level for level in levels),
        "dropout": float(settings.get("dropout", 0.0)),
    }
    del network["num_classes"]  # the data's
    return {f"network.{field}": value for field, value in network.items()} | {
        "model.class_conditional": False,
        "data.image_shape": (side, side, 3),
        "data.num_classes": 0,
        "data.levels": 256,
    }


def multiples(channels: tuple[int, ...], network: str) -> tuple[int, ...]:
    """Return the channels of each level over those of the first; raises UserError where a network has no such."""
    if any(c % channels[0] for c in channels):
        raise UserError(f"diffusers: block_out_channels is {channels}; {network} needs multiples of the first.")
    return tuple(c // channels[0] for c in channels)


def attending(settings: Mapping[str, Any], blocks: Mapping[str, tuple[str, str]], n_levels: int, of: str) -> list[int]:
    """Return the levels with attention, in which both ways must agree; blocks: the kinds that each has.

    Raises UserError where a level is of another kind than those `of` a project.
    """
    ways = []
    for name, (plain, attends) in blocks.items():
        kinds = settings.get(name)
        known = isinstance(kinds, list | tuple) and all(kind in (plain, attends) for kind in kinds)
        if not known or len(kinds) != n_levels:
            raise UserError(f"diffusers: {name} is {kinds!r}; {of} has {n_levels} of {plain}, {attends}.")
        ways.append([kind == attends for kind in kinds])
    down, up = ways
    if down != up[::-1]:
        raise UserError("diffusers: down_block_types and up_block_types attend at different levels.")
    return [level for level, there in enumerate(down) if there]
