"""From a batch of a data set to what a model sees, inside the compiled step."""

import dataclasses
from collections.abc import Callable

import jax
from jaxtyping import Array

from score_flow.data.conditioning import Conditioning
from score_flow.data.levels import to_model
from score_flow.data.scaling import Scaling, random_flip
from score_flow.types import Batch, Condition, Images, Key

# (key, batch of levels or moments of latents) -> (x0, or the levels; condition)
Preprocess = Callable[[Key, Batch], tuple[Array, Condition]]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Scaling, mirroring and noise inside the level of each number; dequantised: whether that noise is added."""

    scaling: Scaling
    conditioning: Conditioning
    dequantised: bool
    flip: bool

    def __call__(self, key: Key, batch: Batch) -> tuple[Images, Condition]:
        """(x0, condition)."""
        noise_key, flip_key = jax.random.split(key)
        data, condition = self.levels(flip_key, batch)
        return to_model(self.scaling, self.dequantised, data, lambda law, shape: law(noise_key, shape)), condition

    def levels(self, key: Key, batch: Batch) -> tuple[Array, Condition]:
        """(the levels or moments, mirrored at random; their condition)."""
        image = batch["image"]
        if self.flip:
            image = random_flip(jax.random.split(key, image.shape[0]), image)
        return image, self.conditioning.of(batch | {"image": image}, self.scaling)
