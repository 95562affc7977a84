"""Features of numbered images, as they stream by: float64 moments of all, and the features of some."""

import dataclasses
import functools
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int

from evaluation.metrics.frechet import Moments
from score_flow.data.base import shuffled
from score_flow.errors import UserError

State = dict[str, Any]  # {"moments": Moments, "features": (k, d)}


@dataclasses.dataclass(frozen=True)
class Collector:
    """Collects d features of each of n images into a state of fixed shapes.

    What is kept depends on the numbers of the images alone: all features, or those of `limit` images that a fixed
    permutation picks. They stand in the order of the numbers, however the images arrive.
    """

    n: int
    n_features: int
    limit: int

    @functools.cached_property
    def kept(self) -> Int[np.ndarray, "k"]:
        """The numbers of the images whose features are kept, ascending."""
        return np.sort(shuffled(self.n)[: self.limit])

    def init(self) -> State:
        """Return the state before any image."""
        features = np.zeros((min(self.n, self.limit), self.n_features), np.float32)
        return {"moments": Moments.empty(self.n_features), "features": features}

    def add(self, state: State, indices: Int[np.ndarray, "b"], pool: Float32[np.ndarray, "b d"]) -> State:
        """Return the state with the features of images of these numbers, each of which comes once."""
        features, wanted = state["features"].copy(), np.isin(indices, self.kept)
        features[np.searchsorted(self.kept, indices[wanted])] = pool[wanted]
        return {"moments": state["moments"].merge(Moments.of(pool)), "features": features}

    def gaussian(self, state: State) -> tuple[Float64[np.ndarray, "d"], Float64[np.ndarray, "d d"]]:
        """Compute mean and covariance of the features of all n images; raises UserError unless each came once."""
        count = int(state["moments"].count)
        if count != self.n:
            raise UserError(
                f"features of {count} images were collected where there are {self.n}: what was interrupted went on in "
                "other batches (eval.batch_size); give another --eval_folder."
            )
        return state["moments"].gaussian()
