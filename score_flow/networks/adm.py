"""The U-Net of improved DDPM, later named ADM (Nichol and Dhariwal 2021, arXiv:2102.09672; arXiv:2105.05233)."""

from typing import Annotated, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from score_flow.config.hints import Count, Given, Whole, check_fields
from score_flow.config.limits import Limits
from score_flow.errors import UserError
from score_flow.networks.blocks import layers, resample
from score_flow.networks.blocks.attention import attention
from score_flow.networks.blocks.remat import Remat, rematted
from score_flow.types import Condition

torch_kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # U(-1/sqrt(fan_in), 1/sqrt(fan_in))


def _init(fan_in: int, zero: bool) -> dict:
    """torch's default for weights and biases alike, U(-1/sqrt(fan_in), 1/sqrt(fan_in)); or zero."""

    def uniform(key: Array, shape: tuple[int, ...], dtype=jnp.float32, *_) -> Array:
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return {
        "kernel_init": nn.initializers.zeros if zero else torch_kernel,
        "bias_init": nn.initializers.zeros if zero else uniform,
    }


def _conv(x: Float[Array, "b h w c"], features: int, *, zero: bool = False, **kwargs) -> Float[Array, "b h2 w2 c2"]:
    # One pixel of padding on every side: "SAME" would put none above and left of an even image at stride 2.
    return nn.Conv(features, (3, 3), padding=1, **_init(9 * x.shape[-1], zero), **kwargs)(x)


def _dense(x: Float[Array, "*b c"], features: int, *, zero: bool = False, **kwargs) -> Float[Array, "*b c2"]:
    return layers.Dense(features, **_init(x.shape[-1], zero), **kwargs)(x)


def group_norm(x: Float[Array, "b h w c"], name: str) -> Float[Array, "b h w c"]:
    """GroupNorm of 32 groups as published; the next smaller divisor where that leaves a remainder."""
    groups = next(n for n in range(32, 0, -1) if x.shape[-1] % n == 0)
    return layers.GroupNorm(groups, epsilon=1e-5, name=name)(x)


class ADM(nn.Module):
    """Time- and label-conditional U-Net; skip connections between the two ways, attention at some resolutions.

    Published with attention_resolutions=(16, 8), num_heads=4 and num_res_blocks=3: CIFAR-10 has width=128 and
    channel_mult=(1, 2, 2, 2) (52.5 M parameters), ImageNet 64 x 64 width=128 and channel_mult=(1, 2, 3, 4) (121 M).
    guided-diffusion's have attention_resolutions=(32, 16, 8), num_res_blocks=2 and resample_blocks: ImageNet 64 x 64
    (295.9 M; num_res_blocks=3, qkv_first), 128 (421.5 M), 256 (553.8 M), 512 (559.0 M; embedding_width twice width).

    Attributes:
        width: channels of the first level; level i has width * channel_mult[i] at 1 / 2^i of the image's resolution.
        attention_resolutions: heights at which attention follows each residual block, on both ways.
        num_heads_upsample: heads on the way up; as num_heads if None or -1.
        head_channels: channels of a head, however many heads that makes; None for those numbers of heads.
        qkv_first: whether the channels of attention are q, k, v and then heads, or heads and then q, k, v.
        embedding_width: channels of the time's features, a fourth of the embedding's; as width if None.
        scale_shift_norm: the time scales and shifts the second norm of a block, instead of adding to its input.
        conv_resample: resample by convolutions, instead of plain averages and repetition.
        resample_blocks: resample inside residual blocks of their own, instead of either.
        super_resolution: condition["low_res"], an image of smaller size, is upsampled bilinearly and joins x.
        remat: what the backward pass keeps of a block: all (none), what weights give (dots), nothing (full).
        out_channels: as the input if None; twice as many for a learned variance.
    Raises:
        UserError: sides that are no multiples of 2^(levels - 1), heads that do not divide the channels, no low_res.
    """

    width: Count = 128
    channel_mult: Annotated[tuple[int, ...], Limits(least=1, fewest=1)] = (1, 2, 2, 2)
    num_res_blocks: Whole = 3
    attention_resolutions: Annotated[tuple[int, ...], Limits(least=0)] = (16, 8)
    num_heads: Count = 4
    num_heads_upsample: Annotated[int, Limits(least=-1)] | None = None
    scale_shift_norm: bool = True
    conv_resample: bool = True
    super_resolution: Annotated[bool, Given("whether config.model.low_res is above 0")] = False
    remat: Remat = "none"
    dropout: layers.Dropout = 0.0
    num_classes: layers.ClassesGiven = 0
    augment_dim: layers.AugmentGiven = 0
    span: layers.SpanGiven = False
    guidance: layers.GuidanceGiven = False
    out_channels: layers.ChannelsGiven = None
    head_channels: Count | None = None
    qkv_first: bool = False
    resample_blocks: bool = False
    embedding_width: Count | None = None
    dtype: layers.PrecisionGiven = "float32"

    casts: ClassVar[bool] = True  # parameters of two axes and more are used in dtype alone, and may be sent in it

    def __post_init__(self):
        check_fields(self)
        if self.num_heads_upsample == 0:
            raise UserError(f"{type(self).__name__}.num_heads_upsample is 0; allowed: 1 or more, or -1 (as num_heads).")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, "b"],
        condition: Condition = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "b h w c_out"]:
        self._check_size(x)
        out_channels = x.shape[-1] if self.out_channels is None else self.out_channels
        embedding = self._embed(time, condition, self.num_classes)
        if self.super_resolution:
            x = _join_low_res(x, condition)
        h, skips = self._encode(x, embedding, deterministic)
        h = self._up(h, skips, embedding, deterministic)
        h = nn.swish(group_norm(h, "norm_out"))
        return layers.at_least_float32(_conv(h, out_channels, zero=True, dtype=self.dtype, name="conv_out"))

    def _embed(self, time: Float[Array, "b"], condition: Condition, num_classes: int) -> Float[Array, "b e"]:
        width = self.embedding_width or self.width
        embed = layers.Embedding(
            4 * width,
            num_classes,
            torch_kernel,
            self.dtype,
            label_std=1.0,
            augment_dim=self.augment_dim,
            span=self.span,
            guidance=self.guidance,
            name="embedding",
        )
        # Every block starts with a swish of it: once for all.
        return nn.swish(embed(layers.transformer_features(time, width), condition))

    def _encode(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"], deterministic: bool
    ) -> tuple[Float[Array, "b h2 w2 c2"], list[Float[Array, "b _ _ _"]]]:
        """Return what the lowest level makes of an image, and the skip connections."""
        h = _conv(x, self.width, dtype=self.dtype, name="conv_in")
        h, skips = self._down(h, embedding, deterministic)
        h = self._block("middle_0", h.shape[-1], deterministic)(h, embedding)
        h = self._attention("middle_attention", self.num_heads, h.shape[-1])(h)
        return self._block("middle_1", h.shape[-1], deterministic)(h, embedding), skips

    def _down(
        self, h: Float[Array, "b h w c"], embedding: Float[Array, "b e"], deterministic: bool
    ) -> tuple[Float[Array, "b h2 w2 c2"], list[Float[Array, "b _ _ _"]]]:
        skips = [h]
        for level, mult in enumerate(self.channel_mult):
            if level and self.resample_blocks:
                h = self._block(f"down_{level}_resample", h.shape[-1], deterministic, "down")(h, embedding)
            elif level and self.conv_resample:
                h = _conv(h, h.shape[-1], strides=2, dtype=self.dtype, name=f"down_{level}_resample")
            elif level:
                h = resample.downsample(h)
            if level:
                skips.append(h)
            for block in range(self.num_res_blocks):
                h = self._block(f"down_{level}_{block}", self.width * mult, deterministic)(h, embedding)
                if h.shape[1] in self.attention_resolutions:
                    h = self._attention(f"down_{level}_{block}_attention", self.num_heads, h.shape[-1])(h)
                skips.append(h)
        return h, skips

    def _up(
        self,
        h: Float[Array, "b h w c"],
        skips: list[Float[Array, "b _ _ _"]],
        embedding: Float[Array, "b e"],
        deterministic: bool,
    ) -> Float[Array, "b h2 w2 c2"]:
        heads = self.num_heads if self.num_heads_upsample in (None, -1) else self.num_heads_upsample
        for level, mult in reversed(tuple(enumerate(self.channel_mult))):
            for block in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(f"up_{level}_{block}", self.width * mult, deterministic)(h, embedding)
                if h.shape[1] in self.attention_resolutions:
                    h = self._attention(f"up_{level}_{block}_attention", heads, h.shape[-1])(h)
            if level and self.resample_blocks:
                h = self._block(f"up_{level}_resample", h.shape[-1], deterministic, "up")(h, embedding)
            elif level:
                h = resample.upsample(h)
                if self.conv_resample:
                    h = _conv(h, h.shape[-1], dtype=self.dtype, name=f"up_{level}_resample")
        assert not skips  # one for each block of the way up
        return h

    def _block(self, name: str, features: int, deterministic: bool, direction: str | None = None) -> nn.Module:
        block = rematted(ResidualBlock, self.remat)
        return block(features, direction, self.dropout, self.scale_shift_norm, deterministic, self.dtype, name=name)

    def _attention(self, name: str, num_heads: int, channels: int) -> nn.Module:
        if self.head_channels and channels % self.head_channels:
            raise UserError(f"ADM: heads of {self.head_channels} channels do not divide the {channels} of {name}.")
        block, heads = rematted(AttentionBlock, self.remat), self.head_channels and channels // self.head_channels
        return block(heads or num_heads, self.dtype, self.qkv_first, name=name)

    def _check_size(self, x: Float[Array, "..."]) -> None:
        levels = len(self.channel_mult)
        factor = 2 ** (levels - 1)
        if x.ndim != 4 or x.shape[1] % factor or x.shape[2] % factor:
            raise UserError(
                f"ADM with {levels} levels needs images (b, h, w, c) with h and w multiples of {factor}, "
                f"got shape {x.shape}."
            )


def _join_low_res(x: Float[Array, "b h w c"], condition: Condition) -> Float[Array, "b h w c2"]:
    """x and the image to be enlarged, bilinear between pixel centres, as further channels."""
    if condition is None or "low_res" not in condition:
        got = ", ".join(condition or ()) or "nothing"
        raise UserError(f"A network with super_resolution=True needs condition['low_res'], got {got}.")
    low_res = condition["low_res"]
    upsampled = jax.image.resize(low_res, (*x.shape[:3], low_res.shape[-1]), "bilinear", antialias=False)
    return jnp.concatenate([x, upsampled.astype(x.dtype)], axis=-1)


class ResidualBlock(nn.Module):
    """x + conv(swish(norm(h) (1 + scale) + shift)), h = conv(swish(norm(x))); or norm(h + shift).

    With a direction, "up" or "down", x and what the first convolution is given are resampled by 2.
    """

    features: int
    direction: str | None
    dropout: float
    scale_shift_norm: bool
    deterministic: bool  # a field, as remat would trace an argument
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"]) -> Float[Array, "b h2 w2 c2"]:
        h = nn.swish(group_norm(x, "norm_0"))
        if self.direction:
            resampled = {"up": resample.upsample, "down": resample.downsample}[self.direction]
            h, x = resampled(h), resampled(x)
        h = _conv(h, self.features, dtype=self.dtype, name="conv_0")
        n = 2 * self.features if self.scale_shift_norm else self.features
        modulation = _dense(embedding, n, dtype=self.dtype, name="embedding")[:, None, None]
        if self.scale_shift_norm:
            scale, shift = jnp.split(modulation, 2, axis=-1)
            h = group_norm(h, "norm_1") * (1 + scale) + shift
        else:
            h = group_norm(h + modulation, "norm_1")
        h = nn.Dropout(self.dropout, deterministic=self.deterministic)(nn.swish(h))
        h = _conv(h, self.features, zero=True, dtype=self.dtype, name="conv_1")
        if self.features != x.shape[-1]:
            x = _dense(x, self.features, dtype=self.dtype, name="shortcut")
        return x + h


class AttentionBlock(nn.Module):
    """x + W softmax(q k^T / sqrt(d)) v over the pixels of an image, d = c / num_heads."""

    num_heads: int
    dtype: str
    qkv_first: bool = False  # the order of the channels, both published: of all heads q, k, v, or of each head its own

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, height, width, c = x.shape
        if c % self.num_heads:
            raise UserError(f"ADM: {self.num_heads} heads do not divide the {c} channels at height {height}.")
        qkv = _dense(group_norm(x, "norm"), 3 * c, dtype=self.dtype, name="qkv")
        order = (3, self.num_heads) if self.qkv_first else (self.num_heads, 3)
        qkv = qkv.reshape(b, height * width, *order, c // self.num_heads)
        h = attention(*(qkv[:, :, i] if self.qkv_first else qkv[..., i, :] for i in range(3)))
        return x + _dense(h.reshape(x.shape), c, zero=True, dtype=self.dtype, name="out")


build = ADM
