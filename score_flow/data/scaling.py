"""The one affine map between pixel levels 0 .. levels - 1 and the range that a model sees; random mirroring."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped, UInt8

from score_flow.config.hints import ValueRange, refuse_empty_range
from score_flow.errors import UserError


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Level v of `levels` <-> [low, high]; the likelihood derives its offset in bits from it.

    Bits per dimension of the levels, from the density p of dequantised data x in the model range, d dimensions:
    bpd = -log p(x) / (d ln 2) + log2(levels / (high - low)).

    With a `range` (lowest, highest) the data are real numbers v of it, without levels: low .. high is its image, the
    offset that of the change of variables alone, and `levels` those of pictures.

    The cells of levels fill [low, high]; centred, they lie around the levels that `normalise` gives, the first and the
    last half outside: levels / (high - low) is then (levels - 1) / (high - low).
    """

    low: float = -1.0
    high: float = 1.0
    levels: int = 256
    range: ValueRange = ()
    centred: bool = False

    def __post_init__(self):
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UserError(f"scaling: got low = {self.low}, high = {self.high}; allowed: low < high, both finite")
        if not 2 <= self.levels <= 256:
            raise UserError(f"scaling.levels: got {self.levels}; allowed: 2 to 256")
        refuse_empty_range("scaling.range", self.range)

    @property
    def bits_offset(self) -> float:
        """log2(levels / (high - low)): bits a dimension from the change of variables; 7 for 256 levels on [-1, 1].

        Of real numbers log2 of the width of their range in the place of the levels: -log2 of the density of v.
        """
        width = self.range[1] - self.range[0] if self.range else self.levels - self.centred
        return math.log2(width / (self.high - self.low))

    def normalise(self, v: Shaped[Array, "*shape"]) -> Float[Array, "*shape"]:
        """low + (high - low) v / (levels - 1): the end levels, or those of the range, meet the ends low and high."""
        if self.range:
            lowest, highest = self.range
            return self.low + (self.high - self.low) * ((v.astype(jnp.float32) - lowest) / (highest - lowest))
        return self.low + (self.high - self.low) * (v.astype(jnp.float32) / (self.levels - 1))

    def dequantise(self, v: Shaped[Array, "*shape"], u: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """low + (high - low) (v + u) / levels, u in [0, 1): a level fills a cell (Theis et al., arXiv:1511.01844).

        Centred, low + (high - low) (v + u - 1/2) / (levels - 1). Real numbers have no cell: they are normalised.
        """
        if self.range:
            return self.normalise(v)
        if self.centred:
            return self.low + (self.high - self.low) * ((v.astype(jnp.float32) + (u - 0.5)) / (self.levels - 1))
        return self.low + (self.high - self.low) * ((v.astype(jnp.float32) + u) / self.levels)

    def to_data(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Undo `normalise` for real numbers: model range -> [lowest, highest]; not clipped."""
        return self.range[0] + (self.range[1] - self.range[0]) * self.to_unit(x)

    def to_unit(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """(x - low) / (high - low): model range -> [0, 1]; not clipped."""
        return (x - self.low) / (self.high - self.low)

    def quantise(self, x: Float[Array, "*shape"], dequantised: bool = False) -> UInt8[Array, "*shape"]:
        """Return the level of x; values outside the range go to the nearest end.

        floor((levels - 1) unit), score_sde's rule, undoes `normalise`; floor(levels unit) undoes `dequantise`.
        """
        if dequantised:
            level = self.levels * self.to_unit(x)
        else:
            # in float32 normalise(v) falls up to 3e-5 levels short of v; floor would make that v - 1: guard of 2^-12
            level = (self.levels - 1) * self.to_unit(x) + 2.0**-12
        return jnp.clip(jnp.floor(level), 0, self.levels - 1).astype(jnp.uint8)


def random_flip(keys: Key[Array, "b"], images: Shaped[Array, "b h w c"]) -> Shaped[Array, "b h w c"]:
    """Mirror each image left to right with probability 1/2 by its own key: (b,) keys, (b, h, w, c) images."""
    flip = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)
