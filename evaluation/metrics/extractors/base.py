"""What an extractor is: a function of images, with its parameters, that a compiled program takes as an argument."""

import abc
from collections.abc import Mapping
from typing import Annotated, ClassVar, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt8

from score_flow.config.hints import Given
from score_flow.errors import UserError
from score_flow.tree import static

LevelsGiven = Annotated[int, Given("the pixel levels of the data")]


class Features(NamedTuple):
    """What an extractor makes of images: features of each, and the logits of a classifier where there is one.

    more: further features (b, d'), of which a distance alone is made, by the name of that distance.
    """

    pool: Float32[Array, "b d"]
    logits: Float32[Array, "b k"] | None = None
    more: dict[str, Float32[Array, "b _"]] | None = None

    def arrays(self) -> dict[str, Array]:
        """Return all that are there, by name."""
        logits = {} if self.logits is None else {"logits": self.logits}
        return {"pool": self.pool} | logits | (self.more or {})


class Names(NamedTuple):
    """What figures are called after the features that they are made of, and the distance as people say it."""

    distance: str
    score: str
    said: str


INCEPTION = Names("fid", "inception_score", "FID")
DINOV2 = Names("fd_dinov2", "dinov2_score", "FD-DINOv2")
OTHER = Names("frechet_distance", "classifier_score", "Fréchet distance")
NAMES = (INCEPTION, DINOV2, OTHER)


class Extractor(flax.struct.PyTreeNode, abc.ABC):
    """A tree whose leaves are its parameters: an argument of what is compiled, none of its constants.

    Attributes:
        name: what the features are, to be put beside every number made of them.
        n_features: their dimension d.
        names: what figures of them are called; FID is said of Inception's alone.
        more: by the name of each further distance, what its features are, and their dimension.
    """

    name: str = static()
    n_features: int = static()
    names: ClassVar[Names] = OTHER

    @property
    def more(self) -> Mapping[str, tuple[str, int]]:
        return {}

    def features(self, images: UInt8[Array, "b h w c"]) -> Features:
        """Compute features of a batch, inside a compiled program; float32 whatever the backend prefers."""
        with jax.default_matmul_precision("highest"):
            return self(images)

    @abc.abstractmethod
    def __call__(self, images: UInt8[Array, "b h w c"]) -> Features:
        """Compute features of pixel levels as the data set has them; each image's depend on that image alone."""


def colours(images: UInt8[Array, "b h w c"], levels: int, name: str) -> Float32[Array, "b h w 3"]:
    """Scale levels to 0 .. 255 and repeat grey to three channels; raises UserError, which begins with `name`."""
    if images.shape[-1] not in (1, 3):
        raise UserError(f"{name}: images have {images.shape[-1]} channels; allowed: 1 (grey), 3")
    x = images.astype(jnp.float32) * (255 / (levels - 1))
    return jnp.broadcast_to(x, (*x.shape[:-1], 3))
