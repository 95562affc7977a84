"""Where score_sde_pytorch and score_sde (flax) keep the weights of NCSN and NCSNv2.

PyTorch has names of its own; flax numbers the modules of a class within their parent, in the order of their calls.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from score_flow.errors import UserError, check_choice
from score_flow.networks.ncsn import NCSN
from score_flow.networks.ncsnv2 import PLANS, NCSNv2
from score_flow.pretrained.base import Layout, Leaf, conv, same

Module = tuple[str, str, str]  # ours, PyTorch's, flax's

# PyTorch's numbers of the stages and of the refine blocks; 256 pixel networks have one more, between 3 and 4.
STAGES = {64: (1, 2, 3, 4), 128: (1, 2, 3, 4, 5), 256: (1, 2, 3, 31, 4, 5)}
REFINE = {64: (1, 2, 3, 4), 128: (1, 2, 3, 4, 5), 256: (1, 2, 31, 3, 4, 5)}
# Flax's class of a normalisation, and what both call its coefficients; PyTorch's InstanceNorm has none.
NORMS = {
    "InstanceNorm++": "InstanceNorm2dPlus",
    "InstanceNorm": "InstanceNorm2d",
    "VarianceNorm": "VarianceNorm2d",
}
PLUS = {"scale": "gamma", "alpha": "alpha", "bias": "beta"}
TORCH = {"InstanceNorm++": PLUS, "InstanceNorm": {}, "VarianceNorm": {"scale": "alpha"}}
FLAX = {"InstanceNorm++": PLUS, "InstanceNorm": {"scale": "scale", "bias": "bias"}, "VarianceNorm": {"scale": "scale"}}


def torch_layout(network: NCSNv2, image_shape: tuple[int, int, int]) -> Layout:
    """Return the state_dict of NCSNv2 or NCSN, without DataParallel's "module."."""

    def leaf(module: str, name: str, shape: tuple[int, ...], in_norm: bool) -> Leaf:
        if name == "embedding":
            return Leaf((f"{module}.embed.weight",), same)
        if not in_norm:
            return Leaf((f"{module}.weight",), conv) if name == "kernel" else Leaf((f"{module}.bias",), same)
        if name not in TORCH[network.normalization]:
            return Leaf((), lambda: np.full(shape, name == "scale", np.float32))
        return Leaf((f"{module}.{TORCH[network.normalization][name]}",), same)

    modules = {ours: torch for ours, torch, _ in _modules(network)}
    # The noise levels: NCSNv2 divides by them within the network.
    return Layout(_leaves(network, image_shape, modules, leaf), {"sigmas": None})


def flax_layout(network: NCSNv2, image_shape: tuple[int, int, int]) -> Layout:
    """Return the parameters of NCSNv2 or NCSN, by paths joined with "/"."""

    def leaf(module: str, name: str, shape: tuple[int, ...], in_norm: bool) -> Leaf:
        if name == "embedding":
            return Leaf((f"{module}/Embed_0/embedding",), same)
        if not in_norm:
            return Leaf((f"{module}/{name}",), same)
        return Leaf(
            (f"{module}/{FLAX[network.normalization][name]}",), lambda w: w.reshape(w.shape[3:])
        )  # (1, 1, 1, c)

    modules = {ours: flax for ours, _, flax in _modules(network)}
    return Layout(_leaves(network, image_shape, modules, leaf), {})


def _leaves(
    network: NCSNv2, image_shape: tuple[int, int, int], modules: Mapping[str, str], leaf: Callable[..., Leaf]
) -> dict[str, Leaf]:
    if network.num_classes:
        raise UserError(f"network.num_classes is {network.num_classes}; the published weights have no labels: 0.")
    x, time = jnp.zeros((1, *image_shape)), jnp.zeros(1)
    shapes = flatten_dict(jax.eval_shape(network.init, jax.random.key(0), x, time)["params"], sep="/")
    leaves = {}
    for path, array in shapes.items():
        module, _, name = path.rpartition("/")
        in_norm = module.rpartition("/")[2].startswith("norm")
        leaves[path] = leaf(modules[module], name, array.shape, in_norm)
    return leaves


def _modules(network: NCSNv2) -> Iterator[Module]:
    """Return all modules that a network of this resolution can have."""
    check_choice("network.normalization of published weights", network.normalization, NORMS)
    conditional = isinstance(network, NCSN)
    norm = "Conditional" * conditional + NORMS[network.normalization]
    yield from (("conv_in", "begin_conv", "Conv_0"), ("conv_out", "end_conv", "Conv_1"))
    yield "norm_out", "normalizer", f"{norm}_0"
    for i, number in enumerate(STAGES[network.resolution]):
        halves = i > 0 and PLANS[network.resolution].stages[i][1] == 1
        for j in range(2):
            block = (f"stage_{i}_{j}", f"res{number}.{j}", f"{'Conditional' * conditional}ResidualBlock_{2 * i + j}")
            for ours, torch, flax in _residual_block(norm, halves and j == 0):
                yield f"{block[0]}/{ours}", f"{block[1]}.{torch}", f"{block[2]}/{flax}"
    for i, number in enumerate(REFINE[network.resolution]):
        block = (f"refine_{i}", f"refine{number}", f"{'Cond' * conditional}RefineBlock_{i}")
        for ours, torch, flax in _refine_block(norm, 1 if i == 0 else 2):
            yield f"{block[0]}/{ours}", f"{block[1]}.{torch}", f"{block[2]}/{'Cond' * conditional}{flax}"


def _residual_block(norm: str, halves: bool) -> Iterator[Module]:
    yield "conv_0", "conv1", "Conv_0"
    yield from ((f"norm_{k}", f"normalize{k + 1}", f"{norm}_{k}") for k in range(2))
    if halves:
        yield "conv_1", "conv2.conv", "ConvMeanPool_0/Conv_0"
        yield "shortcut", "shortcut.conv", "ConvMeanPool_1/Conv_0"
    else:
        yield "conv_1", "conv2", "Conv_1"
        yield "shortcut", "shortcut", "Conv_2"


def _refine_block(norm: str, inputs: int) -> Iterator[Module]:
    kinds = (("conv", "Conv"), ("norm", norm))
    units = [(f"adapt_{k}", f"adapt_convs.{k}") for k in range(inputs)] + [("out", "output_convs")]
    for k, (ours, torch) in enumerate(units):
        for (ours_kind, flax), i, j in product(kinds, range(3), range(2)):
            theirs = f"{torch}.{i + 1}_{j + 1}_{ours_kind}"
            yield f"{ours}/{ours_kind}_{i}_{j}", theirs, f"RCUBlock_{k}/{flax}_{2 * i + j}"
    for ours, torch in (("fusion", "msf"), ("pooling", "crp")):
        for (kind, flax), k in product(kinds, range(2)):
            yield f"{ours}/{kind}_{k}", f"{torch}.{kind}s.{k}", f"{torch.upper()}Block_0/{flax}_{k}"
