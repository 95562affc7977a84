"""Tensors of transformers that derive from DiT, as torch code names them: JiT's and LightningDiT's."""

import numpy as np

from score_flow.errors import UserError
from score_flow.model import Model
from score_flow.networks.blocks.transformer import rotations, sincos_positions
from score_flow.networks.dit import DiT
from score_flow.pretrained.base import Layout, Leaf, conv, dense, pointwise, same, stacked
from score_flow.process.prediction import velocity


def layout_of(model: Model, image_shape: tuple[int, int, int], whose: str) -> Layout:
    """Name the tensors of a DiT; their time runs from noise to data, so that what predicts velocities changes sign."""
    network = model.network
    if not isinstance(network, DiT):
        raise UserError(f"the checkpoint is a {whose}; config.network is {type(network).__name__}.")
    sign = -1 if model.prediction is velocity else 1
    leaves = _patches(network) | _layer("embedding/time_0", "t_embedder.mlp.0")
    leaves |= _layer("embedding/time_1", "t_embedder.mlp.2")
    leaves |= _layer("modulation_out", "final_layer.adaLN_modulation.1")
    leaves["out/kernel"] = Leaf(("final_layer.linear.weight",), lambda w: sign * w.T)
    leaves["out/bias"] = Leaf(("final_layer.linear.bias",), lambda b: sign * b)
    if network.norm == "rms":
        leaves["norm_out/scale"] = Leaf(("final_layer.norm_final.weight",), same)
    if network.num_classes:
        leaves["label/embedding"] = Leaf(("y_embedder.embedding_table.weight",), same)
    if network.class_tokens + network.register_tokens:
        leaves["context"] = Leaf(("in_context_posemb",), lambda w: w.reshape(w.shape[-2:]))
    leaves |= _blocks(network, "blocks", range(network.n_before))
    leaves |= _blocks(network, "context_blocks", range(network.n_before, network.depth))
    return Layout(leaves, _constants(network, image_shape))


def _layer(ours: str, theirs: str) -> dict[str, Leaf]:
    return {f"{ours}/kernel": Leaf((f"{theirs}.weight",), dense), f"{ours}/bias": Leaf((f"{theirs}.bias",), same)}


def _patches(network: DiT) -> dict[str, Leaf]:
    """A convolution whose stride is its side is a map of patches; with a bottleneck a map of channels follows."""
    first, last = ("proj1", "proj2") if network.bottleneck else ("proj", "proj")
    of_patches = Leaf((f"x_embedder.{first}.weight",), lambda w: conv(w).reshape(-1, w.shape[0]))
    bias = {"patches/bias": Leaf((f"x_embedder.{last}.bias",), same)}
    if not network.bottleneck:
        return {"patches/kernel": of_patches} | bias
    return {"patches_input/kernel": of_patches, "patches/kernel": Leaf(("x_embedder.proj2.weight",), pointwise)} | bias


def _blocks(network: DiT, ours: str, numbers: range) -> dict[str, Leaf]:
    """A stack of blocks, none of them where there are none."""
    mlp = ("w12", "w3") if network.mlp == "swiglu" else ("fc1", "fc2")
    maps = {"qkv": "attn.qkv", "attention_out": "attn.proj", "mlp_0": f"mlp.{mlp[0]}", "mlp_1": f"mlp.{mlp[1]}"}
    norms = {"norm_0": "norm1", "norm_1": "norm2"} if network.norm == "rms" else {}
    norms |= {"query_norm": "attn.q_norm", "key_norm": "attn.k_norm"} if network.qk_norm else {}
    parts = {f"{name}/scale": (f"{theirs}.weight", same) for name, theirs in norms.items()}
    for name, theirs in (maps | {"modulation": "adaLN_modulation.1"}).items():
        parts |= {f"{name}/kernel": (f"{theirs}.weight", dense), f"{name}/bias": (f"{theirs}.bias", same)}
    return {
        f"{ours}/{name}": Leaf(tuple(f"blocks.{i}.{tensor}" for i in numbers), stacked(read))
        for name, (tensor, read) in parts.items()
        if numbers
    }


def _constants(network: DiT, image_shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Fixed positions, and where they are kept the sines and cosines of the rotations, each for both of its pair."""
    rows, columns = (side // network.patch_size for side in image_shape[:2])
    constants = {"pos_embed": sincos_positions(rows, columns, network.width)[None]}
    if network.rope:
        angles = rotations(rows, columns, network.width // network.num_heads).repeat(2, axis=-1)
        constants |= {"feat_rope.freqs_cos": np.cos(angles), "feat_rope.freqs_sin": np.sin(angles)}
    return constants
