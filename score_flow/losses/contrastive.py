"""training.objective = contrastive: velocities that keep away from those of other examples.

|v' - v|^2 - contrast |v' - v~|^2, with v~ of another example's image and noise at the same time (Stoica et al. 2025,
arXiv:2506.05350). Its minimiser is no velocity of the data: it is shifted and stretched. Whoever reads the network's
output undoes that first (process.prediction.uncontrasted), for which the loss learns E[x0].
"""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from score_flow.config.options import TrainOptions
from score_flow.data.preprocessing import Preprocess
from score_flow.errors import UserError
from score_flow.losses.base import OF_SIMPLE, unused
from score_flow.losses.simple import OfSquaredError, denoising
from score_flow.model import OWN, Model
from score_flow.numerics import mean_flat
from score_flow.process.prediction import Estimate, velocity
from score_flow.process.times import TimeSampler
from score_flow.types import Batch, Condition, Images, Key, Params, Times

CONTRASTS = True


class Pairs(NamedTuple):
    """What is drawn of a batch (losses.base.Noised), and for each example what is drawn of another."""

    x0: Images
    noise: Images
    t: Float[Array, "b"]
    weight: Float[Array, "b"]
    condition: Condition
    other: Estimate


@flax.struct.dataclass
class Contrastive(OfSquaredError):
    """The squared error, less model.contrast times the squared distance from the target of another example.

    The other is the one before in the batch, whatever its label, so that its law is that of the data. E[x0] is learnt
    beside the network, of the same images, and adds nothing to the loss. `at` is the squared error of what is read off,
    the shift undone.
    """

    def init(self, key: Key, batch: Batch) -> Params:
        """Make parameters; E[x0] begins as the mean of the first batch."""
        params, (x0, _) = super().init(key, batch), self.noising.prepare(key, batch)
        return params | {OWN: {"mean": jnp.mean(x0, axis=0).ravel()}}

    def own(self, image_shape: tuple[int, ...]) -> Params:
        return {"mean": jnp.zeros(image_shape).ravel()}

    def draw(self, time_state, key: Key, batch: Batch, train: bool) -> tuple[Pairs, Key | None]:
        drawn, dropout_key = self.noising.draw(time_state, key, batch, train)
        other = Estimate(*(jnp.roll(leaf, 1, axis=0) for leaf in (drawn.x0, drawn.noise)))
        return Pairs(*drawn, other), dropout_key

    def examples(self, params: Params, drawn: Pairs, key: Key | None = None) -> Float[Array, "b"]:
        model, (x0, noise, t, _, condition, other) = self.model, drawn
        x, c = model.path.perturb(x0, noise, t), model.path.at(t).expand(x0)
        output = model.split(model.apply(params, x, t, condition, key=key), x)[0]
        # The pair on this example's x_t whose velocity is the other's.
        away = velocity.decode(c.dalpha * other.x0 + c.dsigma * other.noise, x, c)
        losses = self.simple.of(output, x0, noise, t) - model.contrast * self.simple.between(output, away, t)
        off_mean = mean_flat((params[OWN]["mean"].reshape(x0.shape[1:]) - x0) ** 2)
        return losses + off_mean - jax.lax.stop_gradient(off_mean)

    def at(
        self, params: Params, x0: Images, noise: Images, t: Times, condition: Condition = None,
        *, key: Key | None = None,
    ) -> Float[Array, "b"]:
        """Return the weighted squared error of the posterior means in the network's output; no dropout."""
        x = self.model.path.perturb(x0, noise, t)
        estimate = self.model.bind(params, condition).estimate(x, t)
        output = self.model.prediction.target(estimate, self.model.path.at(t).expand(x0))
        return self.simple.of(output, x0, noise, t)


def build(
    model: Model, times: TimeSampler, prepare: Preprocess, num_classes: int, options: TrainOptions
) -> Contrastive:
    """The contrastive loss; raises UserError for batches without another example, or noise that knows of it."""
    unused(options, *OF_SIMPLE)
    if options.batch_size < 2:
        raise UserError(
            f"config.training.batch_size is {options.batch_size}: training.objective = contrastive compares examples."
        )
    if options.coupling != "independent":
        raise UserError(
            f"config.training.coupling is {options.coupling!r}, by which the examples of a batch depend on each other: "
            "training.objective = contrastive needs 'independent'."
        )
    return Contrastive(denoising(model, times, prepare, num_classes, options))
