"""SiT: the DiT transformer as a scalable interpolant's network (arXiv:2212.09748; arXiv:2401.08740)."""

from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from score_flow.config.hints import Count, Positive, check_fields
from score_flow.errors import UserError
from score_flow.networks.blocks import layers
from score_flow.networks.blocks.attention import attention
from score_flow.networks.blocks.remat import Remat
from score_flow.networks.blocks.transformer import (
    TIME_FEATURES,
    Stack,
    aside,
    grid_of,
    modulation,
    patchify,
    refuse_tap,
    sincos_positions,
    stacked,
    unpatchify,
    xavier,
    zeros,
)  # fmt: skip
from score_flow.types import Condition


class SiT(nn.Module):
    """Transformer over image patches, modulated by time and label through adaLN-zero (Peebles and Xie 2022, sec. 3.2).

    Published at patch_size=2 on latents 32 x 32 x 4 with num_classes=1000, out_channels=8 (width, depth, num_heads):
    S (384, 12, 6), B (768, 12, 12), L (1024, 24, 16), XL (1152, 28, 16).

    Attributes:
        mlp_ratio: hidden over outer width of each block's MLP.
        remat: what the backward pass keeps of a block: all (none), what Dense layers return (dots), nothing (full).
        out_channels: as the input if None.
    Raises:
        UserError: a width that the heads or the 2-D positions cannot split, or an image that the patches do not tile.
    """

    patch_size: Count = 2
    width: Count = 384
    depth: Count = 12
    num_heads: Count = 6
    mlp_ratio: Positive = 4.0
    remat: Remat = "dots"
    dropout: layers.Dropout = 0.0
    num_classes: layers.ClassesGiven = 0
    augment_dim: layers.AugmentGiven = 0
    span: layers.SpanGiven = False
    guidance: layers.GuidanceGiven = False
    tap: layers.TapGiven = 0
    out_channels: layers.ChannelsGiven = None
    dtype: layers.PrecisionGiven = "float32"

    casts: ClassVar[bool] = True  # parameters of two axes and more are used in dtype alone, and may be sent in it
    gathers: ClassVar[tuple[str, ...]] = ("blocks",)  # the parameters that it gathers itself, each where it is used

    def __post_init__(self):
        check_fields(self)
        if self.width % self.num_heads or self.width % 4:
            raise UserError(f"SiT needs a width divisible by 4 and num_heads={self.num_heads}, got width={self.width}.")
        if self.width * self.mlp_ratio < 1:
            raise UserError(f"SiT.mlp_ratio is {self.mlp_ratio}, which leaves no width of {self.width}.")
        refuse_tap(self, self.depth)
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
        rows, columns = grid_of(x, self.patch_size, "SiT")
        h = layers.Dense(self.width, kernel_init=xavier, dtype=self.dtype, name="patches")(patchify(x, self.patch_size))
        h += jnp.asarray(sincos_positions(rows, columns, self.width), h.dtype)
        features = layers.transformer_features(time, TIME_FEATURES)
        normal = nn.initializers.normal(0.02)
        embed = layers.Embedding(
            self.width, self.num_classes, normal, self.dtype, augment_dim=self.augment_dim, span=self.span,
            guidance=self.guidance, name="embedding",
        )  # fmt: skip
        embedding = nn.swish(embed(features, condition))  # every modulation starts with it: once for all

        h, hidden = self._blocks(deterministic)(h, embedding)
        aside(self, "hidden", hidden)
        shift, scale = modulation(embedding, 2, self.dtype, "modulation_out")
        out_channels = x.shape[-1] if self.out_channels is None else self.out_channels
        out = layers.Dense(self.patch_size**2 * out_channels, kernel_init=zeros, dtype=self.dtype, name="out")
        h = out(_modulated_norm(h, shift, scale))
        return layers.at_least_float32(unpatchify(h, rows, columns, self.patch_size))

    def _blocks(self, deterministic: bool) -> Stack:
        """`depth` blocks in a row."""
        stack = stacked(self, Block, self.depth, (nn.broadcast,), self.tap)
        return stack(self.width, self.num_heads, self.mlp_ratio, self.dropout, deterministic, self.dtype, name="blocks")


class Block(nn.Module):
    """h + gate attention(norm(h) (1 + scale) + shift), then the same with an MLP; gates start at 0 (adaLN-zero)."""

    width: int
    num_heads: int
    mlp_ratio: float
    dropout: float
    deterministic: bool  # a field, as remat would trace an argument
    dtype: str

    @nn.compact
    def __call__(
        self, h: Float[Array, "b n width"], embedding: Float[Array, "b width"]
    ) -> tuple[Float[Array, "b n width"], None]:
        moved = modulation(embedding, 6, self.dtype, "modulation")
        dropout = nn.Dropout(self.dropout, deterministic=self.deterministic)
        h += moved[2] * dropout(self._attention(_modulated_norm(h, *moved[:2])))
        h += moved[5] * dropout(self._mlp(_modulated_norm(h, *moved[3:5])))
        return h, None  # a scan's carry and (no) output

    def _attention(self, h: Float[Array, "b n width"]) -> Float[Array, "b n width"]:
        b, n, width = h.shape
        dense = partial(layers.Dense, kernel_init=xavier, dtype=self.dtype)
        qkv = dense(3 * width, name="qkv")(h).reshape(b, n, 3, self.num_heads, width // self.num_heads)
        mixed = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        return dense(width, name="attention_out")(mixed.reshape(h.shape))

    def _mlp(self, h: Float[Array, "b n width"]) -> Float[Array, "b n width"]:
        dense = partial(layers.Dense, kernel_init=xavier, dtype=self.dtype)
        hidden = nn.gelu(dense(int(self.width * self.mlp_ratio), name="mlp_0")(h), approximate=True)
        return dense(self.width, name="mlp_1")(hidden)


def _modulated_norm(
    h: Float[Array, "b n width"], shift: Float[Array, "b 1 width"], scale: Float[Array, "b 1 width"]
) -> Float[Array, "b n width"]:
    """norm(h) (1 + scale) + shift, the norm without parameters and in float32."""
    norm = nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False)
    return (norm(layers.at_least_float32(h)) * (1 + scale) + shift).astype(h.dtype)


build = SiT
