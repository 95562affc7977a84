"""The layers of our networks in PyTorch, as their source projects write them, on a dict of parameters.

A parameter has the name that it has in ours, "down_0_0/conv_0/kernel", in torch's own order of axes; images are
(b, c, h, w). A network is a function of (parameters, x, time, whether it trains).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from score_flow.networks.adm import ADM
from score_flow.networks.blocks.transformer import sincos_positions
from score_flow.networks.ncsnpp import NCSNpp
from score_flow.networks.sit import SiT

Tensor = torch.Tensor
Params = dict[str, Tensor]
Network = Callable[[Params, Tensor, Tensor, bool], Tensor]


def dense(p: Params, name: str, x: Tensor) -> Tensor:
    return F.linear(x, p[f"{name}/kernel"], p[f"{name}/bias"])


def conv(p: Params, name: str, x: Tensor, stride: int = 1) -> Tensor:
    return F.conv2d(x, p[f"{name}/kernel"], p[f"{name}/bias"], stride, padding=1)


def pointwise(p: Params, name: str, x: Tensor) -> Tensor:
    return F.conv2d(x, p[f"{name}/kernel"][..., None, None], p[f"{name}/bias"])


def norm(p: Params, name: str, x: Tensor, groups: int, eps: float) -> Tensor:
    groups = next(n for n in range(groups, 0, -1) if x.shape[1] % n == 0)
    return F.group_norm(x, groups, p[f"{name}/scale"], p[f"{name}/bias"], eps)


def waves(time: Tensor, n: int, divisor: int) -> Tensor:
    """Angles of n frequencies from 1 down to about 1e-4."""
    return time[:, None] * torch.exp(-math.log(10_000.0) / divisor * torch.arange(n, dtype=torch.float32))


def embedded(p: Params, features: Tensor) -> Tensor:
    """The embedding of time, with the activation that every block begins with."""
    return F.silu(dense(p, "embedding/time_1", F.silu(dense(p, "embedding/time_0", features))))


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q^T k / sqrt(d)) v of (n, d, pixels)."""
    weights = torch.softmax(torch.bmm(q.transpose(1, 2), k) * q.shape[1] ** -0.5, dim=-1)
    return torch.bmm(v, weights.transpose(1, 2))


# ---- SiT


def sit(network: SiT) -> Network:
    """The transformer, with PyTorch's fused attention."""
    width, heads, patch = network.width, network.num_heads, network.patch_size
    normal = lambda x: F.layer_norm(x, (width,), eps=1e-6)  # noqa: E731

    def block(p: Params, name: str, h: Tensor, embedding: Tensor) -> Tensor:
        modulation = dense(p, f"{name}/modulation", embedding)[:, None].chunk(6, -1)
        x = normal(h) * (1 + modulation[1]) + modulation[0]
        qkv = dense(p, f"{name}/qkv", x).reshape(*h.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2).reshape(h.shape)
        h = h + modulation[2] * dense(p, f"{name}/attention_out", mixed)
        x = normal(h) * (1 + modulation[4]) + modulation[3]
        hidden = F.gelu(dense(p, f"{name}/mlp_0", x), approximate="tanh")
        return h + modulation[5] * dense(p, f"{name}/mlp_1", hidden)

    def apply(p: Params, x: Tensor, time: Tensor, train: bool) -> Tensor:
        b, c, height, w = x.shape
        rows, columns = height // patch, w // patch
        x = x.reshape(b, c, rows, patch, columns, patch).permute(0, 2, 4, 3, 5, 1).reshape(b, rows * columns, -1)
        h = dense(p, "patches", x) + torch.from_numpy(sincos_positions(rows, columns, width))
        angles = waves(time, 128, 128)
        embedding = embedded(p, torch.cat([angles.cos(), angles.sin()], -1))
        for i in range(network.depth):
            h = block(p, f"blocks/{i}", h, embedding)
        shift, scale = dense(p, "modulation_out", embedding)[:, None].chunk(2, -1)
        x = dense(p, "out", normal(h) * (1 + scale) + shift)
        return x.reshape(b, rows, columns, patch, patch, -1).permute(0, 5, 1, 3, 2, 4).reshape(b, -1, height, w)

    return apply


# ---- improved-diffusion


def adm(network: ADM) -> Network:
    """The U-Net of improved-diffusion, with convolutions between the levels."""
    heads = network.num_heads
    normal = lambda p, name, x: norm(p, name, x, 32, 1e-5)  # noqa: E731

    def block(p: Params, name: str, x: Tensor, embedding: Tensor, train: bool) -> Tensor:
        h = conv(p, f"{name}/conv_0", F.silu(normal(p, f"{name}/norm_0", x)))
        scale, shift = dense(p, f"{name}/embedding", embedding)[..., None, None].chunk(2, 1)
        h = F.dropout(F.silu(normal(p, f"{name}/norm_1", h) * (1 + scale) + shift), network.dropout, train)
        h = conv(p, f"{name}/conv_1", h)
        return h + (pointwise(p, f"{name}/shortcut", x) if h.shape != x.shape else x)

    def attention(p: Params, name: str, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        qkv = pointwise(p, f"{name}/qkv", normal(p, f"{name}/norm", x))
        q, k, v = qkv.reshape(b * heads, 3 * c // heads, height * width).chunk(3, 1)
        return x + pointwise(p, f"{name}/out", attended(q, k, v).reshape(x.shape))

    def apply(p: Params, x: Tensor, time: Tensor, train: bool) -> Tensor:
        angles = waves(time, network.width // 2, network.width // 2)
        embedding = embedded(p, torch.cat([angles.cos(), angles.sin()], -1))
        parts = Parts(
            lambda name, h: block(p, name, h, embedding, train),
            lambda name, h: attention(p, name, h),
            lambda name, h, pyramid: (conv(p, f"{name}_resample", h, stride=2), pyramid),
            lambda name, h: conv(p, f"{name}_resample", F.interpolate(h, scale_factor=2.0)),
        )
        h = unet(network, conv(p, "conv_in", x), x, parts, attends_each=True)
        return conv(p, "conv_out", F.silu(normal(p, "norm_out", h)))

    return apply


class Parts(NamedTuple):
    """What a U-Net is made of, each by its name: blocks, attention, and the ways down (with the pyramid) and up."""

    block: Callable[[str, Tensor], Tensor]
    attention: Callable[[str, Tensor], Tensor]
    down: Callable[[str, Tensor, Tensor], tuple[Tensor, Tensor]]
    up: Callable[[str, Tensor], Tensor]


def unet(network: ADM | NCSNpp, h: Tensor, x: Tensor, parts: Parts, attends_each: bool) -> Tensor:
    """Both ways of a U-Net with their skip connections; attends_each: after each block of the way up, or the last."""
    levels, each = range(len(network.channel_mult)), network.num_res_blocks

    def attended(name: str, h: Tensor) -> Tensor:
        return parts.attention(f"{name}_attention", h) if h.shape[2] in network.attention_resolutions else h

    skips, pyramid = [h], x
    for level in levels:
        if level:
            h, pyramid = parts.down(f"down_{level}", h, pyramid)
            skips.append(h)
        for i in range(each):
            h = attended(f"down_{level}_{i}", parts.block(f"down_{level}_{i}", h))
            skips.append(h)
    h = parts.block("middle_1", parts.attention("middle_attention", parts.block("middle_0", h)))
    for level in reversed(levels):
        for i in range(each + 1):
            h = parts.block(f"up_{level}_{i}", torch.cat([h, skips.pop()], 1))
            h = attended(f"up_{level}_{i}", h) if attends_each else h
        h = h if attends_each else attended(f"up_{level}", h)
        h = parts.up(f"up_{level}", h) if level else h
    return h


# ---- score_sde


def ncsnpp(network: NCSNpp) -> Network:
    """NCSN++ and DDPM++, with blocks that resample and an input pyramid of residuals, if any."""
    fir, half = network.fir, math.sqrt(0.5)
    normal = lambda p, name, x: norm(p, name, x, min(x.shape[1] // 4, 32), 1e-6)  # noqa: E731
    smaller = lambda x: filtered(x, padding=(1, 1), down=2) if fir else F.avg_pool2d(x, 2)  # noqa: E731
    larger = lambda x: filtered(x, padding=(2, 1), up=2) if fir else F.interpolate(x, scale_factor=2.0)  # noqa: E731

    def block(p: Params, name: str, x: Tensor, embedding: Tensor, train: bool, resample: Callable | None) -> Tensor:
        h = F.silu(normal(p, f"{name}/norm_0", x))
        h = conv(p, f"{name}/conv_0", resample(h) if resample else h)
        h = h + dense(p, f"{name}/embedding", embedding)[..., None, None]
        h = F.dropout(F.silu(normal(p, f"{name}/norm_1", h)), network.dropout, train)
        h = conv(p, f"{name}/conv_1", h)
        x = resample(x) if resample else x
        return (h + (pointwise(p, f"{name}/shortcut", x) if f"{name}/shortcut/kernel" in p else x)) * half

    def attention(p: Params, name: str, x: Tensor) -> Tensor:
        h = normal(p, f"{name}/norm", x)
        q, k, v = (pointwise(p, f"{name}/{part}", h).flatten(2) for part in ("query", "key", "value"))
        return (x + pointwise(p, f"{name}/out", attended(q, k, v).reshape(x.shape))) * half

    def down(p: Params, name: str, h: Tensor, pyramid: Tensor, resnet: Callable) -> tuple[Tensor, Tensor]:
        h = resnet(f"{name}_resample", h, smaller)
        if network.progressive_input == "none":
            return h, pyramid
        kernel, bias = p[f"{name}_input/kernel"], p[f"{name}_input/bias"]
        h = (F.conv2d(filtered(pyramid, padding=(2, 2)), kernel, bias, stride=2) + h) * half
        return h, h

    def apply(p: Params, x: Tensor, time: Tensor, train: bool) -> Tensor:
        if network.embedding == "fourier":
            angles = 2 * math.pi * time[:, None] * p["time_features/fourier/w"].detach()
        else:
            angles = waves(time, network.width // 2, network.width // 2 - 1)
        embedding = embedded(p, torch.cat([angles.sin(), angles.cos()], -1))
        resnet = lambda name, h, resample=None: block(p, name, h, embedding, train, resample)  # noqa: E731
        parts = Parts(
            resnet,
            lambda name, h: attention(p, name, h),
            lambda name, h, pyramid: down(p, name, h, pyramid, resnet),
            lambda name, h: resnet(f"{name}_resample", h, larger),
        )
        h = unet(network, conv(p, "conv_in", x), x, parts, attends_each=False)
        return conv(p, "conv_out", F.silu(normal(p, "norm_out", h)))

    return apply


def filtered(x: Tensor, padding: tuple[int, int], up: int = 1, down: int = 1) -> Tensor:
    """Zeros between the pixels and around them, the filter (1, 3, 3, 1) along both axes, every so many of its pixels.

    One convolution of images of one channel, as in StyleGAN2's and score_sde's functions for what has no GPU.
    """
    b, c, h, w = x.shape
    x = F.pad(x.reshape(b * c, 1, h, 1, w, 1), (0, up - 1, 0, 0, 0, up - 1)).reshape(b * c, 1, h * up, w * up)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8 * up
    x = F.conv2d(F.pad(x, padding * 2), torch.outer(taps, taps)[None, None])[:, :, ::down, ::down]
    return x.reshape(b, c, *x.shape[2:])


NETWORKS = {SiT: sit, ADM: adm, NCSNpp: ncsnpp}
