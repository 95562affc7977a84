"""Training of a classifier of noisy images, which guides the sampling of other models."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, PyTree

from score_flow.model import Model
from score_flow.objective import Aux, weighted
from score_flow.times import TimeSampler
from score_flow.types import Condition, Images, Key, Params, Times

Labels = Integer[Array, "b"]


@dataclasses.dataclass(frozen=True)
class Classification:
    """E_t [-log p(label | x_t)] with t from a time sampler (Song et al. 2021, app. I.1, arXiv:2011.13456).

    What training asks of an Objective, except that condition["label"] is the target: the network is not told it. The
    model's network gives logits, (b, classes), and its prediction means nothing.
    """

    model: Model
    times: TimeSampler

    def __call__(
        self,
        params: Params,
        time_state: PyTree,
        key: Key,
        x0: Images,
        condition: Condition = None,
        *,
        train: bool = True,
    ) -> tuple[Float[Array, ""], Aux]:
        """The mean loss of a batch, in nats. The key decides times, noise and dropout; train=False: no dropout."""
        time_key, noise_key, dropout_key = jax.random.split(key, 3)
        t, importance = self.times.sample(time_state, time_key, x0.shape[0])
        noise = jax.random.normal(noise_key, x0.shape, x0.dtype)
        losses = self.at(params, x0, noise, t, condition, key=dropout_key if train else None)
        return weighted(losses, importance, t, self.times, time_state)

    def at(
        self,
        params: Params,
        x0: Images,
        noise: Images,
        t: Times,
        condition: Condition = None,
        *,
        key: Key | None = None,
    ) -> Float[Array, "b"]:
        """The loss of each example at given times and noise."""
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
