"""DiT with the parts that transformers have had since: RMSNorm, SwiGLU, rotary positions, normed queries and keys,
tokens in context (LightningDiT, arXiv:2501.01423; JiT, arXiv:2511.13720)."""

from functools import partial
from typing import Annotated, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from score_flow.config.hints import Count, Positive, Whole, check_fields
from score_flow.config.limits import Limits
from score_flow.errors import UserError
from score_flow.networks.blocks import layers
from score_flow.networks.blocks.attention import attention
from score_flow.networks.blocks.remat import Remat
from score_flow.networks.blocks.transformer import (
    TIME_FEATURES,
    RMSNorm,
    Tokens,
    aside,
    grid_of,
    modulation,
    patchify,
    refuse_tap,
    rotations,
    sincos_positions,
    stacked,
    turned,
    unpatchify,
    xavier,
    zeros,
)  # fmt: skip
from score_flow.types import Condition


class DiT(nn.Module):
    """Transformer over image patches, modulated by time and label, with the parts of later transformers as options.

    Published (width, depth, num_heads, patch_size): JiT on pixels with bottleneck=128 and 32 class tokens: B/16
    (768, 12, 12, 16), L/16 (1024, 24, 16, 16), H/16 (1280, 32, 16, 16) and G/16 (1664, 40, 16, 16) with bottleneck=256.
    LightningDiT-XL/1 (1152, 28, 16, 1) with qk_norm=False on latents 16 x 16 x 32.

    Attributes:
        mlp: swiglu, whose hidden width is 2/3 of mlp_ratio x width, so that it costs what gelu does; gelu.
        norm: rms (a learnt scale) or layer (none), before attention and MLP.
        rope: queries and keys are turned by row and column of their patch, beside the fixed positions that are added.
        qk_norm: queries and keys of each head have an RMSNorm.
        shift: modulation shifts as well as scales; without it a block has 4 vectors in place of 6.
        bottleneck: channels that patches pass on their way to `width`; 0: none.
        class_tokens: tokens of the label before the patches, each with a learnt vector added.
        register_tokens: tokens of a learnt vector alone before them.
        context_start: the block from which on there are these tokens; -1: a third of the depth.
        remat: what the backward pass keeps of a block: all (none), what Dense layers return (dots), nothing (full).
        dropout: of what attention returns and of the MLP's hidden layer.
        dropout_blocks: all, or the middle half of them (JiT).
        out_channels: as the input if None.
    Raises:
        UserError: a width that heads and positions cannot split, tokens of a label that is not given, or an image that
            the patches do not tile.
    """

    patch_size: Count = 2
    width: Count = 384
    depth: Count = 12
    num_heads: Count = 6
    mlp_ratio: Positive = 4.0
    mlp: Annotated[str, Limits(among=("swiglu", "gelu"))] = "swiglu"
    norm: Annotated[str, Limits(among=("rms", "layer"))] = "rms"
    rope: bool = True
    qk_norm: bool = True
    shift: bool = True
    bottleneck: Whole = 0
    class_tokens: Whole = 0
    register_tokens: Whole = 0
    context_start: Annotated[int, Limits(least=-1)] = -1
    remat: Remat = "dots"
    dropout: layers.Dropout = 0.0
    dropout_blocks: Annotated[str, Limits(among=("all", "middle"))] = "all"
    num_classes: layers.ClassesGiven = 0
    augment_dim: layers.AugmentGiven = 0
    span: layers.SpanGiven = False
    guidance: layers.GuidanceGiven = False
    tap: layers.TapGiven = 0
    out_channels: layers.ChannelsGiven = None
    dtype: layers.PrecisionGiven = "float32"

    casts: ClassVar[bool] = True  # parameters of two axes and more are used in dtype alone, and may be sent in it
    gathers: ClassVar[tuple[str, ...]] = ("blocks", "context_blocks")  # each where it is used

    def __post_init__(self):
        check_fields(self)
        if self.width % self.num_heads or self.width % 4 or (self.rope and self.width // self.num_heads % 4):
            raise UserError(
                f"DiT needs a width divisible by 4 and num_heads={self.num_heads}, with rope into heads of a multiple "
                f"of 4, got width={self.width}."
            )
        if self.hidden < 1:
            raise UserError(f"DiT.mlp_ratio is {self.mlp_ratio}, which leaves no width of {self.width}.")
        if self.class_tokens and not self.num_classes:
            raise UserError(
                f"DiT.class_tokens is {self.class_tokens}, and the network is given no labels "
                "(config.model.class_conditional): use register_tokens."
            )
        if self.context_start > self.depth:
            raise UserError(f"DiT.context_start is {self.context_start}, of {self.depth} blocks.")
        refuse_tap(self, self.depth)
        super().__post_init__()

    @property
    def hidden(self) -> int:
        """Width of the MLP's hidden layer."""
        width = int(self.width * self.mlp_ratio)
        return int(width * 2 / 3) if self.mlp == "swiglu" else width

    @property
    def n_before(self) -> int:
        """Number of blocks that see patches alone."""
        if not self.class_tokens + self.register_tokens:
            return self.depth
        return self.depth // 3 if self.context_start < 0 else self.context_start

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, "b"],
        condition: Condition = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "b h w c_out"]:
        rows, columns = grid_of(x, self.patch_size, "DiT")
        h = self._patches(patchify(x, self.patch_size))
        h += jnp.asarray(sincos_positions(rows, columns, self.width), h.dtype)
        label, embedding = self._embeddings(time, condition)
        embedding = nn.swish(embedding)  # every modulation starts with it: once for all

        stack = partial(self._stack, embedding=embedding, deterministic=deterministic)
        h, hidden = stack(h, 0, self.n_before, (rows, columns, 0), name="blocks")
        if n := self.class_tokens + self.register_tokens:
            h = jnp.concatenate([self._context(label, len(x)).astype(h.dtype), h], axis=1)
            h, late = stack(h, self.n_before, self.depth, (rows, columns, n), name="context_blocks")
            h, hidden = h[:, n:], hidden if late is None else late[:, n:]
        aside(self, "hidden", hidden)
        shift, scale = modulation(embedding, 2, self.dtype, "modulation_out")
        out_channels = x.shape[-1] if self.out_channels is None else self.out_channels
        out = layers.Dense(self.patch_size**2 * out_channels, kernel_init=zeros, dtype=self.dtype, name="out")
        h = out(modulated_norm(h, self.norm, "norm_out", scale, shift))
        return layers.at_least_float32(unpatchify(h, rows, columns, self.patch_size))

    def _patches(self, patches: Float[Array, "b n d"]) -> Float[Array, "b n width"]:
        dense = partial(layers.Dense, kernel_init=xavier, dtype=self.dtype)
        if self.bottleneck:
            patches = dense(self.bottleneck, use_bias=False, name="patches_input")(patches)
        return dense(self.width, name="patches")(patches)

    def _embeddings(
        self, time: Float[Array, "b"], condition: Condition
    ) -> tuple[Float[Array, "b width"] | None, Float[Array, "b width"]]:
        """Return the label's vector, and what modulates: that of time (and augmentation, and span) added to it."""
        features = layers.transformer_features(time, TIME_FEATURES)
        embedding = layers.Embedding(
            self.width, 0, nn.initializers.normal(0.02), self.dtype, augment_dim=self.augment_dim, span=self.span,
            guidance=self.guidance, name="embedding",
        )(features, condition)  # fmt: skip
        if not self.num_classes:
            return None, embedding
        label = layers.label_embedding(condition, self.num_classes, self.width, self.dtype)
        return label, embedding + label

    def _context(self, label: Float[Array, "b width"] | None, b: int) -> Float[Array, "b n width"]:
        """Return the tokens of the label and the registers."""
        n = self.class_tokens + self.register_tokens
        tokens = self.param("context", nn.initializers.normal(0.02), (n, self.width)).astype(self.dtype)
        tokens = jnp.broadcast_to(tokens, (b, *tokens.shape))
        if not self.class_tokens:
            return tokens
        return tokens.at[:, : self.class_tokens].add(label[:, None])

    def _stack(
        self, h: Float[Array, "b n width"], first: int, last: int, places: tuple[int, int, int],
        *, embedding: Float[Array, "b width"], deterministic: bool, name: str,
    ) -> tuple[Tokens, Tokens | None]:  # fmt: skip
        """Put the tokens through blocks first, ..., last - 1; with them return those of `tap`, if it is among these."""
        if first == last:
            return h, None
        drops = None
        if self.dropout and not deterministic and self.dropout_blocks == "middle":
            quarter = self.depth // 4
            drops = jnp.array([quarter <= i < 3 * quarter for i in range(first, last)])
        in_axes = (nn.broadcast, nn.broadcast if drops is None else 0)
        return stacked(self, Block, last - first, in_axes, self.tap - first)(
            self.num_heads, self.hidden, self.mlp, self.norm, self.qk_norm, self.shift,
            places if self.rope else None, self.dropout, deterministic, self.dtype, name=name,
        )(h, embedding, drops)  # fmt: skip


class Block(nn.Module):
    """h + gate attention(norm(h) (1 + scale) + shift), then the same with an MLP; gates start at 0 (adaLN-zero)."""

    num_heads: int
    hidden: int
    mlp: str
    norm: str
    qk_norm: bool
    shift: bool
    places: tuple[int, int, int] | None  # rows, columns and tokens before them, by which queries and keys are turned
    dropout: float
    deterministic: bool  # a field, as remat would trace an argument
    dtype: str

    @nn.compact
    def __call__(
        self, h: Float[Array, "b n width"], embedding: Float[Array, "b width"], drops: Bool[Array, ""] | None
    ) -> tuple[Float[Array, "b n width"], None]:
        def dropout(y):
            dropped = nn.Dropout(self.dropout, deterministic=self.deterministic)(y)
            return dropped if drops is None else jnp.where(drops, dropped, y)

        vectors = modulation(embedding, 6 if self.shift else 4, self.dtype, "modulation")
        half = len(vectors) // 2
        *shift, scale, gate = vectors[:half]
        h += gate * dropout(self._attention(modulated_norm(h, self.norm, "norm_0", scale, *shift)))
        *shift, scale, gate = vectors[half:]
        h += gate * self._mlp(modulated_norm(h, self.norm, "norm_1", scale, *shift), dropout)
        return h, None  # a scan's carry and (no) output

    def _attention(self, h: Float[Array, "b n width"]) -> Float[Array, "b n width"]:
        b, n, width = h.shape
        dense = partial(layers.Dense, kernel_init=xavier, dtype=self.dtype)
        qkv = dense(3 * width, name="qkv")(h).reshape(b, n, 3, self.num_heads, width // self.num_heads)
        q, k, v = (qkv[:, :, i] for i in range(3))
        if self.qk_norm:
            q, k = RMSNorm(name="query_norm")(q), RMSNorm(name="key_norm")(k)
        if self.places:
            angles = rotations(*self.places[:2], width // self.num_heads, self.places[2])
            q, k = (turned(layers.at_least_float32(part), angles) for part in (q, k))
        mixed = attention(q.astype(v.dtype), k.astype(v.dtype), v)
        return dense(width, name="attention_out")(mixed.reshape(h.shape))

    def _mlp(self, h: Float[Array, "b n width"], dropout) -> Float[Array, "b n width"]:
        dense = partial(layers.Dense, kernel_init=xavier, dtype=self.dtype)
        if self.mlp == "swiglu":
            gate, hidden = jnp.split(dense(2 * self.hidden, name="mlp_0")(h), 2, axis=-1)
            hidden = nn.swish(gate) * hidden
        else:
            hidden = nn.gelu(dense(self.hidden, name="mlp_0")(h), approximate=True)
        return dense(h.shape[-1], name="mlp_1")(dropout(hidden))


def modulated_norm(
    h: Float[Array, "b n width"], norm: str, name: str, scale: Float[Array, "b 1 width"],
    shift: Float[Array, "b 1 width"] | float = 0.0,
) -> Float[Array, "b n width"]:  # fmt: skip
    """norm(h) (1 + scale) + shift, computed in float32; call it in a compact method."""
    if norm == "rms":
        y = RMSNorm(name=name)(h)
    else:
        y = nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, name=name)(layers.at_least_float32(h))
    return (y * (1 + scale) + shift).astype(h.dtype)


build = DiT
