"""What an extractor is: a function of images, with its parameters, that a compiled program takes as an argument."""

import abc
from typing import ClassVar, NamedTuple

import flax.struct
import jax
from jaxtyping import Array, Float32, UInt8

from score_flow.tree import static


class Features(NamedTuple):
    """What an extractor makes of images: features of each, and the logits of a classifier where there is one."""

    pool: Float32[Array, "b d"]
    logits: Float32[Array, "b k"] | None = None


class Extractor(flax.struct.PyTreeNode, abc.ABC):
    """A tree whose leaves are its parameters: an argument of what is compiled, none of its constants.

    Attributes:
        name: what the features are, to be put beside every number made of them.
        n_features: their dimension d.
        inception: whether they are those that a FID is defined by.
    """

    name: str = static()
    n_features: int = static()
    inception: ClassVar[bool] = False

    def features(self, images: UInt8[Array, "b h w c"]) -> Features:
        """Compute features of a batch, inside a compiled program; float32 whatever the backend prefers."""
        with jax.default_matmul_precision("highest"):
            return self(images)

    @abc.abstractmethod
    def __call__(self, images: UInt8[Array, "b h w c"]) -> Features:
        """Compute features of pixel levels as the data set has them; each image's depend on that image alone."""
