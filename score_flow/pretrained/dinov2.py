"""The weights of DINOv2 from a local file: the authors' .pth, or the same in safetensors or .npz, by either naming."""

import re
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from score_flow.errors import UserError
from score_flow.networks.dinov2 import SIZES, DINOv2
from score_flow.pretrained.base import Layout, Leaf, Tensors, as_dtype, conv, dense, fill, same, stacked
from score_flow.pretrained.readers import tensors

FILE = "dinov2_vitl14_pretrain.pth"
URL = f"https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/{FILE}"
HOW = f"get the published weights by: curl -LO {URL}, and name the file where this one was named"
MAX_BYTES = 5 << 30  # of what an .npz unpacks to: ViT-g takes 4.5 GB

SINGLE = {  # our names: the published ones, and what makes the tensor ours
    "token": ("cls_token", np.ravel),
    "positions": ("pos_embed", lambda w: w[0]),
    "registers": ("register_tokens", lambda w: w[0]),
    "patches/kernel": ("patch_embed.proj.weight", conv),
    "patches/bias": ("patch_embed.proj.bias", same),
    "norm/scale": ("norm.weight", same),
    "norm/bias": ("norm.bias", same),
}
BLOCK = {  # the same of a block, whose MLP is called in one of two ways
    **{f"norm_{i}/{ours}": (f"norm{i + 1}.{theirs}", same) for i in (0, 1) for ours, theirs in
       (("scale", "weight"), ("bias", "bias"))},
    **{f"scale_{i}": (f"ls{i + 1}.gamma", same) for i in (0, 1)},
    **{f"{ours}/{kind}": (f"{theirs}.{name}", read) for ours, theirs in
       (("qkv", "attn.qkv"), ("out", "attn.proj"), ("mlp_0", "mlp.fc1"), ("mlp_1", "mlp.fc2"))
       for kind, name, read in (("kernel", "weight", dense), ("bias", "bias", same))},
}  # fmt: skip
GATED = {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}
TRANSFORMERS = (  # of transformers' names, by their parts: those of the authors
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
)
PARTS = re.compile(r"^(.*)\.attention\.attention\.(query|key|value)\.(weight|bias)$")


def load(path: str | Path, dtype: str = "float32") -> tuple[DINOv2, PyTree, str]:
    """(network, parameters, a name of size and SHA-256), every tensor of the file used once.

    The size of the network is read off the tensors. `dtype` is that of the computation; the parameters are float64 for
    "float64", else float32. Raises UserError: first of all for a file that is not there, and for tensors that do not
    fit.
    """
    made = lambda given: from_tensors(given, dtype)  # noqa: E731
    file, digest, (network, params) = tensors.load(path, "DINOv2", HOW, MAX_BYTES, made)
    print(f"DINOv2 {said(network)}: {file.name}, sha256 {digest}; every tensor used once", flush=True)
    name = f"DINOv2 {said(network)}, sha256 {digest[:8]}" + ("" if dtype == "float32" else f", {dtype}")
    return network, params, name


def said(network: DINOv2) -> str:
    """Name a network as it was published: ViT-L/14, with its registers if it has any."""
    sizes = {size: name for name, size in SIZES.items()}
    size = sizes.get((network.width, network.depth, network.gated), f"{network.width}x{network.depth}")
    return f"ViT-{size}/14" + (f" with {network.registers} registers" if network.registers else "")


def from_tensors(given: Tensors, dtype: str = "float32") -> tuple[DINOv2, PyTree]:
    """Make network and parameters from tensors under either naming; UserError, by name, for those that do not fit."""
    given = _authors(given)
    token = given.get("cls_token")
    if not isinstance(token, np.ndarray) or token.ndim != 3:
        raise UserError("holds no cls_token of three axes: these are not the weights of DINOv2")
    depth = len({name.split(".")[1] for name in given if re.match(r"blocks\.\d+\.", name)})
    gated, registers = any(".mlp.w12." in name for name in given), given.get("register_tokens")
    count = registers.shape[1] if isinstance(registers, np.ndarray) and registers.ndim == 3 else 0
    network = DINOv2(token.shape[-1], max(depth, 1), gated, count, dtype)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 14, 14, 3)))["params"]
    params = fill(shapes, layout(network), given)
    return network, as_dtype(params, "float64" if dtype == "float64" else "float32")


def layout(network: DINOv2) -> Layout:
    """Return the authors' tensors of a network; that of hidden patches serves training alone, and may be left out."""
    leaves = {ours: Leaf((theirs,), read) for ours, (theirs, read) in SINGLE.items()}
    if not network.registers:
        del leaves["registers"]
    for ours, (theirs, read) in BLOCK.items():
        module, _, kind = theirs.rpartition(".")
        theirs = f"{GATED[module]}.{kind}" if network.gated and module in GATED else theirs
        leaves[f"blocks/{ours}"] = Leaf(tuple(f"blocks.{i}.{theirs}" for i in range(network.depth)), stacked(read))
    return Layout(leaves, {"mask_token": None})


def _authors(given: Tensors) -> Tensors:
    """Return the tensors under the authors' names, those of transformers renamed and their q, k and v joined."""
    if "embeddings.cls_token" not in given:
        return given
    found: dict[str, np.ndarray] = {}
    joined: dict[str, dict[str, np.ndarray]] = {}
    for name, w in given.items():
        if part := PARTS.match(name):
            joined.setdefault(f"{part[1]}.attn.qkv.{part[3]}", {})[part[2]] = w
            continue
        for pattern, ours in TRANSFORMERS:
            name = re.sub(pattern, ours, name)
        found[name] = w
    return found | {_blocks(name): _join(name, parts) for name, parts in joined.items()}


def _blocks(name: str) -> str:
    return name.replace("encoder.layer.", "blocks.")


def _join(name: str, parts: Mapping[str, np.ndarray]) -> np.ndarray:
    if missing := [part for part in ("query", "key", "value") if part not in parts]:
        raise UserError(f"the weights do not fit the network: {name} has no {missing[0]}")
    return np.concatenate([parts[part] for part in ("query", "key", "value")])
