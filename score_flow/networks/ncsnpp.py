"""DDPM++: the U-Net of score_sde (Song et al. 2021, app. H, arXiv:2011.13456; Ho et al. 2020, arXiv:2006.11239)."""

import math
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from score_flow.networks import layers
from score_flow.networks.layers import scaled_uniform
from score_flow.types import Condition, UserError

RESBLOCKS = ("biggan", "ddpm")


def _conv(features: int, scale: float = 1.0, **kwargs) -> nn.Conv:
    return nn.Conv(features, (3, 3), kernel_init=scaled_uniform(scale), **kwargs)


def _groups(channels: int) -> int:
    """min(channels / 4, 32) as published; the next smaller divisor where that leaves a remainder."""
    return next(n for n in range(min(max(channels // 4, 1), 32), 0, -1) if channels % n == 0)


class NCSNpp(nn.Module):
    """Time- and label-conditional U-Net; skip connections between the two ways, attention at some resolutions.

    Published: width=128, channel_mult=(1, 2, 2, 2), attention_resolutions=(16,) with num_res_blocks=4 is DDPM++ cont.
    (61.8 M parameters on 32 x 32 x 3), with num_res_blocks=8 DDPM++ cont. deep (106.6 M).

    Attributes:
        width: channels of the first level; level i has width * channel_mult[i] at 1 / 2^i of the image's resolution.
        attention_resolutions: heights at which attention follows each residual block (down) or the last one (up).
        embedding: "positional" (sin | cos) or "fourier" (random frequencies of scale fourier_scale) time features.
        resblock: "biggan" resamples inside residual blocks, "ddpm" by convolutions between them.
        skip_rescale: divide every residual sum by sqrt(2).
        out_channels: as the input if None.
    Raises:
        UserError: an unknown embedding or resblock, or an image whose sides are not multiples of 2^(levels - 1).
    """

    width: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 4
    attention_resolutions: tuple[int, ...] = (16,)
    embedding: str = "positional"
    fourier_scale: float = 16.0
    resblock: str = "biggan"
    skip_rescale: bool = True
    dropout: float = 0.0
    num_classes: int = 0
    out_channels: int | None = None
    dtype: str = "float32"

    def __post_init__(self):
        layers.check_choice("embedding", self.embedding, layers.TIME_FEATURES)
        layers.check_choice("resblock", self.resblock, RESBLOCKS)
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
        features = layers.TimeFeatures(self.embedding, self.width, self.fourier_scale, name="time_features")(time)
        embed = layers.Embedding(4 * self.width, self.num_classes, dtype=self.dtype, name="embedding")
        embedding = nn.swish(embed(features, condition))  # every block starts with it: once for all

        h = _conv(self.width, dtype=self.dtype, name="conv_in")(x)
        h, skips = self._down(h, embedding, deterministic)
        h = self._block("middle_0")(h, embedding, deterministic)
        h = self._attention("middle_attention")(h)
        h = self._block("middle_1")(h, embedding, deterministic)
        h = self._up(h, skips, embedding, deterministic)
        h = nn.swish(layers.GroupNorm(_groups(h.shape[-1]), name="norm_out")(h))
        out_channels = x.shape[-1] if self.out_channels is None else self.out_channels
        return _conv(out_channels, scale=0.0, dtype=self.dtype, name="conv_out")(h).astype(jnp.float32)

    def _down(
        self, h: Float[Array, "b h w c"], embedding: Float[Array, "b e"], deterministic: bool
    ) -> tuple[Float[Array, "b h2 w2 c2"], list[Float[Array, "b _ _ _"]]]:
        skips = [h]
        for level, mult in enumerate(self.channel_mult):
            if level:
                h = self._resample(f"down_{level}_resample", "down", h, embedding, deterministic)
                skips.append(h)
            for block in range(self.num_res_blocks):
                h = self._block(f"down_{level}_{block}", self.width * mult)(h, embedding, deterministic)
                if h.shape[1] in self.attention_resolutions:
                    h = self._attention(f"down_{level}_{block}_attention")(h)
                skips.append(h)
        return h, skips

    def _up(
        self,
        h: Float[Array, "b h w c"],
        skips: list[Float[Array, "b _ _ _"]],
        embedding: Float[Array, "b e"],
        deterministic: bool,
    ) -> Float[Array, "b h2 w2 c2"]:
        for level, mult in reversed(tuple(enumerate(self.channel_mult))):
            for block in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(f"up_{level}_{block}", self.width * mult)(h, embedding, deterministic)
            if h.shape[1] in self.attention_resolutions:
                h = self._attention(f"up_{level}_attention")(h)
            if level:
                h = self._resample(f"up_{level}_resample", "up", h, embedding, deterministic)
        assert not skips  # one for each block of the way up
        return h

    def _block(self, name: str, features: int | None = None, resample: str | None = None) -> "ResidualBlock":
        shortcut_scale = 1.0 if self.resblock == "biggan" else 0.1  # score_sde's 1 x 1 layers ("NIN") start at scale .1
        return ResidualBlock(features, resample, self.dropout, self.skip_rescale, shortcut_scale, self.dtype, name=name)

    def _attention(self, name: str) -> "AttentionBlock":
        return AttentionBlock(self.skip_rescale, self.dtype, name=name)

    def _resample(
        self, name: str, direction: str, h: Float[Array, "b h w c"], embedding: Float[Array, "b e"], deterministic: bool
    ) -> Float[Array, "b h2 w2 c"]:
        if self.resblock == "biggan":
            return self._block(name, resample=direction)(h, embedding, deterministic)
        conv = partial(_conv, h.shape[-1], dtype=self.dtype, name=name)
        return conv()(layers.upsample(h)) if direction == "up" else conv(strides=2)(h)

    def _check_size(self, x: Float[Array, "..."]) -> None:
        levels = len(self.channel_mult)
        factor = 2 ** (levels - 1)
        if x.ndim != 4 or x.shape[1] % factor or x.shape[2] % factor:
            raise UserError(
                f"NCSNpp with {levels} levels needs images (b, h, w, c) with h and w multiples of {factor}, "
                f"got shape {x.shape}."
            )


class ResidualBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x))) + W embedding))), resampled between the first norm and conv if asked."""

    features: int | None  # None: as the input
    resample: str | None  # "up", "down" or None
    dropout: float
    skip_rescale: bool
    shortcut_scale: float
    dtype: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"], deterministic: bool
    ) -> Float[Array, "b h2 w2 c2"]:
        features = self.features or x.shape[-1]
        resample = {"up": layers.upsample, "down": layers.downsample, None: lambda image: image}[self.resample]
        h = nn.swish(layers.GroupNorm(_groups(x.shape[-1]), name="norm_0")(x))
        h = _conv(features, dtype=self.dtype, name="conv_0")(resample(h))
        shift = nn.Dense(features, kernel_init=scaled_uniform(), dtype=self.dtype, name="embedding")(embedding)
        h = nn.swish(layers.GroupNorm(_groups(features), name="norm_1")(h + shift[:, None, None]))
        h = nn.Dropout(self.dropout, deterministic=deterministic)(h)
        h = _conv(features, scale=0.0, dtype=self.dtype, name="conv_1")(h)
        if features != x.shape[-1] or self.resample:
            init = scaled_uniform(self.shortcut_scale)
            shortcut = nn.Dense(features, kernel_init=init, dtype=self.dtype, name="shortcut")
            # A map of channels commutes with resampling: do it on the smaller image.
            x = resample(shortcut(x)) if self.resample == "up" else shortcut(resample(x))
        return _residual_sum(x, h, self.skip_rescale)


class AttentionBlock(nn.Module):
    """x + W softmax(q k^T / sqrt(c)) v over the pixels of an image; one head (Ho et al. 2020, app. B)."""

    skip_rescale: bool
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, height, width, c = x.shape
        dense = partial(nn.Dense, dtype=self.dtype)
        h = layers.GroupNorm(_groups(c), name="norm")(x).reshape(b, height * width, 1, c)
        q, k, v = (dense(c, kernel_init=scaled_uniform(0.1), name=name)(h) for name in ("query", "key", "value"))
        h = dense(c, kernel_init=scaled_uniform(0.0), name="out")(layers.attention(q, k, v))
        return _residual_sum(x, h.reshape(x.shape), self.skip_rescale)


def _residual_sum(x: Float[Array, "b h w c"], h: Float[Array, "b h w c"], rescale: bool) -> Float[Array, "b h w c"]:
    return (x + h) * math.sqrt(0.5) if rescale else x + h


build = NCSNpp
