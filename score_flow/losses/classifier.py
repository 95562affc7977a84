"""training.objective = classifier: of noisy images, which guides the sampling of other models."""

from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from score_flow.config.options import TrainOptions
from score_flow.data.preprocessing import Preprocess
from score_flow.errors import UserError
from score_flow.losses.base import OF_SIMPLE, OF_WEIGHTINGS, Noising, OfNoisyImages, Product, unused
from score_flow.model import Model
from score_flow.process.times import TimeSampler
from score_flow.tree import static
from score_flow.types import Batch, Condition, Images, Key, Params, Times

PRODUCES: Product = "classifier"
Labels = Integer[Array, "b"]


@flax.struct.dataclass
class Classification(OfNoisyImages):
    """E_t [-log p(label | x_t)] in nats, t from a time sampler (Song et al. 2021, app. I.1, arXiv:2011.13456).

    condition["label"] is the target: the network is not told it. The model's network gives logits, (b, classes), and
    its prediction means nothing.
    """

    model: Model = static()
    noising: Noising = static()

    produces: ClassVar[Product] = PRODUCES

    def init(self, key: Key, batch: Batch) -> Params:
        x0, _ = jax.eval_shape(self.noising.prepare, key, batch)
        return self.model.init(key, (1, *x0.shape[1:]))

    def at(
        self, params: Params, x0: Images, noise: Images, t: Times, condition: Condition = None,
        *, key: Key | None = None,
    ) -> Float[Array, "b"]:
        """Return the loss of each example at given times and noise."""
        x = self.model.path.perturb(x0, noise, t)
        return -_chosen(self.log_probs(params, x, t, key=key), condition["label"])

    def log_prob(self, params: Params, x: Images, t: Times, label: Labels) -> Float[Array, "b"]:
        """log p(label | x_t) in nats, whose gradient in x guides samples."""
        return _chosen(self.log_probs(params, x, t), label)

    def log_probs(self, params: Params, x: Images, t: Times, *, key: Key | None = None) -> Float[Array, "b classes"]:
        """log p(label | x_t) of every label."""
        return jax.nn.log_softmax(self.model.apply(params, x, t, key=key))


def _chosen(log_probs: Float[Array, "b classes"], label: Labels) -> Float[Array, "b"]:
    return jnp.take_along_axis(log_probs, label[:, None], axis=1)[:, 0]


def build(
    model: Model, times: TimeSampler, prepare: Preprocess, class_conditional: bool, options: TrainOptions
) -> Classification:
    """The cross-entropy of labels; raises UserError for what only models of images have."""
    unused(options, "contrast", "coupling", "label_dropout", "likelihood_weighting", *OF_WEIGHTINGS)
    unused(options, "vlb_weight", "decoder", *OF_SIMPLE)
    if class_conditional:
        raise UserError("config.model.class_conditional is True; training.objective = classifier is told no label.")
    return Classification(model, Noising(prepare, times))
