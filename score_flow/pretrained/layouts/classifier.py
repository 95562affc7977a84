"""The published classifier of score_sde: a bare tree of flax parameters, its names joined with "/" here."""

from collections.abc import Callable

import numpy as np

from score_flow.networks.classifier import WIDTHS, WideResNet
from score_flow.pretrained.base import Layout, Leaf, same

# Of CIFAR-10, by which score_sde standardises images in [0, 1] before the network.
CIFAR10_MEAN = (0.49139968, 0.48215841, 0.44653091)
CIFAR10_STD = (0.24703223, 0.24348513, 0.26158784)


def published() -> WideResNet:
    """Return the network of the published checkpoint."""
    return WideResNet(data_mean=CIFAR10_MEAN, data_std=CIFAR10_STD)


def flax_layout(network: WideResNet) -> Layout:
    """score_sde's name of every parameter."""
    leaves = _leaf("fourier/w", "GaussianFourierProjection_0/W") | _leaf("conv_in/kernel", "init_conv/kernel")
    for ours, theirs in {"embedding/time_0": "Dense_0", "embedding/time_1": "Dense_1", "out": "Dense_2"}.items():
        leaves |= _dense(ours, theirs)
    leaves |= _norm("norm_out", "pre-pool-bn")
    for group in range(len(WIDTHS)):
        for block in range(network.blocks_per_group):
            ours, theirs = f"group_{group}_{block}", f"WideResnetGroup_{group}/WideResnetBlock_{block}"
            leaves |= _norm(f"{ours}/norm_0", f"{theirs}/init_bn") | _norm(f"{ours}/norm_1", f"{theirs}/bn_2")
            leaves |= _leaf(f"{ours}/conv_0/kernel", f"{theirs}/conv1/kernel")
            leaves |= _leaf(f"{ours}/conv_1/kernel", f"{theirs}/conv2/kernel")
            leaves |= _dense(f"{ours}/embedding", f"{theirs}/Dense_0")
    return Layout(leaves, {})


def _leaf(ours: str, theirs: str, read: Callable[[np.ndarray], np.ndarray] = same) -> dict[str, Leaf]:
    return {ours: Leaf((theirs,), read)}


def _dense(ours: str, theirs: str) -> dict[str, Leaf]:
    return _leaf(f"{ours}/kernel", f"{theirs}/kernel") | _leaf(f"{ours}/bias", f"{theirs}/bias")


def _norm(ours: str, theirs: str) -> dict[str, Leaf]:
    return _leaf(f"{ours}/scale", f"{theirs}/scale", _flat) | _leaf(f"{ours}/bias", f"{theirs}/bias", _flat)


def _flat(w: np.ndarray) -> np.ndarray:
    # The flax of 2020 gave a GroupNorm parameters of shape (1, 1, 1, c).
    return w.reshape(w.shape[-1:])
