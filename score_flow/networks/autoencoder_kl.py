"""The autoencoder of latent diffusion (Rombach et al. 2021, arXiv:2112.10752; Kingma, Welling 2013, arXiv:1312.6114).

No plug-in, hence no `build`: it maps images to latents and back, not noisy images to predictions.
"""

import math
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from score_flow.errors import UserError
from score_flow.networks.blocks import layers, resample
from score_flow.networks.blocks.attention import attention
from score_flow.numerics import sum_flat
from score_flow.types import Images

LOG_VARIANCE = (-30.0, 20.0)  # what the encoder's log variance is clamped to


class DiagonalGaussian(NamedTuple):
    """N(mean, diag(exp log_variance)), one law for each example; densities and divergences are summed over it."""

    mean: Images
    log_variance: Images

    @classmethod
    def from_moments(cls, moments: Float[Array, "b h w m"]) -> "DiagonalGaussian":
        """Return the law whose mean and log variance, clamped to [-30, 20], are the two halves of the channels."""
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return cls(mean, jnp.clip(log_variance, *LOG_VARIANCE))

    @property
    def mode(self) -> Images:
        return self.mean

    @property
    def variance(self) -> Images:
        return jnp.exp(self.log_variance)

    @property
    def std(self) -> Images:
        return jnp.exp(0.5 * self.log_variance)

    def sample(self, noise: Images) -> Images:
        """mean + std noise, for noise ~ N(0, I)."""
        return self.mean + self.std * noise

    def nll(self, x: Images) -> Float[Array, "b"]:
        """-log N(x; mean, variance) in nats."""
        squares = jnp.square(x - self.mean) * jnp.exp(-self.log_variance)
        return 0.5 * sum_flat(math.log(2 * math.pi) + self.log_variance + squares)

    def kl(self, other: "DiagonalGaussian | None" = None) -> Float[Array, "b"]:
        """KL(self || other) in nats; other is N(0, I) if None."""
        mean, log_variance = (0.0, 0.0) if other is None else other
        log_ratio = self.log_variance - log_variance
        squares = jnp.square(self.mean - mean) * jnp.exp(-log_variance)
        return 0.5 * sum_flat(squares + jnp.exp(log_ratio) - 1.0 - log_ratio)


class AutoencoderKL(nn.Module):
    """A convolutional encoder to a Gaussian over latents, 2^(levels - 1) times smaller, and a decoder back to images.

    Published: the defaults (Stable Diffusion), 83 653 863 parameters, 256 x 256 x 3 images to 32 x 32 x 4 latents;
    latent_channels=16 without quant_convs (Stable Diffusion 3, Flux); channels=(128, 128, 256, 256, 512) with 32
    latent_channels and attends=True, to 16 x 16 (VA-VAE f16d32, arXiv:2501.01423). A diffusion model works on
    (latent - shift) scale, which is the caller's business: nothing is scaled here.

    Attributes:
        channels: of each level, finest first.
        layers_per_block: residual blocks of each level of the encoder; the decoder has one more.
        groups: of every normalisation.
        quant_convs: maps of channels between the moments and the encoder, and the latents and the decoder.
        attends: attention after every residual block of the coarsest level too, not between the middle ones alone.
        centered: whether it is shown pixels in [-1, 1], as it takes and makes them, or in [0, 1] (EDM2).
    Raises:
        UserError: channels that the groups do not divide, or an image whose sides are not multiples of 2^(levels - 1).
    """

    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    in_channels: int = 3
    out_channels: int = 3
    groups: int = 32
    quant_convs: bool = True
    attends: bool = False
    centered: bool = True
    dtype: str = "float32"

    def __post_init__(self):
        if any(c % self.groups for c in self.channels):
            raise UserError(f"AutoencoderKL needs channels divisible by groups={self.groups}, got {self.channels}.")
        super().__post_init__()

    def setup(self):
        shape = (self.channels, self.layers_per_block)
        self.encoder = AutoencoderEncoder(*shape, 2 * self.latent_channels, self.groups, self.attends, self.dtype)
        self.decoder = AutoencoderDecoder(*shape, self.out_channels, self.groups, self.attends, self.dtype)
        if self.quant_convs:
            self.quant_conv = nn.Dense(2 * self.latent_channels, dtype=self.dtype)
            self.post_quant_conv = nn.Dense(self.latent_channels, dtype=self.dtype)

    def moments(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 m"]:
        """Mean and unclamped log variance of the latents, one after the other along the channels."""
        self._check_size(x)
        h = self.encoder(x if self.centered else (x + 1) / 2)
        return layers.at_least_float32(self.quant_conv(h) if self.quant_convs else h)

    def encode(self, x: Float[Array, "b h w c"]) -> DiagonalGaussian:
        """q(latent | x)."""
        return DiagonalGaussian.from_moments(self.moments(x))

    def decode(self, z: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c_out"]:
        """Return the image of a latent."""
        x = layers.at_least_float32(self.decoder(self.post_quant_conv(z) if self.quant_convs else z))
        return x if self.centered else 2 * x - 1

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c_out"]:
        """Return the reconstruction from the mean latent; initialises every parameter."""
        return self.decode(self.encode(x).mean)

    def _check_size(self, x: Float[Array, "..."]) -> None:
        levels = len(self.channels)
        factor = 2 ** (levels - 1)
        if x.ndim != 4 or x.shape[1] % factor or x.shape[2] % factor or x.shape[3] != self.in_channels:
            raise UserError(
                f"AutoencoderKL with {levels} levels needs images (b, h, w, {self.in_channels}) with h and w multiples "
                f"of {factor}, got shape {x.shape}."
            )


class AutoencoderEncoder(nn.Module):
    """Residual blocks at falling resolution, then the middle ones; features of each latent pixel."""

    channels: tuple[int, ...]
    layers_per_block: int
    out_channels: int
    groups: int
    attends: bool
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c_out"]:
        h = _conv(self.channels[0], self.dtype, "conv_in")(x)
        for level, channels in enumerate(self.channels):
            for block in range(self.layers_per_block):
                h = ResidualBlock(channels, self.groups, self.dtype, name=f"down_{level}_{block}")(h)
                if self.attends and level + 1 == len(self.channels):
                    h = AttentionBlock(self.groups, self.dtype, name=f"down_{level}_{block}_attention")(h)
            if level + 1 < len(self.channels):
                # Zeros at the right and bottom only, as published.
                strided = {"strides": 2, "padding": ((0, 1), (0, 1))}
                h = _conv(channels, self.dtype, f"down_{level}_resample", **strided)(h)
        h = Middle(self.groups, self.dtype, name="middle")(h)
        h = nn.swish(layers.GroupNorm(self.groups, name="norm_out")(h))
        return _conv(self.out_channels, self.dtype, "conv_out")(h)


class AutoencoderDecoder(nn.Module):
    """The middle blocks, then residual blocks at rising resolution; levels are numbered as in the encoder."""

    channels: tuple[int, ...]
    layers_per_block: int
    out_channels: int
    groups: int
    attends: bool
    dtype: str

    @nn.compact
    def __call__(self, z: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c_out"]:
        h = _conv(self.channels[-1], self.dtype, "conv_in")(z)
        h = Middle(self.groups, self.dtype, name="middle")(h)
        for level, channels in reversed(tuple(enumerate(self.channels))):
            for block in range(self.layers_per_block + 1):
                h = ResidualBlock(channels, self.groups, self.dtype, name=f"up_{level}_{block}")(h)
                if self.attends and level + 1 == len(self.channels):
                    h = AttentionBlock(self.groups, self.dtype, name=f"up_{level}_{block}_attention")(h)
            if level:
                h = _conv(channels, self.dtype, f"up_{level}_resample")(resample.upsample(h))
        h = nn.swish(layers.GroupNorm(self.groups, name="norm_out")(h))
        return _conv(self.out_channels, self.dtype, "conv_out")(h)


class Middle(nn.Module):
    """Residual block, attention, residual block, at the resolution of the latents."""

    groups: int
    dtype: str

    @nn.compact
    def __call__(self, h: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        h = ResidualBlock(h.shape[-1], self.groups, self.dtype, name="block_0")(h)
        h = AttentionBlock(self.groups, self.dtype, name="attention")(h)
        return ResidualBlock(h.shape[-1], self.groups, self.dtype, name="block_1")(h)


class ResidualBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x))))))."""

    features: int
    groups: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c_out"]:
        h = nn.swish(layers.GroupNorm(self.groups, name="norm_0")(x))
        h = _conv(self.features, self.dtype, "conv_0")(h)
        h = nn.swish(layers.GroupNorm(self.groups, name="norm_1")(h))
        h = _conv(self.features, self.dtype, "conv_1")(h)
        if self.features != x.shape[-1]:
            x = nn.Dense(self.features, dtype=self.dtype, name="shortcut")(x)
        return x + h


class AttentionBlock(nn.Module):
    """x + W softmax(q k^T / sqrt(c)) v over the pixels of an image; one head."""

    groups: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, height, width, c = x.shape
        dense = partial(nn.Dense, c, dtype=self.dtype)
        h = layers.GroupNorm(self.groups, name="norm")(x).reshape(b, height * width, 1, c)
        q, k, v = (dense(name=name)(h) for name in ("query", "key", "value"))
        return x + dense(name="out")(attention(q, k, v)).reshape(x.shape)


def _conv(features: int, dtype: str, name: str, **kwargs) -> nn.Conv:
    return nn.Conv(features, (3, 3), dtype=dtype, name=name, **kwargs)
