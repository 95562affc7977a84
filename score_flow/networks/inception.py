"""InceptionV3 as the FID uses it: the graph of 2015-12-05 with its own resize (no plug-in, hence no `build`).

Szegedy et al. 2015 (arXiv:1512.00567) as Heusel et al. 2017 took it for the FID (arXiv:1706.08500). It is not the
InceptionV3 of 2016: averages leave the padding out, the last block takes a maximum for an average, there are 1008
outputs, and the resize is TensorFlow 1's. Any of them changes features by more than models differ.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from score_flow.networks.blocks.layers import at_least_float32

SIZE = 299
N_FEATURES, N_LOGITS = 2048, 1008
SPATIAL_CHANNELS = 7
N_SPATIAL = 17 * 17 * SPATIAL_CHANNELS

Maps = Float[Array, "b h w c"]
Out = Float[Array, "b h2 w2 c2"]  # of another size


class Outputs(NamedTuple):
    """Features after the last average, and the logits of ImageNet's classes, with and without their bias.

    spatial: the first 7 of the channels that the 1 x 1 branch of the block "mixed_6" gives, at 17 x 17 places, row by
    row: what sFID compares (Nash et al. 2021, arXiv:2103.03841), with about as many numbers as the pool has.
    """

    pool: Float[Array, "b 2048"]
    logits: Float[Array, "b 1008"]
    unbiased_logits: Float[Array, "b 1008"]
    spatial: Float[Array, "b 2023"]


def resize(x: Maps, size: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
    """Bilinear as in TensorFlow 1: pixel i of the result is at i n / size of the given n, whose last repeats.

    Neither aligned corners nor half-pixel centres; nothing is filtered on the way down. As there, the scale n / size is
    rounded to float32; the rest is in the dtype of x.
    """
    for axis, length in ((2, size[1]), (1, size[0])):
        x = _interpolate(x, axis, length)
    return x


def _interpolate(x: Maps, axis: int, size: int) -> Float[Array, "b h2 w2 c"]:
    n = x.shape[axis]
    scale = np.float32(n / size).astype(x.dtype)
    position = np.arange(size, dtype=x.dtype) * scale
    low = position.astype(np.int32)
    shape = [-1 if i == axis else 1 for i in range(4)]
    before, after = (jnp.take(x, i, axis=axis) for i in (low, np.minimum(low + 1, n - 1)))
    return before + (after - before) * (position - low.astype(x.dtype)).reshape(shape)


class InceptionV3(nn.Module):
    """Images of levels 0 to 255, of any size, to features and logits; parameters are named as in the published file.

    Stored statistics are parameters too. In float32 the products are float32's: TF32 and bfloat16 cost three digits.
    """

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Outputs:
        unit = partial(Unit, dtype=self.dtype)
        h = (resize(at_least_float32(x), (SIZE, SIZE)) - 128) / 128
        h = unit(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(h.astype(self.dtype))
        h = unit(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(h)
        h = max_pool(unit(64, (3, 3), name="Conv2d_2b_3x3")(h))
        h = unit(80, name="Conv2d_3b_1x1")(h)
        h = max_pool(unit(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(h))
        for name, pooled in {"Mixed_5b": 32, "Mixed_5c": 64, "Mixed_5d": 64}.items():
            h = BlockA(pooled, self.dtype, name=name)(h)
        h = BlockB(self.dtype, name="Mixed_6a")(h)
        for name, width in {"Mixed_6b": 128, "Mixed_6c": 160, "Mixed_6d": 160}.items():  # mixed_4, _5, _6 of the graph
            h = BlockC(width, self.dtype, name=name)(h)
        spatial = at_least_float32(h[..., :SPATIAL_CHANNELS]).reshape(len(h), -1)  # whose 1 x 1 branch comes first
        h = BlockC(192, self.dtype, name="Mixed_6e")(h)
        h = BlockD(self.dtype, name="Mixed_7a")(h)
        h = BlockE(average_pool, self.dtype, name="Mixed_7b")(h)
        h = BlockE(partial(max_pool, stride=1, padding="SAME"), self.dtype, name="Mixed_7c")(h)

        pool = at_least_float32(h).mean(axis=(1, 2))
        logits = nn.Dense(N_LOGITS, use_bias=False, precision="highest", name="fc")(pool)
        bias = self.param("fc_bias", nn.initializers.zeros, (N_LOGITS,))
        return Outputs(pool, logits + bias, logits, spatial)


class Unit(nn.Module):
    """relu(scale (conv(x) - mean) / sqrt(variance + .001) + bias), the moments stored."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Maps) -> Out:
        strides = (self.stride, self.stride)
        kwargs = {"use_bias": False, "dtype": self.dtype, "precision": "highest", "name": "conv"}
        h = nn.Conv(self.features, self.kernel, strides, self.padding, **kwargs)(x)
        return nn.relu(StoredNorm(name="bn")(h))


class StoredNorm(nn.Module):
    """Batch normalisation by the moments of its training, in float32 (Ioffe, Szegedy 2015, arXiv:1502.03167)."""

    epsilon: float = 1e-3

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        zeros, ones, shape = nn.initializers.zeros, nn.initializers.ones, x.shape[-1:]
        scale, bias = self.param("scale", ones, shape), self.param("bias", zeros, shape)
        mean, variance = self.param("mean", zeros, shape), self.param("variance", ones, shape)
        gain = scale * jax.lax.rsqrt(variance + self.epsilon)
        return (at_least_float32(x) * gain + (bias - mean * gain)).astype(x.dtype)


class BlockA(nn.Module):
    """1 x 1, 5 x 5, twice 3 x 3, average."""

    pooled: int
    dtype: str

    @nn.compact
    def __call__(self, x: Maps) -> Out:
        chain = partial(_chain, x, self.dtype)
        return _join(
            chain("branch1x1", (64,)),
            chain("branch5x5", (48,), (64, (5, 5))),
            chain("branch3x3dbl", (64,), (96, (3, 3)), (96, (3, 3))),
            _chain(average_pool(x), self.dtype, "branch_pool", (self.pooled,)),
        )


class BlockB(nn.Module):
    """To half the resolution: 3 x 3, twice 3 x 3, maximum."""

    dtype: str

    @nn.compact
    def __call__(self, x: Maps) -> Out:
        chain = partial(_chain, x, self.dtype)
        return _join(
            chain("branch3x3", (384, (3, 3), 2, "VALID")),
            chain("branch3x3dbl", (64,), (96, (3, 3)), (96, (3, 3), 2, "VALID")),
            max_pool(x),
        )


class BlockC(nn.Module):
    """1 x 1, 7 x 7, twice 7 x 7, average; 7 x 7 as a row and a column."""

    width: int
    dtype: str

    @nn.compact
    def __call__(self, x: Maps) -> Out:
        chain, width, row, column = partial(_chain, x, self.dtype), self.width, (1, 7), (7, 1)
        return _join(
            chain("branch1x1", (192,)),
            chain("branch7x7", (width,), (width, row), (192, column)),
            chain("branch7x7dbl", (width,), (width, column), (width, row), (width, column), (192, row)),
            _chain(average_pool(x), self.dtype, "branch_pool", (192,)),
        )


class BlockD(nn.Module):
    """To half the resolution: 3 x 3, 7 x 7 and 3 x 3, maximum."""

    dtype: str

    @nn.compact
    def __call__(self, x: Maps) -> Out:
        chain = partial(_chain, x, self.dtype)
        return _join(
            chain("branch3x3", (192,), (320, (3, 3), 2, "VALID")),
            chain("branch7x7x3", (192,), (192, (1, 7)), (192, (7, 1)), (192, (3, 3), 2, "VALID")),
            max_pool(x),
        )


class BlockE(nn.Module):
    """1 x 1, 3 x 3, twice 3 x 3, pooled; the last 3 x 3 of each is a row beside a column."""

    pool: Callable[[Maps], Maps]  # the average, but for the last block
    dtype: str

    @nn.compact
    def __call__(self, x: Maps) -> Out:
        unit = partial(Unit, dtype=self.dtype)
        short = unit(384, name="branch3x3_1")(x)
        long = unit(384, (3, 3), name="branch3x3dbl_2")(unit(448, name="branch3x3dbl_1")(x))
        return _join(
            unit(320, name="branch1x1")(x),
            unit(384, (1, 3), name="branch3x3_2a")(short),
            unit(384, (3, 1), name="branch3x3_2b")(short),
            unit(384, (1, 3), name="branch3x3dbl_3a")(long),
            unit(384, (3, 1), name="branch3x3dbl_3b")(long),
            unit(192, name="branch_pool")(self.pool(x)),
        )


def _chain(x: Maps, dtype: str, name: str, *units: tuple) -> Out:
    """Units one after the other, called name_1, name_2, ...; a single one has the name itself."""
    for i, fields in enumerate(units, start=1):
        x = Unit(*fields, dtype=dtype, name=f"{name}_{i}" if len(units) > 1 else name)(x)
    return x


def _join(*branches: Float[Array, "b h w _"]) -> Float[Array, "b h w c"]:
    return jnp.concatenate(branches, axis=-1)


def max_pool(x: Maps, stride: int = 2, padding: str = "VALID") -> Float[Array, "b h2 w2 c"]:
    """Return the largest of 3 x 3 pixels."""
    return nn.max_pool(x, (3, 3), (stride, stride), padding)


def average_pool(x: Maps) -> Maps:
    """Return the mean of 3 x 3 pixels, of those that are inside the image."""
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)
