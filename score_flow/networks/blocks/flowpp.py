"""What Flow++ is made of: self-normalising convolutions, gated residual layers, mixtures of logistics (no `build`)."""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, logsumexp
from jaxtyping import Array, Float

from score_flow import numerics
from score_flow.networks.blocks import layers
from score_flow.networks.blocks.attention import attention

BLOCK_LAYERS = ("conv", "norm", "attention")


def concat_elu(x: Float[Array, "b h w c"]) -> Float[Array, "b h w 2*c"]:
    """elu of [x, -x]: a nonlinearity that loses neither sign."""
    return nn.elu(jnp.concatenate([x, -x], axis=-1))


def gate(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c//2"]:
    """Return the first half of the channels times the sigmoid of the second."""
    value, openness = jnp.split(x, 2, axis=-1)
    return value * nn.sigmoid(openness)


def inverse_deviation(x: Float[Array, "..."], axis: int | tuple[int, ...]) -> Float[Array, "..."]:
    """1 / sqrt(variance along the axes + 1e-6), in float32: what standardises a batch."""
    return jax.lax.rsqrt(layers.at_least_float32(x).var(axis=axis) + 1e-6).astype(jnp.float32)


class Conv(nn.Module):
    """Convolution whose outputs have mean 0 and deviation `scale` on the batch that `init` sees (arXiv:1602.07868).

    With weight_norm the kernel is gain * direction / |direction|, a gain for each output channel, and both are trained.
    A size of 1 is a map of channels.
    """

    features: int
    size: int = 3
    scale: float = 1.0
    weight_norm: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w features"]:
        x = x.astype(self.dtype)
        shape = (self.size, self.size, x.shape[-1], self.features)

        def draw(key):
            return 0.05 * jax.random.normal(key, shape, jnp.float32)

        def gain(kernel):
            return self.scale * inverse_deviation(_convolve(x, kernel), axis=(0, 1, 2))

        # Each initial value is a function of x too; `apply` only looks at its shape. (Without weight norm the source
        # computes the first bias for another draw of the kernel, so that its means are not 0.)
        if self.weight_norm:
            direction = self.param("direction", draw)
            unit = direction * jax.lax.rsqrt(jnp.maximum(jnp.square(direction).sum(axis=(0, 1, 2)), 1e-12))
            kernel = unit * self.param("gain", lambda _: gain(unit))
        else:
            kernel = self.param("kernel", lambda key: (w := draw(key)) * gain(w))
        y = _convolve(x, kernel)
        bias = self.param("bias", lambda _: -y.mean(axis=(0, 1, 2), dtype=jnp.float32))
        return y + bias.astype(y.dtype)


def _convolve(x: Float[Array, "b h w c"], kernel: Float[Array, "s s c d"]) -> Float[Array, "b h w d"]:
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel.astype(x.dtype), (1, 1), "SAME", dimension_numbers=numbers)


class GatedConv(nn.Module):
    """x + gate(W2 e(W1 e(x) + W3 e(context))), e = concat_elu; W2 is 1 x 1 where there is a context, else 3 x 3."""

    dropout: float
    weight_norm: bool
    dtype: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], context: Float[Array, "b h w k"] | None, deterministic: bool
    ) -> Float[Array, "b h w c"]:
        features = x.shape[-1]
        conv = partial(Conv, size=3, weight_norm=self.weight_norm, dtype=self.dtype)
        pointwise = partial(Conv, size=1, dtype=self.dtype)
        h = conv(features, name="conv_in")(concat_elu(x))
        if context is not None:
            h += pointwise(features, name="context")(concat_elu(context))
        h = nn.Dropout(self.dropout, deterministic=deterministic)(concat_elu(h))
        out = conv if context is None else pointwise
        return x + gate(out(2 * features, scale=0.1, name="conv_out")(h))


class GatedAttention(nn.Module):
    """x + gate(W2 attention(W1 (x + positions))) over all pixels."""

    heads: int
    dropout: float
    dtype: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], positions: Float[Array, "h w c"], deterministic: bool
    ) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        qkv = Conv(3 * c, size=1, dtype=self.dtype, name="qkv")(x + positions.astype(x.dtype))
        qkv = qkv.reshape(b, h * w, 3, self.heads, c // self.heads)
        mixed = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]).reshape(x.shape)
        mixed = nn.Dropout(self.dropout, deterministic=deterministic)(mixed)
        return x + gate(Conv(2 * c, size=1, scale=0.1, dtype=self.dtype, name="out")(mixed))


class Blocks(nn.Module):
    """`n` blocks in a row, each the layers that `block` names; attention shares one table of positions."""

    n: int
    block: tuple[str, ...]
    heads: int
    weight_norm: bool
    dtype: str
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], context: Float[Array, "b h w k"] | None = None, deterministic: bool = True
    ) -> Float[Array, "b h w c"]:
        if "attention" in self.block:
            positions = self.param("positions", nn.initializers.normal(0.01), x.shape[1:], jnp.float32)
        for i in range(self.n):
            for j, layer in enumerate(self.block):
                name = f"block_{i}_{layer}_{j}"
                if layer == "conv":
                    x = GatedConv(self.dropout, self.weight_norm, self.dtype, name=name)(x, context, deterministic)
                elif layer == "attention":
                    x = GatedAttention(self.heads, self.dropout, self.dtype, name=name)(x, positions, deterministic)
                else:
                    x = nn.LayerNorm(epsilon=1e-5, name=name)(layers.at_least_float32(x)).astype(x.dtype)
        return x


class LogisticMixture(NamedTuple):
    """For each element a density sum_k w_k logistic(x; mean_k, scale_k), with distribution function F."""

    log_weights: Float[Array, "... k"]
    means: Float[Array, "... k"]
    log_scales: Float[Array, "... k"]

    def logit_cdf(self, x: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """(logit F(x), log of its derivative): an increasing map of the line onto itself.

        F and 1 - F are summed apart in log space, so that neither tail rounds to 0 or 1 (the source clips both at 1e-7,
        and its density is another than its samples' there).
        """
        z = (x[..., None] - self.means) * jnp.exp(-self.log_scales)
        below, above = log_sigmoid(z), log_sigmoid(-z)  # of each component
        log_cdf = logsumexp(self.log_weights + below, axis=-1)
        log_survival = logsumexp(self.log_weights + above, axis=-1)
        log_density = logsumexp(self.log_weights + below + above - self.log_scales, axis=-1)
        return log_cdf - log_survival, log_density - log_cdf - log_survival

    def inverse_logit_cdf(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return the x with logit F(x) = y, by bisection.

        F(x) lies between the components' distribution functions, so x between their own solutions, mean + scale y.
        """
        solutions = self.means + jnp.exp(self.log_scales) * y[..., None]
        low, high = solutions.min(axis=-1), solutions.max(axis=-1)

        def decreasing(fraction):  # in one axis, as bisection has it
            return -self.logit_cdf(low + fraction.reshape(y.shape) * (high - low))[0].ravel()

        fraction = numerics.bisection(decreasing, -y.ravel(), 0.0, 1.0)
        return low + fraction.reshape(y.shape) * (high - low)
