"""DINOv2's vision transformer, whose features FD-DINOv2 compares (no plug-in, hence no `build`).

Oquab et al. 2023 (arXiv:2304.07193). Of its class token Stein et al. 2023 (arXiv:2306.04675) make a distance that
agrees with people better than Inception's does.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from score_flow.networks.blocks.attention import attention
from score_flow.networks.blocks.layers import at_least_float32

PATCH, SIDE, SIZE = 14, 37, 224  # pixels of a patch, patches of a side of the images of training, pixels of a side here
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's images in [0, 1]
HEAD = 64  # channels of a head
OFFSET = 0.1  # that the published models add to the number of patches where they scale their positions
SIZES = {"S": (384, 12, False), "B": (768, 12, False), "L": (1024, 24, False), "g": (1536, 40, True)}

Tokens = Float[Array, "b n d"]


class Outputs(NamedTuple):
    """The class token after the last norm, and the tokens of the patches, row by row."""

    token: Float[Array, "b d"]
    patches: Tokens


class DINOv2(nn.Module):
    """Images of levels 0 to 255, of any size, to tokens: resized to 224 x 224, as ImageNet's normalised.

    Attributes:
        width, depth, gated: as SIZES has them: S 22.1 M parameters, B 86.6 M, L 304 M, g 1.14 G. gated: SwiGLU.
        registers: further tokens, 4 in the models that were published with them (arXiv:2309.16588).
    """

    width: int = 1024
    depth: int = 24
    gated: bool = False
    registers: int = 0
    dtype: str = "float32"

    def __call__(self, x: Float[Array, "b h w 3"]) -> Outputs:
        x = at_least_float32(x)
        x = resized(x, cubic(x.shape[1], SIZE, antialias=True), cubic(x.shape[2], SIZE, antialias=True))
        return self.tokens(normalised(x))

    @nn.compact
    def tokens(self, x: Float[Array, "b h w 3"]) -> Outputs:
        """Return the tokens of images as the network sees them, whose sides are multiples of 14."""
        b, rows, columns, _ = x.shape
        patches = nn.Conv(self.width, (PATCH, PATCH), PATCH, "VALID", dtype=self.dtype, name="patches")
        h = patches(x.astype(self.dtype)).reshape(b, -1, self.width)
        small = nn.initializers.normal(0.02)
        token = self.param("token", small, (self.width,))
        positions = self.param("positions", small, (1 + SIDE * SIDE, self.width))
        h = jnp.concatenate([jnp.broadcast_to(token, (b, 1, self.width)).astype(h.dtype), h], axis=1)
        h += self._scaled(positions, rows // PATCH, columns // PATCH).astype(h.dtype)
        if self.registers:
            more = self.param("registers", small, (self.registers, self.width)).astype(h.dtype)
            h = jnp.concatenate([h[:, :1], jnp.broadcast_to(more, (b, *more.shape)), h[:, 1:]], axis=1)
        stack = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth)
        h, _ = stack(self.gated, self.dtype, name="blocks")(h, None)
        h = nn.LayerNorm(epsilon=1e-6, name="norm")(at_least_float32(h))
        return Outputs(h[:, 0], h[:, 1 + self.registers :])

    def _scaled(self, positions: Float[Array, "m d"], rows: int, columns: int) -> Float[Array, "n d"]:
        """Return the positions of so many patches: those of training, resized as an image of them."""
        if (rows, columns) == (SIDE, SIDE):
            return positions
        way = {"antialias": True} if self.registers else {"offset": OFFSET}  # as published
        grid = positions[1:].reshape(1, SIDE, SIDE, -1)
        grid = resized(grid, cubic(SIDE, rows, **way), cubic(SIDE, columns, **way))
        return jnp.concatenate([positions[:1], grid.reshape(rows * columns, -1)])


def normalised(x: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Return images of levels 0 to 255 as the network sees them."""
    return (x / 255 - jnp.asarray(MEAN, x.dtype)) / jnp.asarray(STD, x.dtype)


class Block(nn.Module):
    """h + s attention(norm(h)), then h + s mlp(norm(h)), each channel with a scale s of its own."""

    gated: bool
    dtype: str

    @nn.compact
    def __call__(self, h: Tokens, _: None) -> tuple[Tokens, None]:
        (b, n, width), dense = h.shape, partial(nn.Dense, dtype=self.dtype)
        norm = partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
        qkv = dense(3 * width, name="qkv")(norm(name="norm_0")(h)).reshape(b, n, 3, width // HEAD or 1, -1)
        mixed = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]).reshape(b, n, width)
        h += self._scale("scale_0", width) * dense(width, name="out")(mixed)
        x = norm(name="norm_1")(h)
        if self.gated:
            gate, value = jnp.split(dense(2 * gated_width(width), name="mlp_0")(x), 2, axis=-1)
            x = nn.silu(gate) * value
        else:
            x = nn.gelu(dense(4 * width, name="mlp_0")(x), approximate=False)
        return h + self._scale("scale_1", width) * dense(width, name="mlp_1")(x), None

    def _scale(self, name: str, width: int) -> Float[Array, "d"]:
        return self.param(name, nn.initializers.ones, (width,)).astype(self.dtype)


def gated_width(width: int) -> int:
    """Return the hidden width of a SwiGLU that has as many weights as an MLP of four times the width."""
    return -(-(4 * width * 2 // 3) // 8) * 8


def resized(
    x: Float[Array, "b h w c"], rows: Float64[np.ndarray, "h2 h"], columns: Float64[np.ndarray, "w2 w"]
) -> Float[Array, "b h2 w2 c"]:
    """Return the image whose pixels are these sums of the given one's, along each axis."""
    rows, columns = jnp.asarray(rows, x.dtype), jnp.asarray(columns, x.dtype)
    return jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns, precision="highest")


def cubic(n: int, size: int, *, antialias: bool = False, offset: float = 0.0) -> Float64[np.ndarray, "size n"]:
    """Return the weights of n pixels in each of `size`, by cubic convolution between the centres of pixels.

    antialias: Keys's kernel (a = -.5), widened on the way down, over the pixels that are there: PIL's and torch's.
    Else torch's other one: a = -.75, four pixels, the outermost repeated; `offset` joins the size where it scales.
    """
    scale = n / (size + offset)
    centre = (np.arange(size)[:, None] + 0.5) * scale - 0.5
    if antialias:
        weights = _kernel((np.arange(n) - centre) / max(scale, 1.0), -0.5)
        return weights / weights.sum(axis=1, keepdims=True)
    weights, first = np.zeros((size, n)), np.floor(centre[:, 0]).astype(int)
    for i in range(-1, 3):
        pixel = first + i
        np.add.at(weights, (np.arange(size), pixel.clip(0, n - 1)), _kernel(pixel - centre[:, 0], -0.75))
    return weights


def _kernel(x: Float64[np.ndarray, "*n"], a: float) -> Float64[np.ndarray, "*n"]:
    """Keys's cubic (1981, doi:10.1109/TASSP.1981.1163711)."""
    x = np.abs(x)
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
