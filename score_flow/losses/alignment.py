"""Representation alignment: what a network's patches are early on, brought near what a trained encoder makes of them.

weight (-mean over patches of cos(h(block k of x_t), y)), with y the encoder's features of the image without noise and h
a small network that is trained beside and read by nothing else (REPA, Yu et al. 2024, arXiv:2410.06940).
"""

from functools import partial
from typing import ClassVar, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float16

from score_flow.config.options import TrainOptions
from score_flow.data.features import FEATURES
from score_flow.errors import UserError
from score_flow.losses.base import Loss, Noised, unused
from score_flow.losses.simple import OfSquaredError
from score_flow.model import OWN, PROJECTOR
from score_flow.networks.blocks import layers
from score_flow.networks.blocks.transformer import xavier
from score_flow.numerics import cosine
from score_flow.tree import static
from score_flow.types import Batch, Condition, Images, Key, Params


class Projector(nn.Module):
    """h: three layers with SiLU between."""

    width: int
    features: int
    dtype: str

    @nn.compact
    def __call__(self, hidden: Float[Array, "b n d"]) -> Float[Array, "b n features"]:
        dense = partial(layers.Dense, kernel_init=xavier, dtype=self.dtype)
        h = nn.silu(dense(self.width, name="dense_0")(hidden))
        h = nn.silu(dense(self.width, name="dense_1")(h))
        return dense(self.features, name="dense_2")(h)


class Featured(NamedTuple):
    """What is drawn of a batch (losses.base.Noised), and the features of its images."""

    x0: Images
    noise: Images
    t: Float[Array, "b"]
    weight: Float[Array, "b"]
    condition: Condition
    features: Float16[Array, "b n d"]


@flax.struct.dataclass
class Aligned(OfSquaredError):
    """The squared error and, in training, `weight` times the alignment; width: of the projector's hidden layers.

    Without training there is the squared error alone, and no features are asked for.
    """

    weight: float = static(default=0.5)
    width: int = static(default=2048)

    aligns: ClassVar[bool] = True

    def init(self, key: Key, batch: Batch) -> Params:
        """Make parameters; raises UserError unless the features are of as many patches as the network has tokens."""
        params, (x0, condition) = super().init(key, batch), jax.eval_shape(self.noising.prepare, key, batch)
        t = jax.ShapeDtypeStruct(x0.shape[:1], x0.dtype)
        hidden = jax.eval_shape(self.model.tapped, params, x0, t, condition)[1]
        features = batch[FEATURES]
        if features.shape[1] != hidden.shape[1]:
            raise UserError(
                f"config.training.alignment: the features are of {features.shape[1]} patches, and the network has "
                f"{hidden.shape[1]} tokens: encode with another eval.encoder_stride, or set network.patch_size."
            )
        # Of a number that no split of the same key has made.
        projector = self._projector(features).init(jax.random.fold_in(key, 6), jnp.zeros((1, 1, hidden.shape[2])))
        return params | {OWN: params.get(OWN, {}) | {PROJECTOR: projector["params"]}}

    def draw(self, time_state, key: Key, batch: Batch, train: bool) -> tuple[Noised | Featured, Key | None]:
        drawn, dropout_key = self.noising.draw(time_state, key, batch, train)
        return Featured(*drawn, batch[FEATURES]) if train else drawn, dropout_key

    def examples(self, params: Params, drawn: Noised | Featured, key: Key | None = None) -> Float[Array, "b"]:
        if not isinstance(drawn, Featured):
            return self.simple.examples(params, drawn, key)
        x0, noise, t, _, condition, features = drawn
        x = self.model.path.perturb(x0, noise, t)
        output, hidden = self.model.tapped(params, x, t, condition, key=key)
        losses = self.simple.trained(self.model.split(output, x)[0], x0, noise, t)
        projected = self._projector(features).apply({"params": params[OWN][PROJECTOR]}, hidden)
        projected = layers.at_least_float32(projected)
        return losses - self.weight * jnp.mean(cosine(projected, features.astype(projected.dtype)), axis=1)

    def _projector(self, features: Float16[Array, "b n d"]) -> Projector:
        return Projector(self.width, features.shape[-1], getattr(self.model.network, "dtype", "float32"))


def aligned(loss: Loss, options: TrainOptions) -> Loss:
    """Return the loss with what config.training.alignment adds to it; raises UserError where it adds to another."""
    names, said = ("alignment", "alignment_block", "alignment_width"), f"training.alignment = {options.alignment}"
    if not options.alignment:
        unused(options, *names, by=said)
        return loss
    if options.objective != "simple":
        unused(options, *names)
    unused(options, "second_order", by=said)
    return Aligned(loss, options.alignment, options.alignment_width)
