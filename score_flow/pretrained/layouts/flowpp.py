"""The tensors of score_flow's Flow++ dequantisers, one by one (its models/flowpp, in flax; arXiv:2101.09258).

Names are paths below "params" in the trees that its checkpoints hold as `params_ema` and `optimizer/target`. Its
network for ImageNet 64 x 64 gives the last convolution of every block one name, c2, which flax refuses, so that no
checkpoint of it can exist; it has a layout here under the names that its two siblings use.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from score_flow.errors import UserError
from score_flow.networks.flowpp import ATTENTIVE, FlowppDequantiser
from score_flow.pretrained.base import Layout, Leaf, same

Leaves = dict[str, Leaf]

# The names of the layers of block i, in the order of ATTENTIVE.
COUPLING_LAYERS = ("block{}_conv", "block{}_ln1", "block{}_attn", "block{}_ln2")
CONTEXT_LAYERS = ("c{}", "dqln{}", "dqattn{}", "ln{}")


def flax_layout(network: FlowppDequantiser) -> Layout:
    """Every tensor of the source for one of our networks.

    Raises UserError for blocks that the source has no names for: others than the beginnings of ATTENTIVE.
    """
    for block in (network.block, network.context_block):
        if not block or block != ATTENTIVE[: len(block)]:
            raise UserError(f"score_flow's dequantisers have blocks that begin like {ATTENTIVE}, got {block}.")
    leaves = _context(network)
    for i in range(network.couplings):
        leaves |= _affines(network, i) | _coupling(network, i)
    return Layout(leaves, dict.fromkeys(_unread(network)))


def _unread(network: FlowppDequantiser) -> list[str]:
    """Return the tables of positions that the source stores, and never reads, in networks without attention."""
    in_couplings = [f"{_coupling_name(network, i)}/pos_emb" for i in range(network.couplings)]
    in_context = [f"{_context_name(network)}/pos_emb_dq"] if "norm" in network.context_block else []
    blocks = ((network.block, in_couplings), (network.context_block, in_context))
    return [name for block, names in blocks if "attention" not in block for name in names]


def _context_name(network: FlowppDequantiser) -> str:
    return f"{'Deep' if 'norm' in network.context_block else 'Shallow'}Processor_0"


def _coupling_name(network: FlowppDequantiser, i: int) -> str:
    return f"MixLogistic{'Attn' if 'attention' in network.block else ''}Coupling_{i}"


def _context(network: FlowppDequantiser) -> Leaves:
    theirs = _context_name(network)
    gated_conv = partial(_gated_conv, weight_norm=network.weight_norm, context=False)
    leaves = _conv("context/conv_in", f"{theirs}/proj", network.weight_norm)
    for i in range(network.context_blocks):
        names = [f"{theirs}/{name.format(i)}" for name in CONTEXT_LAYERS]
        leaves |= _block(network.context_block, f"context/blocks/block_{i}", names, gated_conv)
    if "attention" in network.context_block:
        leaves["context/blocks/positions"] = Leaf((f"{theirs}/pos_emb_dq",), same)
    return leaves


def _coupling(network: FlowppDequantiser, step: int) -> Leaves:
    ours, theirs = f"steps_{step}/couple", _coupling_name(network, step)
    gated_conv = partial(_gated_conv, weight_norm=network.weight_norm, context=True)
    first, last = ("c1", "c2") if network.elu_out else ("proj_in", "proj_out")
    leaves = _conv(f"{ours}/conv_in", f"{theirs}/{first}", network.weight_norm)
    for i in range(network.blocks):
        names = [f"{theirs}/{name.format(i)}" for name in COUPLING_LAYERS]
        leaves |= _block(network.block, f"{ours}/blocks/block_{i}", names, gated_conv)
    leaves |= _conv(f"{ours}/conv_out", f"{theirs}/block{network.blocks - 1}_{last}", network.weight_norm)
    if "attention" in network.block:
        leaves[f"{ours}/blocks/positions"] = Leaf((f"{theirs}/pos_emb",), same)
    return leaves


def _affines(network: FlowppDequantiser, step: int) -> Leaves:
    leaves = {}
    for i, half in enumerate("ab"):
        ours, norm = f"steps_{step}/affine_{half}", f"Norm_{step}/norm{i}"
        leaves |= {f"{ours}/scale": Leaf((f"{norm}_g",), same), f"{ours}/bias": Leaf((f"{norm}_b",), same)}
        if network.mix_channels:
            leaves[f"{ours}/mixing"] = Leaf((f"Pointwise_{step}/W{i}",), same)
    return leaves


def _block(block: tuple[str, ...], ours: str, theirs: list[str], gated_conv: Callable[[str, str], Leaves]) -> Leaves:
    leaves = {}
    for i, layer in enumerate(block):
        read = {"conv": gated_conv, "norm": _norm, "attention": _attention}[layer]
        leaves |= read(f"{ours}_{layer}_{i}", theirs[i])
    return leaves


def _gated_conv(ours: str, theirs: str, weight_norm: bool, context: bool) -> Leaves:
    leaves = _conv(f"{ours}/conv_in", f"{theirs}_c1", weight_norm)
    if context:
        return (
            leaves | _pointwise(f"{ours}/context", f"{theirs}_a_proj") | _pointwise(f"{ours}/conv_out", f"{theirs}_c2")
        )
    return leaves | _conv(f"{ours}/conv_out", f"{theirs}_c2", weight_norm)


def _attention(ours: str, theirs: str) -> Leaves:
    return _pointwise(f"{ours}/qkv", f"{theirs}_proj1") | _pointwise(f"{ours}/out", f"{theirs}_proj2")


def _norm(ours: str, theirs: str) -> Leaves:
    return {f"{ours}/scale": Leaf((f"{theirs}_g",), _channels), f"{ours}/bias": Leaf((f"{theirs}_b",), _channels)}


def _conv(ours: str, theirs: str, weight_norm: bool) -> Leaves:
    bias = {f"{ours}/bias": Leaf((f"{theirs}_b",), same)}
    if weight_norm:
        return bias | {
            f"{ours}/direction": Leaf((f"{theirs}_V",), same),
            f"{ours}/gain": Leaf((f"{theirs}_g",), same),
        }
    return bias | {f"{ours}/kernel": Leaf((f"{theirs}_W",), _transposed)}


def _pointwise(ours: str, theirs: str) -> Leaves:
    return {
        f"{ours}/kernel": Leaf((f"{theirs}_W",), lambda w: w[None, None]),
        f"{ours}/bias": Leaf((f"{theirs}_b",), same),
    }


def _transposed(w: np.ndarray) -> np.ndarray:
    """Kernels without weight norm meet images whose axes the source calls (n, w, h, c): they lie on their side."""
    return w.transpose(1, 0, 2, 3)


def _channels(w: np.ndarray) -> np.ndarray:
    """(1, 1, 1, c) to (c,)."""
    return w.reshape(w.shape[-1:])
