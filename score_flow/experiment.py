"""The objects of a run: what a config decides, built. Data only: build.py makes them."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import optax
from jax.sharding import Mesh
from jaxtyping import Array

from score_flow.data.base import Source, counts, facts
from score_flow.data.conditioning import Conditioning
from score_flow.data.features import FEATURES, WithFeatures, digest
from score_flow.data.levels import Pixels, by_key, to_model
from score_flow.data.scaling import Scaling
from score_flow.losses.base import Loss, beside
from score_flow.model import Model
from score_flow.types import Batch, Condition, Images, Key, Keys, Params


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config decides, built: shared by training, sampling and evaluation."""

    model: Model
    loss: Loss
    optimiser: optax.GradientTransformation
    open_source: Callable[[str], Source]  # the data set's split; opened when first needed
    open_pixels: Callable[[], Pixels]  # from samples to pixel levels; an autoencoder is read when first needed
    image_shape: tuple[int, int, int]
    scaling: Scaling
    conditioning: Conditioning
    dequantised: bool  # whether the model's data have noise inside their level
    mesh: Mesh
    seed: int
    latent: bool = False  # whether the model makes latents instead of pixels
    autoencoder: str = ""  # ... the folder of what decodes them
    remembered: Mapping[str, Any] | None = dataclasses.field(default=None, compare=False)  # facts of its training data

    @property
    def real(self) -> bool:
        """Whether the data are real numbers of a range, without levels."""
        return bool(self.scaling.range)

    @functools.cached_property
    def train_source(self) -> Source:
        return self.open_source("train")

    @functools.cached_property
    def examples(self) -> Source:
        """What training reads: the training data, with the features that its loss looks at."""
        return WithFeatures(self.train_source) if self.aligns else self.train_source

    @property
    def aligns(self) -> bool:
        """Whether the loss looks at features that are stored beside the data."""
        return getattr(self.loss, "aligns", False)

    @functools.cached_property
    def test_source(self) -> Source:
        return self.open_source("test")

    @functools.cached_property
    def data_facts(self) -> dict[str, Any]:
        """What tells the training data from others (data.base.facts), kept in every checkpoint."""
        features = {FEATURES: digest(self.train_source)} if self.aligns else {}
        return facts(self.train_source) | {"labelled": self.conditioning.num_classes > 0} | features

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:
        """Those of the training images: as the run remembers them, else as the data set says; () without any."""
        return tuple((self.remembered or {}).get("classes") or getattr(self.train_source, "classes", ()))

    @functools.cached_property
    def class_counts(self) -> list[int] | None:
        """Training images of each class, by the same; None where that would take reading them all."""
        return (self.remembered or {}).get("counts") or counts(self.train_source)

    @functools.cached_property
    def pixels(self) -> Pixels:
        """From samples to pixel levels; raises UserError without the autoencoder of latents."""
        return self.open_pixels()

    @functools.cached_property
    def pixel_shape(self) -> tuple[int, int, int]:
        """Of a sample's pixels."""
        return self.pixels.shape(self.image_shape)

    def to_model(self, data: Array, keys: Keys) -> Images:
        """x0 of pixel levels or of moments of latents, the noise of each example by its own key."""
        return to_model(self.scaling, self.dequantised, data, by_key(keys))

    def init(self, key: Key) -> Params:
        """Make parameters for one image."""
        params = self.model.init(key, (1, *self.image_shape), self.example_condition(1))
        return params | beside(self.loss, self.image_shape)

    def condition(self, batch: Batch) -> Condition:
        """Return what the network is told about the examples of a batch."""
        return self.conditioning.of(batch, self.scaling)

    def example_condition(self, n: int) -> Condition:
        """Return a condition of the right shapes for n images."""
        return self.conditioning.example(n, self.image_shape[-1])
