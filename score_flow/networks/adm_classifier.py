"""guided-diffusion's classifier of noisy images: half of ADM and a pooling by attention (arXiv:2105.05233).

No plug-in, hence no `build`: config.network.name = adm_classifier, for training.objective = classifier.
"""

from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from score_flow.config.hints import Count, Given, Whole
from score_flow.config.limits import Limits
from score_flow.errors import UserError
from score_flow.networks.adm import ADM, group_norm, torch_kernel
from score_flow.networks.blocks import layers
from score_flow.networks.blocks.attention import attention
from score_flow.types import Condition


class ADMClassifier(ADM):
    """Logits of p(label | x_t): ADM's way down and its middle; the mean of their places attends to them all.

    Published with width=128 and the channel_mult of the model that it guides; ImageNet 64 x 64 with num_res_blocks=4,
    512 x 512 with width=64, embedding_width=128 and channel_mult=(1, 2, 2, 4, 4, 8, 8).
    """

    num_res_blocks: Whole = 2
    attention_resolutions: Annotated[tuple[int, ...], Limits(least=0)] = (32, 16, 8)
    resample_blocks: bool = True
    head_channels: Count | None = 64
    num_classes: Annotated[int, Given("the number of the data's classes")] = 10

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, "b"],
        condition: Condition = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "b num_classes"]:
        """The condition is not looked at; the result is at least float32."""
        self._check_size(x)
        h, _ = self._encode(x, self._embed(time, None, 0), deterministic)
        h = nn.swish(group_norm(h, "norm_out"))
        heads = h.shape[-1] // self.head_channels if self.head_channels else self.num_heads
        if h.shape[-1] % heads:
            raise UserError(f"ADMClassifier: {heads} heads do not divide the {h.shape[-1]} channels at the bottom.")
        return layers.at_least_float32(AttentionPool(self.num_classes, heads, self.dtype, name="pool")(h))


class AttentionPool(nn.Module):
    """W softmax(q k^T / sqrt(d)) v of one query, the mean over places, to the places and itself, with positions."""

    features: int
    num_heads: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        b, height, width, c = x.shape
        x = layers.at_least_float32(x.reshape(b, height * width, c))
        x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
        x += self.param("positions", nn.initializers.normal(c**-0.5), (height * width + 1, c))
        qkv = nn.Dense(3 * c, kernel_init=torch_kernel, dtype=self.dtype, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(b, -1, 3, self.num_heads, c // self.num_heads), 2, 0)
        mixed = attention(q[:, :1], k, v).reshape(b, c)
        return nn.Dense(self.features, kernel_init=torch_kernel, dtype=self.dtype, name="out")(mixed)
