"""Where score_sde_pytorch, score_sde and score_flow keep the weights of NCSN++, DDPM++ and DDPM.

All of them build the network from the same modules in the same order; PyTorch numbers the modules (`all_modules.7`),
flax counts those of each class (`ResnetBlockBigGANpp_3`). So one walk over our network, in their order, serves both.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from score_flow.errors import UserError
from score_flow.networks.ncsnpp import NCSNpp
from score_flow.pretrained.base import Layout, Leaf, conv, dense, pointwise, same

Rules = Mapping[str, dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]]]  # kind -> ours: (theirs, how to read)


def _flat(w: np.ndarray) -> np.ndarray:
    """Turn a convolution (1, 1, in, out) into a map of channels (in, out)."""
    return w.reshape(w.shape[-2:])


TORCH: Rules = {
    "fourier": {"w": ("W", same)},
    "norm": {"scale": ("weight", same), "bias": ("bias", same)},
    "dense": {"kernel": ("weight", dense), "bias": ("bias", same)},
    "conv": {"kernel": ("weight", conv), "bias": ("bias", same)},
    "conv1x1": {"kernel": ("weight", pointwise), "bias": ("bias", same)},
    "nin": {"kernel": ("W", same), "bias": ("b", same)},
    "fir_conv": {"kernel": ("weight", conv), "bias": ("bias", same)},
}
FLAX: Rules = {
    "fourier": {"w": ("W", same)},
    "norm": {"scale": ("scale", np.ravel), "bias": ("bias", np.ravel)},  # (1, 1, 1, c) in flax of their time
    "dense": {"kernel": ("kernel", same), "bias": ("bias", same)},
    "conv": {"kernel": ("kernel", same), "bias": ("bias", same)},
    "conv1x1": {"kernel": ("kernel", _flat), "bias": ("bias", same)},
    "nin": {"kernel": ("W", same), "bias": ("b", same)},
    "fir_conv": {"kernel": ("weight", same), "bias": ("bias", same)},
}


class Layer(NamedTuple):
    """Parameters: where in our network (None: nowhere), where in their module ("": at its top), and of which kind."""

    path: str | None
    name: str
    kind: str


class Module(NamedTuple):
    """A module of the sources: its class, its layers, whether PyTorch lists it (not the pyramids' without any)."""

    name: str
    layers: tuple[Layer, ...] = ()
    numbered: bool = True


def torch_layout(network: NCSNpp, image_shape: tuple[int, int, int]) -> Layout:
    """Tensors of score_sde_pytorch, `all_modules.N....`, for images (h, w, c). UserError if the network has labels."""
    modules = [module for module in _modules(network, image_shape) if module.numbered]
    prefixes = [f"all_modules.{i}" for i in range(len(modules))]
    # The noise levels of the training run: a function of the path.
    return _layout(modules, prefixes, TORCH, ".", constants={"sigmas": None})


def flax_layout(network: NCSNpp, image_shape: tuple[int, int, int]) -> Layout:
    """Tensors of score_sde and score_flow, `Class_i/...`, for images (h, w, c). UserError if the network has labels."""
    modules, count, prefixes = list(_modules(network, image_shape)), Counter(), []
    for module in modules:
        prefixes.append(f"{module.name}_{count[module.name]}")
        count[module.name] += 1
    return _layout(modules, prefixes, FLAX, "/", constants={})


def _layout(
    modules: list[Module], prefixes: list[str], rules: Rules, separator: str, constants: dict[str, np.ndarray | None]
) -> Layout:
    layout = Layout({}, constants)
    for module, prefix in zip(modules, prefixes, strict=True):
        for layer in module.layers:
            for ours, (theirs, read) in rules[layer.kind].items():
                name = separator.join(part for part in (prefix, layer.name, theirs) if part)
                if layer.path is None:
                    layout.constants[name] = None
                else:
                    layout.leaves[f"{layer.path}/{ours}"] = Leaf((name,), read)
    return layout


def _modules(network: NCSNpp, image_shape: tuple[int, int, int]) -> Iterator[Module]:
    """Return the modules of the sources in the order in which they build them."""
    if network.num_classes:
        raise UserError(f"score_sde and score_flow have no labels: num_classes must be 0, got {network.num_classes}.")
    if network.attention_up != "last":
        raise UserError(f"score_sde and score_flow have attention_up = last, got {network.attention_up}.")
    # PyTorch's networks without time have its frequencies and the blocks' maps of it all the same, unused.
    if network.embedding == "fourier":
        path = "time_features/fourier" if network.conditional else None
        yield Module("GaussianFourierProjection", (Layer(path, "", "fourier"),))
    if network.conditional:
        yield from (_plain("Dense", f"embedding/time_{i}", "dense") for i in range(2))
    yield _plain("Conv", "conv_in", "conv")
    channels, skips = yield from _down(network, image_shape[0])
    yield _block(network, "middle_0")
    yield _attention(network, "middle_attention")
    yield _block(network, "middle_1")
    yield from _up(network, image_shape[0], channels, skips)
    if network.progressive != "output_skip":
        yield from _read("out")


def _down(network: NCSNpp, height: int) -> Iterator[Module]:
    """Returns the channels of the lowest level and of the skip connections."""
    channels, skips = network.width, [network.width]
    for level, mult in enumerate(network.channel_mult):
        if level:
            yield _resample(network, f"down_{level}_resample", "Downsample")
            if network.progressive_input == "input_skip":
                yield Module("Downsample", numbered=False)
                yield Module("Combine", (Layer(f"down_{level}_input", "Conv_0", "conv1x1"),))
                channels *= 2 if network.progressive_combine == "cat" else 1
            if network.progressive_input == "residual":
                yield _resampling_conv(network, f"down_{level}_input", "Downsample")
            skips.append(channels)
        for i in range(network.num_res_blocks):
            yield _block(network, f"down_{level}_{i}", shortcut=channels != network.width * mult)
            channels = network.width * mult
            if height >> level in network.attention_resolutions:
                yield _attention(network, f"down_{level}_{i}_attention")
            skips.append(channels)
    return channels, skips


def _up(network: NCSNpp, height: int, channels: int, skips: list[int]) -> Iterator[Module]:
    lowest = len(network.channel_mult) - 1
    for level, mult in reversed(tuple(enumerate(network.channel_mult))):
        for i in range(network.num_res_blocks + 1):
            yield _block(network, f"up_{level}_{i}", shortcut=channels + skips.pop() != network.width * mult)
            channels = network.width * mult
        if height >> level in network.attention_resolutions:
            yield _attention(network, f"up_{level}_attention")
        if network.progressive == "output_skip" and level != lowest:
            yield Module("Upsample", numbered=False)
        if network.progressive == "residual" and level != lowest:
            yield _resampling_conv(network, f"up_{level}_output", "Upsample")
        elif network.progressive != "none":
            yield from _read(f"up_{level}_output")
        if level:
            yield _resample(network, f"up_{level}_resample", "Upsample")


def _plain(name: str, path: str, kind: str) -> Module:
    return Module(name, (Layer(path, "", kind),))


def _read(name: str) -> Iterator[Module]:
    yield _plain("GroupNorm", f"norm_{name}", "norm")
    yield _plain("Conv", f"conv_{name}", "conv")


def _block(network: NCSNpp, path: str, shortcut: bool = False) -> Module:
    biggan = network.resblock == "biggan"
    layers = [
        Layer(f"{path}/norm_0", "GroupNorm_0", "norm"),
        Layer(f"{path}/conv_0", "Conv_0", "conv"),
        Layer(f"{path}/embedding" if network.conditional else None, "Dense_0", "dense"),
        Layer(f"{path}/norm_1", "GroupNorm_1", "norm"),
        Layer(f"{path}/conv_1", "Conv_1", "conv"),
    ]
    if shortcut:
        name, kind = ("Conv_2", "conv1x1") if biggan else ("NIN_0", "nin")
        layers.append(Layer(f"{path}/shortcut", name, kind))
    return Module("ResnetBlockBigGANpp" if biggan else _of_family(network, "ResnetBlockDDPM"), tuple(layers))


def _attention(network: NCSNpp, path: str) -> Module:
    maps = [Layer(f"{path}/{ours}", f"NIN_{i}", "nin") for i, ours in enumerate(("query", "key", "value", "out"))]
    return Module(_of_family(network, "AttnBlock"), (Layer(f"{path}/norm", "GroupNorm_0", "norm"), *maps))


def _of_family(network: NCSNpp, name: str) -> str:
    """DDPM, the network of a fixed number of groups, has its own classes of the same layers."""
    return f"{name}pp" if network.groups is None else name


def _resample(network: NCSNpp, path: str, name: str) -> Module:
    if network.resblock == "biggan":
        return _block(network, path, shortcut=True)
    return _resampling_conv(network, path, name) if network.resamp_with_conv else Module(name)


def _resampling_conv(network: NCSNpp, path: str, name: str) -> Module:
    return Module(name, (Layer(path, "Conv2d_0", "fir_conv") if network.fir else Layer(path, "Conv_0", "conv"),))
