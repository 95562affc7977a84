"""From a batch of a data set to what a model sees, inside the compiled step."""

import dataclasses
from collections.abc import Callable

import jax
from jaxtyping import Array

from score_flow.data import augmentation
from score_flow.data.conditioning import Conditioning
from score_flow.data.levels import to_model
from score_flow.data.scaling import Scaling, random_flip
from score_flow.types import Batch, Condition, Images, Key

CROP, AUGMENT = 1, 2  # what their keys are folded with: those of noise and mirroring stay what they were
# (key, batch of levels or moments of latents) -> (x0, or the levels; condition)
Preprocess = Callable[[Key, Batch], tuple[Array, Condition]]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Scaling, mirroring and noise inside the level of each number; dequantised: whether that noise is added.

    crop: pixels of random crops; augment: the probability of EDM's augmentations, whose labels join the condition.
    """

    scaling: Scaling
    conditioning: Conditioning
    dequantised: bool
    flip: bool
    crop: int = 0
    augment: float = 0.0

    def __call__(self, key: Key, batch: Batch) -> tuple[Images, Condition]:
        """(x0, condition)."""
        noise_key, flip_key = jax.random.split(key)
        data, condition = self.levels(flip_key, batch)
        x0 = to_model(self.scaling, self.dequantised, data, lambda law, shape: law(noise_key, shape))
        if not self.augment:
            return x0, condition
        keys = jax.random.split(jax.random.fold_in(key, AUGMENT), len(x0))
        x0, labels = augmentation.augment(keys, x0, self.augment)
        return x0, (condition or {}) | {"augment": labels}

    @property
    def plain(self) -> "Preprocessing":
        """What a loss that is not trained sees: images as they are, mirrored at most."""
        return dataclasses.replace(self, crop=0, augment=0.0)

    def levels(self, key: Key, batch: Batch) -> tuple[Array, Condition]:
        """(the levels or moments, mirrored at random; their condition)."""
        image = batch["image"]
        if self.flip:
            image = random_flip(jax.random.split(key, image.shape[0]), image)
        if self.crop:
            keys = jax.random.split(jax.random.fold_in(key, CROP), len(image))
            image = augmentation.random_crop(keys, image, self.crop)
        return image, self.conditioning.of(batch | {"image": image}, self.scaling)
