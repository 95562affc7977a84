"""Autoencoders as latent-diffusion's code stores them (VA-VAE's file is one): sizes from shapes, and names."""

import re
from typing import Any

from flax.traverse_util import flatten_dict
from jaxtyping import PyTree

from score_flow.errors import UserError
from score_flow.networks.autoencoder_kl import AutoencoderKL
from score_flow.pretrained.base import Layout, Leaf, Tensors, conv, pointwise, same

# Of the training, not of the function: discriminator, perceptual loss, the model that latents were aligned with.
OTHERS = ("loss.", "foundation_model.", "linear_proj.", "model_ema.")
NAMES = (
    (r"(down|up)_(\d+)_(\d+)_attention", r"\1.\2.attn.\3"), (r"down_(\d+)_resample", r"down.\1.downsample.conv"),
    (r"up_(\d+)_resample", r"up.\1.upsample.conv"), (r"(down|up)_(\d+)_(\d+)", r"\1.\2.block.\3"),
    (r"middle/attention", "mid.attn_1"), (r"middle/block_0", "mid.block_1"), (r"middle/block_1", "mid.block_2"),
    (r"norm_0", "norm1"), (r"norm_1", "norm2"), (r"conv_0", "conv1"), (r"conv_1", "conv2"),
    (r"shortcut", "nin_shortcut"), (r"query", "q"), (r"key", "k"), (r"value", "v"), (r"/out/", "/proj_out/"),
)  # fmt: skip
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def read(tree: Any) -> tuple[AutoencoderKL, Tensors]:
    """(the network that a file's tensors are of, these without what is of their training); raises UserError."""
    tensors = tree.get("state_dict", tree) if isinstance(tree, dict) else {}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(OTHERS)}
    for name in ("encoder.conv_in.weight", "quant_conv.weight", "decoder.conv_out.weight"):
        if getattr(tensors.get(name), "ndim", 0) != 4:
            raise UserError(f"the file is no autoencoder of latent-diffusion's code: it has no {name}.")
    levels = 1 + max(int(found[1]) for name in tensors if (found := re.match(r"encoder\.down\.(\d+)\.", name)))
    firsts = [f"encoder.down.{level}.block.0.conv1.weight" for level in range(levels)]
    if missing := [name for name in firsts if name not in tensors]:
        raise UserError(f"the weights do not fit the network: {missing[0]} is missing.")
    blocks = sum(bool(re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", name)) for name in tensors)
    network = AutoencoderKL(
        channels=tuple(tensors[name].shape[0] for name in firsts),
        layers_per_block=blocks,
        latent_channels=tensors["quant_conv.weight"].shape[0] // 2,
        in_channels=tensors["encoder.conv_in.weight"].shape[1],
        out_channels=tensors["decoder.conv_out.weight"].shape[0],
        attends=f"encoder.down.{levels - 1}.attn.0.q.weight" in tensors,
    )
    return network, tensors


def layout(shapes: PyTree) -> Layout:
    """Name the tensor of every parameter of a network: flattened, its path, in their words."""
    leaves = {}
    for path, leaf in flatten_dict(shapes, sep="/").items():
        theirs = path
        for ours, name in NAMES:
            theirs = re.sub(ours, name, theirs)
        *modules, kind = theirs.split("/")
        of_kernel = conv if len(leaf.shape) == 4 else pointwise
        leaves[path] = Leaf((".".join((*modules, LEAVES[kind])),), of_kernel if kind == "kernel" else same)
    return Layout(leaves, {})
