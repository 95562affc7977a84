"""Flow++'s variational dequantiser: a flow q(u | x) over the unit cube (arXiv:1902.00275, arXiv:2101.09258).

An image x of integers and any u in [0, 1)^d make a continuous image x + u, and for every density q(u | x)

    log P(x) >= E_q[log p(x + u) - log q(u | x)],

with equality where q is the posterior p(x + u) / P(x); uniform dequantisation is q = 1. Here u comes from standard
normal noise by invertible maps with simple Jacobians, log q(u | x) = log N(noise; 0, I) - log |det du / dnoise|:

    a, b <- even and odd columns of the noise
    `couplings` times:  a, b <- an affine map of each;  b <- exp(s) logit F(b) + t;  a, b <- b, a
    u <- sigmoid of the columns put together again

F is the distribution function of a mixture of logistics. Its parameters, s and t are given, for each element of b, by a
network of a and of the context, which is a network of x.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid
from jaxtyping import Array, Float

from score_flow import numerics
from score_flow.config.hints import Count, Dtype, Whole, check_fields
from score_flow.config.limits import Limits
from score_flow.errors import UserError
from score_flow.networks.blocks import flowpp as flowpp_layers
from score_flow.networks.blocks import layers
from score_flow.networks.blocks.flowpp import Conv, LogisticMixture, concat_elu, inverse_deviation

MIN_LOG_SCALE = -7.0  # of the logistics in a mixture
MIN_SCALE = 1e-7  # of an affine map
Layers = Annotated[tuple[str, ...], Limits(among=flowpp_layers.BLOCK_LAYERS, fewest=1)]


class FlowppDequantiser(nn.Module):
    """q(u | x): from noise to (u, log q), and back by `inverse`.

    Initial values depend on data: `init(key, x, noise)` wants a batch of real images and of standard normal noise, and
    standardises every convolution's output and every affine map's over it. Parameters belong to one size of image.
    PRESETS has the three networks of score_flow.

    Attributes:
        width, context_width: channels inside the network of each coupling, and of the context.
        components: logistics in each mixture.
        block, context_block: the layers ("conv", "norm", "attention") of one block of those networks.
        blocks, context_blocks: how many blocks they have.
        heads: of every attention.
        mix_channels: whether the affine maps mix the channels of a pixel.
        elu_out: concat_elu before the last convolution of the couplings' networks.
        weight_norm: 3 x 3 kernels are stored as directions and gains.
        dropout: in the network of the context only, so that the flow itself is always one function.
    Raises:
        UserError: an unknown layer, heads that do not divide the channels, or images with an odd number of columns.
    """

    width: Count = 96
    components: Count = 32
    couplings: Count = 4
    blocks: Whole = 2
    block: Layers = ("conv", "norm", "attention", "norm")
    context_width: Count = 32
    context_blocks: Whole = 3
    context_block: Layers = ("conv",)
    heads: Count = 4
    mix_channels: bool = True
    elu_out: bool = False
    weight_norm: bool = False
    dropout: layers.Dropout = 0.0
    dtype: Dtype = "float32"

    def __post_init__(self):
        check_fields(self)
        for block, width in ((self.block, self.width), (self.context_block, self.context_width)):
            if "attention" in block and width % self.heads:
                raise UserError(f"FlowppDequantiser needs widths that heads={self.heads} divides, got {width}.")
        super().__post_init__()

    def setup(self):
        blocks = partial(flowpp_layers.Blocks, heads=self.heads, weight_norm=self.weight_norm, dtype=self.dtype)
        conv = partial(Conv, weight_norm=self.weight_norm, dtype=self.dtype)
        context_blocks = partial(blocks, self.context_blocks, self.context_block, dropout=self.dropout)
        self.context = Context(self.context_width, conv, context_blocks)
        coupling_blocks = partial(blocks, self.blocks, self.block)
        coupling = partial(Coupling, self.width, self.components, self.elu_out, conv, coupling_blocks)
        self.steps = [Step(self.mix_channels, coupling) for _ in range(self.couplings)]

    def __call__(
        self, x: Float[Array, "b h w c"], noise: Float[Array, "b h w c"], *, deterministic: bool = True
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b"]]:
        """(u, log q(u | x) in nats) for images x in [0, 1] (levels / 255) and standard normal noise; 0 < u < 1."""
        context = self.context(x, deterministic)
        noise = layers.at_least_float32(noise)
        a, b = split_columns(noise)
        log_det = jnp.zeros(noise.shape[0], noise.dtype)
        for step in self.steps:
            a, b, step_log_det = step(a, b, context)
            log_det += step_log_det
        h = join_columns(a, b)
        log_det += numerics.sum_flat(log_sigmoid(h) + log_sigmoid(-h))
        # A sigmoid rounds to 1 from h = 17 on in float32: u would not be inside the cube, nor have an inverse.
        limits = jnp.finfo(h.dtype)
        u = jnp.clip(nn.sigmoid(h), limits.tiny, 1 - limits.epsneg)
        return u, numerics.standard_normal_log_prob(noise) - log_det

    def inverse(self, x: Float[Array, "b h w c"], u: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Return the noise that becomes u, 0 < u < 1, given the same x."""
        context = self.context(x, deterministic=True)
        u = layers.at_least_float32(u)
        a, b = split_columns(jnp.log(u) - jnp.log1p(-u))
        for step in reversed(self.steps):
            a, b = step.inverse(a, b, context)
        return join_columns(a, b)


def split_columns(x: Float[Array, "b h w c"]) -> tuple[Float[Array, "b h w//2 c"], Float[Array, "b h w//2 c"]]:
    """Return the even and the odd columns (which the source calls a checkerboard)."""
    if x.shape[2] % 2:
        raise UserError(f"FlowppDequantiser needs images (b, h, w, c) with an even w, got shape {x.shape}.")
    return x[:, :, 0::2], x[:, :, 1::2]


def join_columns(even: Float[Array, "b h w c"], odd: Float[Array, "b h w c"]) -> Float[Array, "b h 2*w c"]:
    """Inverse of split_columns."""
    b, h, w, c = even.shape
    return jnp.stack([even, odd], axis=3).reshape(b, h, 2 * w, c)


class Context(nn.Module):
    """What the couplings know of the image: features of each pair of neighbouring columns."""

    width: int
    conv: Callable[..., nn.Module]
    blocks: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], deterministic: bool) -> Float[Array, "b h w//2 width"]:
        pairs = jnp.concatenate(split_columns(x - 0.5), axis=-1)
        h = self.conv(self.width, name="conv_in")(pairs)
        return self.blocks(name="blocks")(h, deterministic=deterministic)


class Step(nn.Module):
    """An affine map of each half, a coupling of b with a, and the halves in the other order."""

    mix_channels: bool
    coupling: Callable[..., nn.Module]

    def setup(self):
        self.affine_a = Affine(self.mix_channels)
        self.affine_b = Affine(self.mix_channels)
        self.couple = self.coupling()

    def __call__(
        self, a: Float[Array, "b h w c"], b: Float[Array, "b h w c"], context: Float[Array, "b h w k"]
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"], Float[Array, "b"]]:
        """(new b, new a, log |det|)."""
        a, log_det_a = self.affine_a(a)
        b, log_det_b = self.affine_b(b)
        b, log_det = self.couple(a, b, context)
        return b, a, log_det_a + log_det_b + log_det

    def inverse(
        self, b: Float[Array, "b h w c"], a: Float[Array, "b h w c"], context: Float[Array, "b h w k"]
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
        """(a, b) of what `__call__` returned."""
        b = self.couple.inverse(a, b, context)
        return self.affine_a.inverse(a), self.affine_b.inverse(b)


class Affine(nn.Module):
    """y = (scale x + bias) M: a scale and a bias for each element, and a matrix M over channels if asked.

    Starts as the standardisation of each element over the batch, and M = 1 + small noise (Glow's, arXiv:1807.03039).
    """

    mix_channels: bool

    def __call__(self, x: Float[Array, "b h w c"]) -> tuple[Float[Array, "b h w c"], Float[Array, ""]]:
        """(y, log |det|), which is the same for every example."""
        scale, bias, mixing = self._coefficients(x)
        y, log_det = x * scale + bias, jnp.log(scale).sum()
        if mixing is None:
            return y, log_det
        n_pixels = x.shape[1] * x.shape[2]
        return _mix(y, mixing), log_det + n_pixels * jnp.linalg.slogdet(mixing)[1]

    def inverse(self, y: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        scale, bias, mixing = self._coefficients(y)
        if mixing is not None:
            y = _mix(y, jnp.linalg.inv(mixing))
        return (y - bias) / scale

    @nn.compact
    def _coefficients(
        self, x: Float[Array, "b h w c"]
    ) -> tuple[Float[Array, "h w c"], Float[Array, "h w c"], Float[Array, "c c"] | None]:
        channels = x.shape[-1]

        def near_identity(key):
            return jnp.eye(channels, dtype="float32") + 1e-3 * jax.random.normal(key, (channels, channels), "float32")

        scale = self.param("scale", lambda _: inverse_deviation(x, axis=0))
        bias = self.param("bias", lambda _: -x.mean(axis=0, dtype="float32") * scale)
        mixing = self.param("mixing", near_identity) if self.mix_channels else None
        return jnp.maximum(scale, MIN_SCALE), bias, mixing


def _mix(x: Float[Array, "b h w c"], mixing: Float[Array, "c c"]) -> Float[Array, "b h w c"]:
    # Full precision: on a GPU the default would round the noise to 10 bits, and log q would not be u's.
    return jnp.matmul(x, mixing, precision=jax.lax.Precision.HIGHEST)


class Coupling(nn.Module):
    """b -> exp(s) logit F(b) + t, where a network of a and the context gives s, t and the mixture with cdf F."""

    width: int
    components: int
    elu_out: bool
    conv: Callable[..., nn.Module]
    blocks: Callable[..., nn.Module]

    def __call__(
        self, a: Float[Array, "b h w c"], b: Float[Array, "b h w c"], context: Float[Array, "b h w k"]
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b"]]:
        """(new b, log |det|)."""
        mixture, s, t = self._coefficients(a, context)
        logit, log_slope = mixture.logit_cdf(b)
        return jnp.exp(s) * logit + t, numerics.sum_flat(s + log_slope)

    def inverse(
        self, a: Float[Array, "b h w c"], b: Float[Array, "b h w c"], context: Float[Array, "b h w k"]
    ) -> Float[Array, "b h w c"]:
        mixture, s, t = self._coefficients(a, context)
        return mixture.inverse_logit_cdf((b - t) * jnp.exp(-s))

    @nn.compact
    def _coefficients(
        self, a: Float[Array, "b h w c"], context: Float[Array, "b h w k"]
    ) -> tuple[LogisticMixture, Float[Array, "b h w c"], Float[Array, "b h w c"]]:
        h = self.blocks(name="blocks")(self.conv(self.width, name="conv_in")(a), context)
        if self.elu_out:
            h = concat_elu(h)
        n = 2 + 3 * self.components  # numbers for each element of b
        h = self.conv(n * a.shape[-1], scale=0.1, name="conv_out")(h)
        h = layers.at_least_float32(h).reshape(*a.shape, n)
        logits, means, log_scales = jnp.split(h[..., 2:], 3, axis=-1)
        mixture = LogisticMixture(jax.nn.log_softmax(logits), means, jnp.maximum(log_scales, MIN_LOG_SCALE))
        return mixture, jnp.tanh(h[..., 0]), h[..., 1]


ATTENTIVE = ("conv", "norm", "attention", "norm")
PRESETS = {
    "cifar10": FlowppDequantiser(),
    "imagenet32": FlowppDequantiser(
        width=128,
        couplings=8,
        blocks=8,
        context_blocks=8,
        context_block=ATTENTIVE,
        mix_channels=False,
        elu_out=True,
        weight_norm=True,
    ),
    "imagenet64": FlowppDequantiser(
        components=4,
        blocks=5,
        block=("conv", "norm"),
        context_blocks=5,
        context_block=("conv", "norm"),
        mix_channels=False,
        elu_out=True,
    ),
}

# What config.dequantizer may name; each takes the fields of one class.
DEQUANTISERS = {
    "auto": FlowppDequantiser, "small": FlowppDequantiser, "cifar10": FlowppDequantiser,
    "imagenet32": FlowppDequantiser, "imagenet64": FlowppDequantiser,
}  # fmt: skip
