"""What a network is told besides x and t."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from score_flow.data.scaling import Scaling
from score_flow.errors import UserError
from score_flow.types import Batch, Condition, Images


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """A label when num_classes > 0, an image of low_res x low_res pixels when low_res > 0, both, or nothing (None)."""

    num_classes: int = 0
    low_res: int = 0

    def of(self, batch: Batch, scaling: Scaling) -> Condition:
        """Return the condition of a batch's examples; the low-resolution image is the mean of each block of pixels."""
        condition = {"label": batch["label"]} if self.num_classes else {}
        if self.low_res:
            condition["low_res"] = block_mean(scaling.normalise(batch["image"]), self.low_res)
        return condition or None

    def example(self, n: int, channels: int) -> Condition:
        """Return a condition of the right shapes for n images, to initialise a network with."""
        condition = {"label": jnp.zeros(n, jnp.int32)} if self.num_classes else {}
        if self.low_res:
            condition["low_res"] = jnp.zeros((n, self.low_res, self.low_res, channels))
        return condition or None

    def in_turn(self, indices: Integer[Array, "b"], base: Batch | None = None) -> Condition:
        """Return the condition of samples by their global index: a conditional model goes through its classes in turn.

        A super-resolution model goes through the images of a base model, {"low_res": (n, h, w, c)} in the model's
        range, and takes its {"label": (n,)} with them, if there are any.
        """
        if self.low_res and base is None:
            raise UserError(
                f"a super-resolution model needs images of {self.low_res} x {self.low_res} pixels to start from: "
                "give config.eval.low_res, such as the samples.npz of a base model."
            )
        given = {name: value[indices % len(value)] for name, value in (base or {}).items()}
        labels = {"label": (indices % self.num_classes).astype(jnp.int32)} if self.num_classes else {}
        return (labels | given) or None


def block_mean(x: Images, side: int) -> Float[Array, "b side side c"]:
    """Return the image at side x side pixels: means over equal blocks."""
    b, h, w, c = x.shape
    if h % side or w % side:
        raise UserError(f"config.model.low_res is {side}; it must divide the image's sides, {h} x {w}.")
    return x.reshape(b, side, h // side, side, w // side, c).mean(axis=(2, 4))
