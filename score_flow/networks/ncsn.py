"""NCSN: a score network whose normalisations are told the noise level (Song and Ermon 2019, arXiv:1907.05600)."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from score_flow.config.hints import Count
from score_flow.networks.ncsnv2 import NCSNv2


class NCSN(NCSNv2):
    """NCSNv2 with a row of coefficients per noise level in every normalisation, in the refine blocks too.

    The published network is resolution=64 with normalization="InstanceNorm++" (conditional instance normalisation++,
    app. A.1). It pools averages where NCSNv2 pools maxima. `time` is the number of the level, 0 .. num_scales - 1,
    rounded to the nearest; levels beyond either end are the end's.

    Attributes:
        num_scales: noise levels.
    Raises:
        UserError: as NCSNv2; no noise level.
    """

    num_scales: Count = 10
    ignores_time: ClassVar[bool] = False

    def level(self, time: Float[Array, "b"]) -> Int[Array, "b"]:
        """Return the row of each example."""
        return jnp.clip(jnp.round(time), 0, self.num_scales - 1).astype(jnp.int32)


build = NCSN
