"""The names that improved-diffusion and guided-diffusion give to the tensors of ADM and of its classifier."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import PyTree

from score_flow.model import Model
from score_flow.networks.adm import ADM
from score_flow.networks.adm_classifier import ADMClassifier
from score_flow.pretrained import base

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
POOL = {"pool/qkv": "out.2.qkv_proj", "pool/out": "out.2.c_proj"}
POSITIONS, THEIR_POSITIONS = "pool/positions", "out.2.positional_embedding"


def layout(model: Model, image_shape: tuple[int, int, int]) -> base.Layout:
    """Return the tensors of an ADM. The label table gets a row of zeros for the null class, which they do not have."""
    condition = {"label": jnp.zeros(1, jnp.int32), "low_res": jnp.zeros((1, *image_shape))}
    shapes = jax.eval_shape(lambda key: model.init(key, (1, *image_shape), condition), jax.random.key(0))
    return _layout(model.network, shapes)


def classifier_layout(network: ADMClassifier, image_shape: tuple[int, int, int]) -> base.Layout:
    """Return the tensors of a classifier with attention pooling."""
    return _layout(network, classifier_shapes(network, image_shape))


def classifier_shapes(network: ADMClassifier, image_shape: tuple[int, int, int]) -> PyTree:
    """Return the shapes of a classifier's parameters."""
    x = jnp.zeros((1, *image_shape))
    return jax.eval_shape(network.init, jax.random.key(0), x, jnp.zeros(1))["params"]


def _layout(network: ADM, shapes: PyTree) -> base.Layout:
    modules = _modules(network.channel_mult, network.num_res_blocks, set(shapes), network.resample_blocks)
    leaves = {}
    for (*path, kind), leaf in flatten_dict(shapes).items():
        module = "/".join(path)
        if (name := f"{module}/{kind}") == POSITIONS:
            leaves[name] = base.Leaf((THEIR_POSITIONS,), base.dense)  # (channels, places)
            continue
        theirs = f"{modules[module]}.{'bias' if kind == 'bias' else 'weight'}"
        leaves[name] = base.Leaf((theirs,), _reading(kind, len(leaf.shape)))
    return base.Layout(leaves, {})


def _reading(kind: str, rank: int) -> Callable[[np.ndarray], np.ndarray]:
    if kind == "embedding":
        return lambda table: np.concatenate([table, np.zeros_like(table[:1])])
    if kind == "kernel":
        return base.conv if rank == 4 else base.pointwise  # the latter reads a dense layer too
    return base.same


def _modules(
    channel_mult: tuple[int, ...], num_res_blocks: int, ours: set[str], resample_blocks: bool
) -> dict[str, str]:
    """The name of each module of theirs by ours ("down_0_1/conv_0"): they count the blocks of each way through."""
    single = POOL | {
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
        resampled, name = f"down_{level + 1}_resample", f"input_blocks.{i}.0"
        if resample_blocks:
            blocks[resampled] = name
        else:
            single[resampled] = f"{name}.op"
    i = 0
    for level in reversed(range(len(channel_mult))):
        for block in range(num_res_blocks + 1):
            blocks[f"up_{level}_{block}"] = f"output_blocks.{i}.0"
            blocks[f"up_{level}_{block}_attention"] = f"output_blocks.{i}.1"
            i += 1
        # On the way up it is part of the level's last block, after the attention if there is one.
        place = 2 if f"up_{level}_{block}_attention" in ours else 1
        resampled, name = f"up_{level}_resample", f"output_blocks.{i - 1}.{place}"
        if resample_blocks:
            blocks[resampled] = name
        else:
            single[resampled] = f"{name}.conv"
    inner = {
        f"{name}/{part}": f"{theirs}.{their_part}"
        for name, theirs in blocks.items()
        for part, their_part in (ATTENTION if name.endswith("attention") else RESIDUAL).items()
    }
    return single | inner
