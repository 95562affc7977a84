"""training.objective = uncertainty: the squared error, each time weighed by how large it is there.

exp(-u(t)) L(t) + u(t), whose minimum over u is log E[L | t]: every time then counts alike, and what the network learns
at each is as it was (EDM2, Karras et al. 2023, arXiv:2312.02696, eq. 14 to 21).
"""

import math

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from score_flow.config.options import TrainOptions
from score_flow.data.preprocessing import Preprocess
from score_flow.errors import UserError
from score_flow.losses.base import Noised, unused
from score_flow.losses.simple import OfSquaredError, denoising
from score_flow.model import OWN, Model
from score_flow.process.times import TimeSampler
from score_flow.types import Key, Params, Times

CHANNELS = 128
LARGEST = 20.0  # of |log SNR|: beyond it u is constant
FREQUENCIES = np.random.RandomState(0).normal(size=CHANNELS)
PHASES = np.random.RandomState(1).uniform(size=CHANNELS)


@flax.struct.dataclass
class Uncertain(OfSquaredError):
    """exp(-u) simple + u, with u a sum of 128 fixed waves of log(sigma/alpha)/4 whose heights are learnt, from 0.

    Without training nothing is weighed: `at` is the squared error.
    """

    def own(self, image_shape: tuple[int, ...]) -> Params:
        return {"heights": jnp.zeros(CHANNELS)}

    def log_error(self, params: Params, t: Times) -> Float[Array, "b"]:
        """u(t)."""
        place = -jnp.clip(self.model.path.log_snr(t), -LARGEST, LARGEST) / 8
        waves = math.sqrt(2) * jnp.cos(2 * jnp.pi * (place[:, None] * FREQUENCIES + PHASES))
        return waves @ params[OWN]["heights"] / math.sqrt(CHANNELS)

    def examples(self, params: Params, drawn: Noised, key: Key | None = None) -> Float[Array, "b"]:
        u = self.log_error(params, drawn.t)
        return jnp.exp(-u) * self.simple.examples(params, drawn, key) + u


def build(model: Model, times: TimeSampler, prepare: Preprocess, num_classes: int, options: TrainOptions) -> Uncertain:
    """The squared error and its own weight of the time; raises UserError for sums, of which u is no logarithm."""
    unused(options, "contrast", "cosine")
    if not options.reduce_mean:
        raise UserError(
            "config.training.reduce_mean is False: training.objective = uncertainty weighs means; leave it True."
        )
    return Uncertain(denoising(model, times, prepare, num_classes, options))
