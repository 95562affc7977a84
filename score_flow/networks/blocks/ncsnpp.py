"""The blocks of NCSN++, DDPM++ and DDPM (Song et al. 2021, app. H, arXiv:2011.13456; no plug-in: no `build`)."""

import math
from functools import partial

import flax.linen as nn
from jaxtyping import Array, Float

from score_flow.networks.blocks import layers, resample
from score_flow.networks.blocks.attention import attention
from score_flow.networks.blocks.layers import scaled_uniform


def conv(features: int, scale: float = 1.0, **kwargs) -> nn.Conv:
    """Return a 3 x 3 convolution whose weights start with variance scale / mean fan."""
    return nn.Conv(features, (3, 3), kernel_init=scaled_uniform(scale), **kwargs)


def group_norm(channels: int, groups: int | None, name: str) -> nn.Module:
    """Normalisation of `groups` groups, min(channels / 4, 32) if None: that or the next smaller divisor of channels."""
    most = min(channels // 4, 32) if groups is None else groups
    return layers.GroupNorm(next(n for n in range(max(most, 1), 0, -1) if channels % n == 0), name=name)


def residual_sum(x: Float[Array, "b h w c"], h: Float[Array, "b h w c"], rescale: bool) -> Float[Array, "b h w c"]:
    """x + h, over sqrt(2) if rescaled: then a sum of independent terms of variance 1 has variance 1."""
    return (x + h) * math.sqrt(0.5) if rescale else x + h


class ResidualBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x))) + W embedding))), resampled between the first norm and conv if asked."""

    features: int | None  # None: as the input
    direction: str | None  # of resampling: "up", "down" or None
    fir_kernel: resample.Kernel | None
    shortcut_scale: float
    init_scale: float
    skip_rescale: bool
    nonlinearity: str
    groups: int | None
    dropout: float
    deterministic: bool  # a field, as remat would trace an argument
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"] | None) -> Float[Array, "b h2 w2 c2"]:
        features = self.features or x.shape[-1]
        act = layers.NONLINEARITIES[self.nonlinearity]
        h = self._resampled(act(group_norm(x.shape[-1], self.groups, name="norm_0")(x)))
        h = conv(features, dtype=self.dtype, name="conv_0")(h)
        if embedding is not None:
            shift = layers.Dense(features, kernel_init=scaled_uniform(), dtype=self.dtype, name="embedding")(embedding)
            h += shift[:, None, None]
        h = act(group_norm(features, self.groups, name="norm_1")(h))
        h = nn.Dropout(self.dropout, deterministic=self.deterministic)(h)
        h = conv(features, self.init_scale, dtype=self.dtype, name="conv_1")(h)
        if features != x.shape[-1] or self.direction:
            init = scaled_uniform(self.shortcut_scale)
            shortcut = layers.Dense(features, kernel_init=init, dtype=self.dtype, name="shortcut")
            # A map of channels commutes with repeating pixels (not with FIR: the bias would fade at the border): do it
            # on the smaller image.
            first = self.direction == "up" and self.fir_kernel is None
            x = self._resampled(shortcut(x)) if first else shortcut(self._resampled(x))
        return residual_sum(x, h, self.skip_rescale)

    def _resampled(self, image: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        if self.direction is None:
            return image
        return {"up": resample.upsample, "down": resample.downsample}[self.direction](image, self.fir_kernel)


class AttentionBlock(nn.Module):
    """x + W softmax(q k^T / sqrt(c)) v over the pixels of an image; one head (Ho et al. 2020, app. B)."""

    init_scale: float
    skip_rescale: bool
    groups: int | None
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, height, width, c = x.shape
        dense = partial(layers.Dense, dtype=self.dtype)
        h = group_norm(c, self.groups, name="norm")(x).reshape(b, height * width, 1, c)
        q, k, v = (dense(c, kernel_init=scaled_uniform(0.1), name=name)(h) for name in ("query", "key", "value"))
        h = dense(c, kernel_init=scaled_uniform(self.init_scale), name="out")(attention(q, k, v))
        return residual_sum(x, h.reshape(x.shape), self.skip_rescale)


class ResamplingConv(nn.Module):
    """A 3 x 3 convolution and resampling by 2, "up" or "down", in one; with a FIR filter if there is a kernel."""

    features: int
    direction: str
    fir_kernel: resample.Kernel | None
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        kernel = self.param("kernel", scaled_uniform(), (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        convolve = {"up": resample.upsample_conv, "down": resample.conv_downsample}[self.direction]
        return convolve(x, kernel, self.fir_kernel) + bias
