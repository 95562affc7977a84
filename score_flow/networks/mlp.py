"""Residual multilayer perceptron for points, toy densities and small images of any shape."""

import math
from functools import partial
from typing import Annotated

import flax.linen as nn
from jaxtyping import Array, Float

from score_flow.config.hints import Count, Positive, Whole, check_fields
from score_flow.config.limits import Limits
from score_flow.networks.blocks import layers
from score_flow.networks.blocks.layers import scaled_uniform
from score_flow.types import Condition


class MLP(nn.Module):
    """h <- h + W2 swish(W1 swish(h) + W embedding(time, label)), `depth` times, on the flattened example.

    No normalisation: it would discard |x|, which is most of what a density in few dimensions depends on.

    Attributes:
        embedding: "positional" (sin | cos) or "fourier" (random frequencies of scale fourier_scale) time features.
        out_channels: size of the output's last axis, as the input if None.
    Raises:
        UserError: an unknown embedding.
    """

    width: Count = 256
    depth: Whole = 3
    embedding: Annotated[str, Limits(among=layers.TIME_FEATURES)] = "positional"
    fourier_scale: Positive = 16.0
    dropout: layers.Dropout = 0.0
    num_classes: layers.ClassesGiven = 0
    augment_dim: layers.AugmentGiven = 0
    span: layers.SpanGiven = False
    guidance: layers.GuidanceGiven = False
    out_channels: layers.ChannelsGiven = None
    dtype: layers.PrecisionGiven = "float32"

    def __post_init__(self):
        check_fields(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b *d"],
        time: Float[Array, "b"],
        condition: Condition = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "b *d_out"]:
        dense = partial(nn.Dense, dtype=self.dtype)
        features = layers.TimeFeatures(self.embedding, self.width, self.fourier_scale, name="time_features")(time)
        embed = layers.Embedding(
            self.width, self.num_classes, dtype=self.dtype, augment_dim=self.augment_dim, span=self.span,
            guidance=self.guidance, name="embedding",
        )  # fmt: skip
        embedding = nn.swish(embed(features, condition))

        h = dense(self.width, kernel_init=scaled_uniform(), name="in")(x.reshape(x.shape[0], -1))
        for i in range(self.depth):
            y = dense(self.width, kernel_init=scaled_uniform(), name=f"block_{i}_0")(nn.swish(h))
            y += dense(self.width, kernel_init=scaled_uniform(), name=f"block_{i}_embedding")(embedding)
            y = nn.Dropout(self.dropout, deterministic=deterministic)(nn.swish(y))
            h += dense(self.width, kernel_init=scaled_uniform(0.0), name=f"block_{i}_1")(y)

        shape = (*x.shape[1:-1], x.shape[-1] if self.out_channels is None else self.out_channels)
        out = dense(math.prod(shape), kernel_init=scaled_uniform(0.0), name="out")(nn.swish(h))
        return layers.at_least_float32(out.reshape(x.shape[0], *shape))


build = MLP
