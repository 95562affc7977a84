"""MiT: the transformer of improved mean flows, told of everything by tokens before the patches (arXiv:2512.02012)."""

import math
from functools import partial
from typing import Annotated, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from score_flow.config.hints import Count, Limits, Positive, check_fields
from score_flow.errors import UserError
from score_flow.networks.blocks import layers
from score_flow.networks.blocks.attention import attention
from score_flow.networks.blocks.remat import Remat
from score_flow.networks.blocks.transformer import (
    ASIDE,
    TIME_FEATURES,
    RMSNorm,
    Stack,
    aside,
    grid_of,
    patchify,
    refuse_tap,
    stacked,
    turned,
    unpatchify,
    xavier,
    zeros,
)  # fmt: skip
from score_flow.types import Condition


def scaled(constant: float) -> nn.initializers.Initializer:
    """N(0, constant^2 / fan_in)."""
    return nn.initializers.variance_scaling(constant**2, "fan_in", "normal")


class MiT(nn.Module):
    """Transformer over tokens of label, guidance, times and patches, without modulation (Geng et al. 2025, app. A).

    Published with see_time=False, span, guidance and 1000 classes on latents 32 x 32 x 4 (width, depth, num_heads):
    B/2 (768, 12, 12), M/2 (768, 24, 12), L/2 (1024, 32, 16), XL/2 (1024, 48, 16).

    Attributes:
        mlp_ratio: hidden over outer width of each block's SwiGLU.
        see_time: whether the time is told; without it the network knows the noise from the image alone, and the span.
        class_tokens, guidance_tokens, interval_tokens, time_tokens: how many say each, the third twice: first and last.
        remat: what the backward pass keeps of a block: all (none), what Dense layers return (dots), nothing (full).
        dropout: of what attention returns and of the MLP's hidden layer.
        velocity_head: so many of the last blocks stand twice, the second time for the velocity alone, which is trained
            beside the average velocity by training.flow_map = improved, and which nothing else computes (published: 8).
        out_channels: as the input if None.
    Raises:
        UserError: a width that heads cannot split into pairs, an image that the patches do not tile, or a velocity_head
            of all blocks or without two times.
    """

    patch_size: Count = 2
    width: Count = 384
    depth: Count = 12
    num_heads: Count = 6
    mlp_ratio: Positive = 8 / 3
    see_time: bool = True
    class_tokens: Count = 8
    guidance_tokens: Count = 4
    interval_tokens: Count = 2
    time_tokens: Count = 4
    remat: Remat = "dots"
    dropout: layers.Dropout = 0.0
    velocity_head: Annotated[int, Limits(least=0)] = 0
    num_classes: layers.ClassesGiven = 0
    span: layers.SpanGiven = False
    guidance: layers.GuidanceGiven = False
    tap: layers.TapGiven = 0
    out_channels: layers.ChannelsGiven = None
    dtype: layers.PrecisionGiven = "float32"

    casts: ClassVar[bool] = True  # parameters of two axes and more are used in dtype alone, and may be sent in it
    # The parameters that it gathers itself, each where it is used.
    gathers: ClassVar[tuple[str, ...]] = ("blocks", "average_blocks", "velocity_blocks")

    def __post_init__(self):
        check_fields(self)
        if self.width % self.num_heads or self.width // self.num_heads % 2:
            raise UserError(
                f"MiT needs a width that num_heads={self.num_heads} split into pairs, got width={self.width}."
            )
        if self.hidden < 1:
            raise UserError(f"MiT.mlp_ratio is {self.mlp_ratio}, which leaves no width of {self.width}.")
        if self.velocity_head >= self.depth:
            raise UserError(f"MiT.velocity_head is {self.velocity_head}; allowed: below its depth, {self.depth}.")
        if self.velocity_head and not self.span:
            raise UserError("MiT.velocity_head is of a flow map: set it to 0, or config.model.span=True.")
        refuse_tap(self, self.depth - self.velocity_head)
        super().__post_init__()

    @property
    def hidden(self) -> int:
        """Width of the MLP's hidden layer."""
        return int(self.width * self.mlp_ratio)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, "b"],
        condition: Condition = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "b h w c_out"]:
        grid = grid_of(x, self.patch_size, "MiT")
        patches = layers.Dense(self.width, kernel_init=xavier, dtype=self.dtype, name="patches")
        told = self._told(time, condition)
        h = jnp.concatenate([*told, patches(patchify(x, self.patch_size))], axis=1)
        out_channels = x.shape[-1] if self.out_channels is None else self.out_channels
        read = partial(self._read, grid, out_channels)
        h, hidden = self._blocks("blocks", self.depth - self.velocity_head, deterministic, self.tap)(h)
        aside(self, "hidden", None if hidden is None else hidden[:, -math.prod(grid) :])
        if not self.velocity_head:
            return read(h)
        if self.is_initializing() or self.is_mutable_collection(ASIDE):
            velocity = read(self._blocks("velocity_blocks", self.velocity_head, deterministic)(h)[0], "velocity_")
            aside(self, "velocity", velocity)
        return read(self._blocks("average_blocks", self.velocity_head, deterministic)(h)[0])

    def _read(
        self, grid: tuple[int, int], channels: int, h: Float[Array, "b n width"], whose: str = ""
    ) -> Float[Array, "b h w c_out"]:
        """Return the image in the last tokens, by the norm and the map of one of the heads."""
        h = h[:, -math.prod(grid) :]
        out = layers.Dense(self.patch_size**2 * channels, kernel_init=zeros, dtype=self.dtype, name=f"{whose}out")
        h = out(RMSNorm(name=f"{whose}norm_out")(h).astype(h.dtype))
        return layers.at_least_float32(unpatchify(h, *grid, self.patch_size))

    def _told(self, time: Float[Array, "b"], condition: Condition) -> list[Float[Array, "b n width"]]:
        """Return the tokens before the patches: of the label, guidance, its interval, and times."""
        condition, b, found = condition or {}, len(time), []
        if self.num_classes:
            std = 1 / math.sqrt(self.width)
            label = layers.label_embedding(condition, self.num_classes, self.width, self.dtype, std)
            found.append(self._tokens("class", self.class_tokens, label))
        if self.guidance:
            numbers = condition.get("guidance", jnp.zeros((b, 3)))
            counts = {"guidance": self.guidance_tokens, "first": self.interval_tokens, "last": self.interval_tokens}
            for number, (name, n) in zip(numbers.T, counts.items(), strict=True):
                found.append(self._tokens(name, n, self._embedding(name, number)))
        times = [self._embedding("span", condition.get("span", jnp.zeros(b)))] if self.span else []
        times += [self._embedding("time", time)] if self.see_time else []
        return [*found, self._tokens("time", self.time_tokens, sum(times))] if times else found

    def _embedding(self, name: str, number: Float[Array, "b"]) -> Float[Array, "b width"]:
        features = layers.transformer_features(number, TIME_FEATURES)
        return layers.Embedding(self.width, 0, scaled(1.0), self.dtype, name=f"{name}_embedding")(features)

    def _tokens(self, name: str, n: int, embedding: Float[Array, "b width"]) -> Float[Array, "b n width"]:
        """Return n learnt tokens, to each of which an embedding is added."""
        tokens = self.param(f"{name}_tokens", nn.initializers.normal(1 / math.sqrt(self.width)), (n, self.width))
        return tokens.astype(embedding.dtype) + embedding[:, None]

    def _blocks(self, name: str, length: int, deterministic: bool, tap: int = 0) -> Stack:
        """So many blocks in a row."""
        stack = stacked(self, Block, length, tap=tap)
        return stack(self.num_heads, self.hidden, self.dropout, deterministic, self.dtype, name=name)


class Block(nn.Module):
    """h + gate attention(norm(h)), then the same with a SwiGLU; gates are vectors that start at 0."""

    num_heads: int
    hidden: int
    dropout: float
    deterministic: bool  # a field, as remat would trace an argument
    dtype: str

    @nn.compact
    def __call__(self, h: Float[Array, "b n width"]) -> tuple[Float[Array, "b n width"], None]:
        gates = [self.param(f"gate_{i}", zeros, h.shape[-1:]).astype(h.dtype) for i in range(2)]
        dropout = nn.Dropout(self.dropout, deterministic=self.deterministic)
        h += gates[0] * dropout(self._attention(RMSNorm(name="norm_0")(h).astype(h.dtype)))
        h += gates[1] * self._mlp(RMSNorm(name="norm_1")(h).astype(h.dtype), dropout)
        return h, None  # a scan's carry and (no) output

    def _attention(self, h: Float[Array, "b n width"]) -> Float[Array, "b n width"]:
        b, n, width = h.shape
        dense = partial(layers.Dense, use_bias=False, kernel_init=scaled(0.32), dtype=self.dtype)
        qkv = dense(3 * width, name="qkv")(h).reshape(b, n, 3, self.num_heads, width // self.num_heads)
        q, k, v = (qkv[:, :, i] for i in range(3))
        angles = positions(n, q.shape[-1])
        q, k = (turned(RMSNorm(name=f"{name}_norm")(part), angles) for name, part in (("query", q), ("key", k)))
        mixed = attention(q.astype(v.dtype), k.astype(v.dtype), v)
        return dense(width, name="attention_out")(mixed.reshape(h.shape))

    def _mlp(self, h: Float[Array, "b n width"], dropout: nn.Dropout) -> Float[Array, "b n width"]:
        dense = partial(layers.Dense, use_bias=False, kernel_init=scaled(0.32), dtype=self.dtype)
        gate, hidden = jnp.split(dense(2 * self.hidden, name="mlp_0")(h), 2, axis=-1)
        return dense(h.shape[-1], name="mlp_1")(dropout(nn.swish(gate) * hidden))


def positions(n: int, d: int) -> np.ndarray:
    """Angles (n, d/2) by which pairs of a head's d channels turn: token k's pair i by k 10000^(-2 i / d)."""
    return np.arange(n)[:, None] * layers.MAX_PERIOD ** (-2 * np.arange(d // 2) / d)


build = MiT
