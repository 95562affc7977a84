"""What training minimises: the protocol of a loss, and the pieces that losses are made of.

A loss is a file of score_flow/losses/ that exports `build`; config.training.objective names it.
"""

import abc
import dataclasses
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from score_flow.config.options import TrainOptions
from score_flow.data.preprocessing import Preprocess
from score_flow.errors import UserError
from score_flow.losses.coupling import optimal
from score_flow.model import OWN, Model
from score_flow.process.times import TimeSampler
from score_flow.types import Batch, Condition, Images, Key, Params, Times

Coupling = Literal["independent", "ot"]
Product = Literal["denoiser", "classifier", "dequantiser"]
OF_SIMPLE = ("second_order", "cosine")  # options of config.training that are terms of objective = simple alone
OF_WEIGHTINGS = ("min_snr_gamma", "velocity_clip")  # options of config.training that are of some weightings alone


class Aux(NamedTuple):
    """What a loss says besides its value: per-example losses (importance weights included) at their times."""

    losses: Float[Array, "b"]
    t: Float[Array, "b"]
    time_state: PyTree


@runtime_checkable
class Loss(Protocol):
    """What training minimises, a tree: weights that it holds fixed are its leaves, the rest is static.

    Compiled functions take it as an argument, so that its weights are none of their constants. network: whose
    parameters are trained. produces: what the trained network is good for.
    """

    produces: Product

    @property
    def times(self) -> TimeSampler: ...

    @property
    def network(self) -> nn.Module: ...

    def init(self, key: Key, batch: Batch) -> Params:
        """Make parameters to begin with; batch: the first of training, of which most losses look at the shapes only."""
        ...

    def __call__(
        self, params: Params, time_state: PyTree, key: Key, batch: Batch, *, train: bool = True
    ) -> tuple[Float[Array, ""], Aux]:
        """Return the mean loss of a batch of pixel levels; the key decides what is random. train=False: no dropout."""
        ...


def unused(options: TrainOptions, *names: str, by: str = "") -> None:
    """Raise UserError unless options that would not be heeded have their defaults; by: what has no use for them."""
    for name in names:
        value, default = getattr(options, name), getattr(TrainOptions, name)
        if value != default:
            by = by or f"training.objective = {options.objective}"
            raise UserError(f"config.training.{name} is {value!r}, which {by} has no use for: leave it at {default!r}.")


def keys_of(key: Key, train: bool) -> tuple[Key, Key]:
    """(the key of the data, the key of the loss). Without training both are the key, as in every logged test loss."""
    return tuple(jax.random.split(key)) if train else (key, key)


def initial(model: Model, prepare: Preprocess, key: Key, batch: Batch) -> Params:
    """Make parameters of a model's network for one example of a batch, whose shapes alone are looked at."""
    x0, condition = jax.eval_shape(prepare, key, batch)
    one = jax.tree.map(lambda leaf: jnp.zeros((1, *leaf.shape[1:]), leaf.dtype), condition)
    return model.init(key, (1, *x0.shape[1:]), one)


def beside(loss: Loss, image_shape: tuple[int, ...]) -> Params:
    """Return what a loss has learnt beside the network, by its name in the parameters of a run, as it begins."""
    own = loss.own(image_shape) if isinstance(loss, OfNoisyImages) else {}
    return {OWN: own} if own else {}


class ByExample(abc.ABC):
    """A loss that is a weighted mean over examples: drawn of a batch at once, then of each example alone.

    So it may be computed in slices of the batch (config.training.microbatches). What `draw` returns is a tree of arrays
    with the batch's axis first, among them `t`, the times, and `weight`, of each loss in the mean.
    """

    @property
    @abc.abstractmethod
    def times(self) -> TimeSampler: ...

    @abc.abstractmethod
    def draw(self, time_state: PyTree, key: Key, batch: Batch, train: bool) -> tuple[PyTree, Key | None]:
        """Return what the key decides of a batch, all but dropout, and the key of that: None without training."""

    @abc.abstractmethod
    def examples(self, params: Params, drawn: PyTree, key: Key | None = None) -> Float[Array, "b"]:
        """Return the loss of each example of what was drawn, or of a part of it, not weighted; a key: dropout's."""

    def value(self, time_state: PyTree, drawn: PyTree, losses: Float[Array, "b"]) -> tuple[Float[Array, ""], Aux]:
        """Return the mean of a batch by the losses of all its examples; times are learnt from these without weights."""
        time_state = self.times.update(time_state, drawn.t, jax.lax.stop_gradient(losses))
        losses = drawn.weight * losses
        return jnp.mean(losses), Aux(losses, drawn.t, time_state)

    def __call__(
        self, params: Params, time_state: PyTree, key: Key, batch: Batch, *, train: bool = True
    ) -> tuple[Float[Array, ""], Aux]:
        drawn, dropout_key = self.draw(time_state, key, batch, train)
        return self.value(time_state, drawn, self.examples(params, drawn, dropout_key))


class Noised(NamedTuple):
    """What x_t is made of, and the importance weight of t."""

    x0: Images
    noise: Images
    t: Float[Array, "b"]
    weight: Float[Array, "b"]
    condition: Condition


@dataclasses.dataclass(frozen=True)
class Noising:
    """Which noisy images a loss looks at: those of a batch, at times from a time sampler.

    label_dropout: probability of replacing a label by the null class `null_label` (arXiv:2207.12598), in training.
    coupling: "independent" noise, or "ot": the batch's noise goes to its images by optimal transport. The velocity then
        still is that of a flow from noise to data, but -E[noise | x_t]/sigma no longer the score: samplers of the flow
        and its likelihood are right, those with noise are not. Labels are not looked at.
    """

    prepare: Preprocess
    times: TimeSampler
    label_dropout: float = 0.0
    null_label: int = 0
    coupling: Coupling = "independent"

    def draw(self, time_state: PyTree, key: Key, batch: Batch, train: bool) -> tuple[Noised, Key | None]:
        """Draw times, noise, dropped labels and what preprocessing draws; and the key of dropout, None without it."""
        data_key, loss_key = keys_of(key, train)
        prepare = self.prepare if train else getattr(self.prepare, "plain", self.prepare)
        x0, condition = prepare(data_key, batch)
        time_key, noise_key, dropout_key, label_key = jax.random.split(loss_key, 4)
        t, weight = self.times.sample(time_state, time_key, x0.shape[0])
        noise = jax.random.normal(noise_key, x0.shape, x0.dtype)
        if self.coupling == "ot":
            noise = optimal(x0, noise)
        if train and self.label_dropout and condition:
            dropped = jax.random.bernoulli(label_key, self.label_dropout, condition["label"].shape)
            condition = condition | {"label": jnp.where(dropped, self.null_label, condition["label"])}
        return Noised(x0, noise, t, weight, condition), dropout_key if train else None


class OfNoisyImages(ByExample):
    """What losses of noisy images share: `at` is one of each at given times and noise, the loss the mean of a batch."""

    model: Model
    noising: Noising

    @property
    def times(self) -> TimeSampler:
        return self.noising.times

    @property
    def network(self) -> nn.Module:
        return self.model.network

    def init(self, key: Key, batch: Batch) -> Params:
        params = initial(self.model, self.noising.prepare, key, batch)
        x0 = jax.eval_shape(self.noising.prepare, key, batch)[0]
        return params | beside(self, x0.shape[1:])

    def own(self, image_shape: tuple[int, ...]) -> Params:
        """Return the parameters that the loss learns beside the network's, as they begin; most have none."""
        return {}

    def draw(self, time_state: PyTree, key: Key, batch: Batch, train: bool) -> tuple[Noised, Key | None]:
        return self.noising.draw(time_state, key, batch, train)

    def examples(self, params: Params, drawn: Noised, key: Key | None = None) -> Float[Array, "b"]:
        return self.at(params, drawn.x0, drawn.noise, drawn.t, drawn.condition, key=key)

    @abc.abstractmethod
    def at(
        self, params: Params, x0: Images, noise: Images, t: Times, condition: Condition = None,
        *, key: Key | None = None,
    ) -> Float[Array, "b"]:
        """Return the loss of each example; one network call. A key turns dropout on."""


def noising_of(options: TrainOptions, times: TimeSampler, prepare: Preprocess, num_classes: int) -> Noising:
    """Return what config.training says of noisy images, whose network is told so many classes."""
    if options.label_dropout and not num_classes:
        raise UserError(
            f"config.training.label_dropout is {options.label_dropout}, but config.model.class_conditional is False: "
            "there are no labels to hide."
        )
    return Noising(prepare, times, options.label_dropout, num_classes, options.coupling)
