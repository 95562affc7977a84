"""The blocks of NCSN and NCSNv2: normalisations, residual blocks, RefineNet's decoder (no plug-in: no `build`).

Lin et al. 2016 (arXiv:1611.06612), as in Song and Ermon 2019, app. A (arXiv:1907.05600).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from score_flow.networks.blocks import layers, resample

# What a normalisation learns for each channel, in the order of the published tables of one row per noise level.
COEFFICIENTS = {
    "InstanceNorm++": ("scale", "alpha", "bias"),
    "InstanceNorm": ("scale", "bias"),
    "VarianceNorm": ("scale",),
    "NoneNorm": ("scale", "bias"),
}
INTERPOLATIONS = ("bilinear", "bilinear_align_corners", "nearest_neighbor")


class Norm(nn.Module):
    """Normalisation over an image, in float32; m and v are the mean and variance of each channel over its pixels.

        InstanceNorm++:  scale ((x - m) / sqrt(v) + alpha (m - mean(m)) / sqrt(var(m))) + bias
        InstanceNorm:    scale (x - m) / sqrt(v) + bias
        VarianceNorm:    scale x / sqrt(v)
        NoneNorm:        scale x + bias

    up to an epsilon added to each variance. mean(m) and var(m) are over the channels: InstanceNorm forgets m, and with
    it the colours (arXiv:1907.05600, app. A.1). With num_scales, scale, alpha and bias are those of a noise level: one
    row of a table.

    Attributes:
        unbiased: variances divide by n - 1, but for those of (x - m) / sqrt(v).
    """

    kind: str
    num_scales: int = 0
    unbiased: bool = False
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], level: Int[Array, "b"] | None = None) -> Float[Array, "b h w c"]:
        y = layers.at_least_float32(x)
        coefficients = self._coefficients(x.shape[-1], level)
        if self.kind == "VarianceNorm":
            y = self._over_deviation(y, y, (1, 2), self.unbiased)
        elif self.kind != "NoneNorm":
            mean = y.mean(axis=(1, 2), keepdims=True)
            y = self._over_deviation(y - mean, y, (1, 2), unbiased=False)
            if self.kind == "InstanceNorm++":
                centred = mean - mean.mean(axis=-1, keepdims=True)
                y += coefficients["alpha"] * self._over_deviation(centred, mean, -1, self.unbiased)
        return (y * coefficients["scale"] + coefficients.get("bias", 0.0)).astype(x.dtype)

    def _over_deviation(
        self, x: Float[Array, "..."], sample: Float[Array, "..."], axis: int | tuple[int, ...], unbiased: bool
    ) -> Float[Array, "..."]:
        """x over the standard deviation of a sample."""
        return x / jnp.sqrt(jnp.var(sample, axis=axis, ddof=int(unbiased), keepdims=True) + self.epsilon)

    def _coefficients(self, channels: int, level: Int[Array, "b"] | None) -> dict[str, Float[Array, "..."]]:
        names = COEFFICIENTS[self.kind]
        if not self.num_scales:
            return {name: jnp.asarray(self.param(name, self._init, (channels,), name)) for name in names}

        def init(key: Array) -> Float[Array, "n m"]:
            keys, shape = jax.random.split(key, len(names)), (self.num_scales, channels)
            return jnp.concatenate([self._init(k, shape, name) for k, name in zip(keys, names, strict=True)], axis=1)

        rows = jnp.asarray(self.param("embedding", init))[level][:, None, None]
        return dict(zip(names, jnp.split(rows, len(names), axis=-1), strict=True))

    def _init(self, key: Array, shape: tuple[int, ...], name: str) -> Float[Array, "..."]:
        """Scale and alpha ~ N(1, .02^2) as published, but for InstanceNorm's and NoneNorm's scale, 1; bias 0."""
        deviation = 0.02 if self.kind in ("InstanceNorm++", "VarianceNorm") and name != "bias" else 0.0
        return float(name != "bias") + deviation * jax.random.normal(key, shape, jnp.float32)


def average_pool(x: Float[Array, "b h w c"], window: tuple[int, int]) -> Float[Array, "b h w c"]:
    """Average of each window, zeros outside of the image counted; in float32, as it sums 25 terms."""
    return nn.avg_pool(layers.at_least_float32(x), window, padding="SAME").astype(x.dtype)


def max_pool(x: Float[Array, "b h w c"], window: tuple[int, int]) -> Float[Array, "b h w c"]:
    """Maximum of each window."""
    return nn.max_pool(x, window, padding="SAME")


def upsample(x: Float[Array, "b h w c"], interpolation: str) -> Float[Array, "b 2*h 2*w c"]:
    """x at twice its resolution; bilinear between the centres of pixels, or with the corners of both grids aligned."""
    if interpolation == "nearest_neighbor":
        return resample.upsample(x)
    rows, columns = (doubling_matrix(n, interpolation == "bilinear_align_corners") for n in x.shape[1:3])
    x = jnp.einsum("bhwc,Hh->bHwc", x, jnp.asarray(rows, x.dtype), precision="highest")
    return jnp.einsum("bhwc,Ww->bhWc", x, jnp.asarray(columns, x.dtype), precision="highest")


def doubling_matrix(n: int, align_corners: bool) -> np.ndarray:
    """Linear interpolation from n to 2 n points of a line, (2 n, n); constant beyond the outer points."""
    points = np.arange(2 * n)
    positions = points * (n - 1) / (2 * n - 1) if align_corners else np.clip(points / 2 - 0.25, 0, n - 1)
    return np.maximum(1 - np.abs(positions[:, None] - np.arange(n)), 0.0)


def uniform(fan_in: int) -> Callable[..., Array]:
    """Initialiser U(-a, a), a = 1 / sqrt(fan_in)."""
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)


class Style(NamedTuple):
    """What the blocks of a network share; `norm` is a Norm but for its name, or None."""

    act: Callable[[Array], Array]
    norm: Callable[..., Norm] | None
    pool: Callable[..., Array]
    interpolation: str
    dtype: str

    def normalised(
        self, x: Float[Array, "b h w c"], level: Int[Array, "b"] | None, name: str
    ) -> Float[Array, "b h w c"]:
        return x if self.norm is None else self.norm(name=name)(x, level)

    def conv(
        self, x: Float[Array, "b h w c"], features: int, name: str, dilation: int = 1, use_bias: bool = True
    ) -> Float[Array, "b h w features"]:
        """3 x 3 convolution; kernel and bias start as torch's default, which score_sde keeps for NCSN."""
        init = uniform(fan_in=9 * x.shape[-1])
        layer = partial(nn.Conv, features, (3, 3), kernel_dilation=dilation, use_bias=use_bias, dtype=self.dtype)
        return layer(kernel_init=init, bias_init=init, name=name)(x)


class ResidualBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), to `features` channels when it goes down.

    Down, it halves the image, or dilates instead where dilation > 1; a convolution then takes the place of x.
    """

    style: Style
    features: int
    down: bool
    dilation: int
    dropout: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], level: Int[Array, "b"] | None, deterministic: bool
    ) -> Float[Array, "b h2 w2 c2"]:
        style, dilated = self.style, partial(self.style.conv, dilation=self.dilation)
        h = dilated(style.act(style.normalised(x, level, "norm_0")), x.shape[-1], "conv_0")
        h = style.act(style.normalised(h, level, "norm_1"))
        h = nn.Dropout(self.dropout, deterministic=deterministic)(h)
        if not self.down:
            return x + dilated(h, self.features, "conv_1")
        if self.dilation > 1:
            return dilated(x, self.features, "shortcut") + dilated(h, self.features, "conv_1")
        # These two start as flax's default, like score_sde's. The mean of a map of pixels is the map of the mean.
        plain = partial(nn.Conv, self.features, dtype=style.dtype)
        shortcut = plain((1, 1), name="shortcut")(resample.downsample(x))
        return shortcut + resample.downsample(plain((3, 3), name="conv_1")(h))


class ResidualConvUnits(nn.Module):
    """`depth` times x + conv(act(norm(conv(act(norm(x)))))), without biases."""

    style: Style
    depth: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], level: Int[Array, "b"] | None) -> Float[Array, "b h w c"]:
        for i in range(self.depth):
            h = x
            for j in range(2):
                h = self.style.act(self.style.normalised(h, level, f"norm_{i}_{j}"))
                h = self.style.conv(h, x.shape[-1], f"conv_{i}_{j}", use_bias=False)
            x += h
        return x


class MultiResolutionFusion(nn.Module):
    """The sum of conv(norm(x)) over an image and a second one of its size or half of it."""

    style: Style
    features: int

    @nn.compact
    def __call__(
        self, fine: Float[Array, "b h w c"], coarse: Float[Array, "b h2 w2 c2"], level: Int[Array, "b"] | None
    ) -> Float[Array, "b h w c3"]:
        style = self.style
        fine = style.conv(style.normalised(fine, level, "norm_0"), self.features, "conv_0")
        coarse = style.conv(style.normalised(coarse, level, "norm_1"), self.features, "conv_1")
        return fine + (coarse if coarse.shape == fine.shape else upsample(coarse, style.interpolation))


class ChainedResidualPooling(nn.Module):
    """y + p1 + p2 with y = act(x), p1 = conv(pool(norm(y))), p2 = conv(pool(norm(p1))); windows of 5 x 5."""

    style: Style

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], level: Int[Array, "b"] | None) -> Float[Array, "b h w c"]:
        x = path = self.style.act(x)
        for i in range(2):
            path = self.style.pool(self.style.normalised(path, level, f"norm_{i}"), (5, 5))
            path = self.style.conv(path, x.shape[-1], f"conv_{i}", use_bias=False)
            x += path
        return x


class RefineBlock(nn.Module):
    """Residual units of each input, their fusion to `features` channels, chained pooling, `depth` residual units."""

    style: Style
    features: int
    depth: int

    @nn.compact
    def __call__(
        self, xs: tuple[Float[Array, "b _ _ _"], ...], level: Int[Array, "b"] | None
    ) -> Float[Array, "b h w c"]:
        hs = [ResidualConvUnits(self.style, 2, name=f"adapt_{i}")(x, level) for i, x in enumerate(xs)]
        h = hs[0] if len(hs) == 1 else MultiResolutionFusion(self.style, self.features, name="fusion")(*hs, level)
        h = ChainedResidualPooling(self.style, name="pooling")(h, level)
        return ResidualConvUnits(self.style, self.depth, name="out")(h, level)
