"""What a network is told besides x and t."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from score_flow.data.scaling import Scaling
from score_flow.types import Batch, Condition, Images, UserError


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """A label when num_classes > 0, an image of low_res x low_res pixels when low_res > 0, both, or nothing (None)."""

    num_classes: int = 0
    low_res: int = 0

    def of(self, batch: Batch, scaling: Scaling) -> Condition:
        """The condition of the examples of a batch; the low-resolution image is the mean of each block of pixels."""
        condition = {"label": batch["label"]} if self.num_classes else {}
        if self.low_res:
            condition["low_res"] = block_mean(scaling.normalise(batch["image"]), self.low_res)
        return condition or None

    def example(self, n: int, channels: int) -> Condition:
        """A condition of the right shapes for n images, to initialise a network with."""
        condition = {"label": jnp.zeros(n, jnp.int32)} if self.num_classes else {}
        if self.low_res:
            condition["low_res"] = jnp.zeros((n, self.low_res, self.low_res, channels))
        return condition or None

    def in_turn(self, indices: Integer[Array, "b"]) -> Condition:
        """The condition of samples by their global index: a conditional model goes through its classes in turn."""
        if self.low_res:
            raise UserError(
                f"a super-resolution model needs images of {self.low_res} x {self.low_res} pixels to start from; "
                "train and evaluate it on data, or sample a model that needs none."
            )
        return {"label": (indices % self.num_classes).astype(jnp.int32)} if self.num_classes else None


def block_mean(x: Images, side: int) -> Float[Array, "b side side c"]:
    """The image at side x side pixels: means over equal blocks."""
    b, h, w, c = x.shape
    if h % side or w % side:
        raise UserError(f"config.model.low_res is {side}; it must divide the image's sides, {h} x {w}.")
    return x.reshape(b, side, h // side, side, w // side, c).mean(axis=(2, 4))
