"""EDM2's U-Net, whose layers keep the magnitude of what goes through them (Karras et al. 2024, arXiv:2312.02696)."""

import math
from functools import partial
from typing import Annotated, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from score_flow.config.hints import Count, check_fields
from score_flow.config.limits import Limits
from score_flow.errors import UserError
from score_flow.networks.blocks import layers, resample
from score_flow.networks.blocks.attention import attention
from score_flow.networks.blocks.remat import Remat, rematted
from score_flow.numerics import unit
from score_flow.types import Condition

# t of the sums and the join of two parts, (1 - t) of the one and t of the other, and the largest activation.
RESIDUAL, ATTENTION, LABEL, JOINED = 0.3, 0.3, 0.5, 0.5
LARGEST = 256.0
Gain = Float[Array, ""] | np.floating | float
SILU = 0.596  # root mean square of silu of a standard normal
TIMES = {"span": 1, "guidance": 3}  # numbers of what a network is told beside time and label


class EDM2(nn.Module):
    """Time- and label-conditional U-Net that preserves magnitudes: config G of EDM2, figure 21.

    Weights have norm 1 for each output, and training brings their kernels back to root mean square 1 after each step;
    there are no biases and no groups. The input has a channel of ones. Published with the defaults and width=128 (XS:
    124.7 M parameters), 192 (S: 280.2 M), 256 (M: 497.8 M), 320 (L: 777.5 M), 384 (XL: 1.12 B) and 448 (XXL: 1.52 B),
    on ImageNet's pixels at 64 and on latents 64 x 64 x 4 at 512, for sigma_data=0.5 and log(sigma)/4 as the time.

    Attributes:
        width: channels of the first level; level i has width * channel_mult[i] at 1 / 2^i of the image's resolution.
        attention_resolutions: heights at which attention follows each residual block; it does between the two ways.
        head_channels: of attention; where the channels are fewer there is one head.
        remat: what the backward pass keeps of a block: all (none), what weights give (dots), nothing (full).
        dropout: of the residual blocks; published .1 from M on.
        out_channels: as the input if None.
    Raises:
        UserError: heads that do not divide the channels, or an image whose sides are not multiples of 2^(levels - 1).
    """

    width: Count = 192
    channel_mult: Annotated[tuple[int, ...], Limits(least=1, fewest=1)] = (1, 2, 3, 4)
    num_res_blocks: Count = 3
    attention_resolutions: Annotated[tuple[int, ...], Limits(least=0)] = (16, 8)
    head_channels: Count = 64
    dropout: layers.Dropout = 0.0
    num_classes: layers.ClassesGiven = 0
    augment_dim: layers.AugmentGiven = 0
    span: layers.SpanGiven = False
    guidance: layers.GuidanceGiven = False
    out_channels: layers.ChannelsGiven = None
    remat: Remat = "none"
    dtype: layers.PrecisionGiven = "float32"

    unit_kernels: ClassVar[bool] = True  # training keeps the root mean square of each output's weights at 1

    def __post_init__(self):
        check_fields(self)
        for mult in self.channel_mult:
            if (channels := self.width * mult) > self.head_channels and channels % self.head_channels:
                raise UserError(f"EDM2.head_channels is {self.head_channels}, which does not divide {channels}.")
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
        told = {"augment": self.augment_dim} | {name: n for name, n in TIMES.items() if getattr(self, name)}
        embedding = Embedding(
            self.width * self.channel_mult[0], self.width * max(self.channel_mult), self.num_classes,
            tuple((name, n) for name, n in told.items() if n), self.dtype, name="embedding",
        )(time, condition)  # fmt: skip
        build = partial(
            rematted(Block, self.remat), head_channels=self.head_channels, dropout=self.dropout,
            deterministic=deterministic, dtype=self.dtype,
        )  # fmt: skip

        def block(name, h, features, direction=None, *, decodes=False, attends=False):
            return build(features, direction, decodes, attends, name=name)(h, embedding)

        h = self._up(*self._down(x, block), block)
        gain = self.param("out_gain", nn.initializers.zeros, ())
        out_channels = x.shape[-1] if self.out_channels is None else self.out_channels
        return layers.at_least_float32(Map(out_channels, 3, self.dtype, name="conv_out")(h, gain))

    def _down(self, x: Float[Array, "b h w c"], block) -> tuple[Float[Array, "b h2 w2 c2"], list[Array]]:
        ones = jnp.ones_like(x[..., :1])
        h = Map(self.width * self.channel_mult[0], 3, self.dtype, name="conv_in")(jnp.concatenate([x, ones], axis=-1))
        skips = [h]
        for level, mult in enumerate(self.channel_mult):
            if level:
                h = block(f"down_{level}_resample", h, h.shape[-1], "down")
                skips.append(h)
            for i in range(self.num_res_blocks):
                attends = h.shape[1] in self.attention_resolutions
                h = block(f"down_{level}_{i}", h, self.width * mult, attends=attends)
                skips.append(h)
        return h, skips

    def _up(self, h: Float[Array, "b h w c"], skips: list[Array], block) -> Float[Array, "b h2 w2 c2"]:
        h = block("middle_0", h, h.shape[-1], decodes=True, attends=True)
        h = block("middle_1", h, h.shape[-1], decodes=True)
        for level, mult in reversed(tuple(enumerate(self.channel_mult))):
            if level < len(self.channel_mult) - 1:
                h = block(f"up_{level}_resample", h, h.shape[-1], "up", decodes=True)
            for i in range(self.num_res_blocks + 1):
                attends, h = h.shape[1] in self.attention_resolutions, joined(h, skips.pop())
                h = block(f"up_{level}_{i}", h, self.width * mult, decodes=True, attends=attends)
        assert not skips  # one for each block of the way up
        return h

    def _check_size(self, x: Float[Array, "..."]) -> None:
        factor = 2 ** (len(self.channel_mult) - 1)
        if x.ndim != 4 or x.shape[1] % factor or x.shape[2] % factor:
            raise UserError(
                f"EDM2 with {len(self.channel_mult)} levels needs images (b, h, w, c), h and w multiples of {factor}, "
                f"got shape {x.shape}."
            )


class Embedding(nn.Module):
    """silu of what time and label are mapped to, half of each; a missing class, the table's last row, starts at 0.

    told: (name, numbers) of what else the condition may hold: labels of augmentation, of which a map is added, and
    times, of whose waves one is; 0 where they are missing. Their gains start at 0, as if they were not there.
    Raises UserError when the network has classes and the label is missing.
    """

    waves: int
    width: int
    num_classes: int
    told: tuple[tuple[str, int], ...]
    dtype: str

    @nn.compact
    def __call__(self, time: Float[Array, "b"], condition: Condition = None) -> Float[Array, "b width"]:
        waves, mapped = Waves(self.waves, name="waves"), partial(Map, self.width, dtype=self.dtype)
        h = mapped(name="time")(waves(time))
        if self.num_classes:
            h = summed(h, Label(self.num_classes, self.width, self.dtype, name="label")(condition), LABEL)
        for name, n in self.told:
            numbers = (condition or {}).get(name, jnp.zeros((len(time), n), time.dtype)).reshape(len(time), n)
            if name in TIMES:
                numbers = jnp.concatenate([waves(column) for column in numbers.T], axis=-1)
            h += mapped(name=name)(numbers, self.param(f"{name}_gain", nn.initializers.zeros, ()))
        return silu(h)


class Waves(nn.Module):
    """sqrt(2) cos(w time + phase), n fixed frequencies w ~ N(0, (2 pi)^2) (equation 75)."""

    n: int

    @nn.compact
    def __call__(self, time: Float[Array, "b"]) -> Float[Array, "b n"]:
        # Parameters, so that checkpoints carry the draw; never trained.
        frequencies = self.param("frequencies", nn.initializers.normal(2 * math.pi), (self.n,))
        phases = self.param("phases", nn.initializers.uniform(2 * math.pi), (self.n,))
        frequencies, phases = jax.lax.stop_gradient((frequencies, phases))
        return math.sqrt(2) * jnp.cos(layers.at_least_float32(time)[:, None] * frequencies + phases)


@partial(jax.jit, static_argnums=(1, 2), inline=True)  # flax asks for the shape of each parameter in each trace
def unit_normal(key: Array, shape: tuple[int, ...], dtype: str = "float32") -> Float[Array, "..."]:
    """Draw weights of root mean square 1 for each output, the last axis."""
    return unit(jax.random.normal(key, shape, dtype), tuple(range(len(shape) - 1)))


def of_norm_one(kernel: Float[Array | np.ndarray, "*inputs c"], n: int) -> Float[Array, "*inputs c"]:
    """Return weights of norm 1 for each output (equations 47 and 66); their gradient is orthogonal to them."""
    kernel = layers.at_least_float32(jnp.asarray(kernel))
    return unit(kernel, tuple(range(kernel.ndim - 1)), n) / math.sqrt(n)


class Map(nn.Module):
    """A map of channels, or a convolution of so many pixels a side, with weights of norm 1 times a gain."""

    features: int
    side: int = 1
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"], gain: Gain = 1.0) -> Float[Array, "*b features"]:
        window = (self.side, self.side) if self.side > 1 else ()
        kernel = self.param("kernel", unit_normal, (*window, x.shape[-1], self.features))
        w = (gain * of_norm_one(kernel, kernel.size // self.features)).astype(self.dtype)
        x = x.astype(self.dtype)
        if not window:
            return x @ w
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


class Label(nn.Module):
    """sqrt(num_classes) times the row of a table of a class, as a map of one-hot vectors; the last row is no class.

    Theirs has no such row but 0: this one starts there, and stays there while no label is hidden in training.
    """

    num_classes: int
    width: int
    dtype: str

    @nn.compact
    def __call__(self, condition: Condition) -> Float[Array, "b width"]:
        if condition is None or "label" not in condition:
            got = ", ".join(condition or ()) or "nothing"
            raise UserError(f"A network with num_classes={self.num_classes} needs condition['label'], got {got}.")

        def init(key, shape):
            return unit_normal(key, shape).at[-1].set(0.0)

        table = self.param("kernel", init, (self.num_classes + 1, self.width))
        rows = math.sqrt(self.num_classes) * of_norm_one(table, self.num_classes)
        return rows[condition["label"]].astype(self.dtype)


class Block(nn.Module):
    """x and conv(silu(scale conv(silu(x)))), summed, and attention; x is normalised on the way down (figure 21)."""

    features: int
    direction: str | None  # of resampling: "up", "down" or None
    decodes: bool
    attends: bool
    head_channels: int
    dropout: float
    deterministic: bool  # a field, as remat would trace an argument
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"]) -> Float[Array, "b h2 w2 c2"]:
        if self.direction:
            x = {"up": resample.upsample, "down": resample.downsample}[self.direction](x)
        narrow = x.shape[-1] != self.features
        shortcut = Map(self.features, dtype=self.dtype, name="shortcut") if narrow else (lambda x: x)
        if not self.decodes:
            x = unit(shortcut(x), -1)
        conv = partial(Map, self.features, 3, self.dtype)
        h = conv(name="conv_0")(silu(x))
        gain = self.param("gain", nn.initializers.zeros, ())
        scale = 1 + Map(self.features, dtype=self.dtype, name="embedding")(embedding, gain)
        h = nn.Dropout(self.dropout, deterministic=self.deterministic)(silu(h * scale[:, None, None]))
        h = conv(name="conv_1")(h)
        x = summed(shortcut(x) if self.decodes else x, h, RESIDUAL)
        if self.attends:
            x = summed(x, self._attention(x), ATTENTION)
        return jnp.clip(x, -LARGEST, LARGEST)

    def _attention(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        width = min(self.head_channels, c)
        qkv = Map(3 * c, dtype=self.dtype, name="qkv")(x).reshape(b, h * w, 3, c // width, width)
        mixed = attention(*(unit(qkv[:, :, i], -1) for i in range(3)))
        return Map(c, dtype=self.dtype, name="attention_out")(mixed.reshape(x.shape))


def silu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """silu(x) of the magnitude of a standard normal x (equation 81)."""
    return nn.silu(x) / SILU


def summed(a: Float[Array, "..."], b: Float[Array, "..."], t: float) -> Float[Array, "..."]:
    """(1 - t) a + t b over the magnitude of that of independent parts (equation 88)."""
    return (a + t * (b - a)) / math.hypot(1 - t, t)


def joined(a: Float[Array, "... c"], b: Float[Array, "... d"], t: float = JOINED) -> Float[Array, "... e"]:
    """Join channels, so weighed that the parts count as 1 - t and t whatever their numbers (equation 103)."""
    n, m = a.shape[-1], b.shape[-1]
    whole = math.sqrt(n + m) / math.hypot(1 - t, t)
    return jnp.concatenate([whole * (1 - t) / math.sqrt(n) * a, whole * t / math.sqrt(m) * b], axis=-1)


build = EDM2
