"""What an encoder makes of the patches of a data set's images, stored beside these by `--mode=encode`."""

import dataclasses
import hashlib
from typing import Any

import numpy as np
from jaxtyping import Float16, Int

from score_flow.data.base import FIRST, Examples, Source
from score_flow.errors import UserError

FEATURES = "features"  # of an example: float16 (patches, channels), row by row of the image


@dataclasses.dataclass(frozen=True, eq=False)
class WithFeatures:
    """A source whose examples have their features too."""

    whole: Source

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)

    def __len__(self) -> int:
        return len(self.whole)

    def read(self, indices: Int[np.ndarray, "b"]) -> Examples:
        return self.whole.read(indices) | {FEATURES: self.whole.features[indices]}


def features_of(source: Source) -> Float16[np.ndarray, "n p d"]:
    """Return the features of a source, in the order of its images; raises UserError where it has none."""
    features = getattr(source, FEATURES, None)
    if features is None:
        raise UserError(
            f"config.training.alignment needs features of the images, and {source.name} has none: make them by "
            "--mode=encode with --config.eval.encoder=FILE."
        )
    return features


def digest(source: Source) -> str:
    """Name the features by their content: sha256 over their shape and those of the first FIRST images."""
    features = features_of(source)
    found = hashlib.sha256(repr(features.shape).encode())
    found.update(np.ascontiguousarray(features[:FIRST]).tobytes())
    return found.hexdigest()[:16]


def wanted(described: dict[str, Any] | None, n: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and dtype of the file of features, as data.mapped takes them, by what a folder's facts say of it."""
    if not described:
        return {}
    return {FEATURES: ((n, described["patches"], described["channels"]), "float16")}
