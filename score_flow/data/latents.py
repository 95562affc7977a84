"""Latents of a data set's images as an autoencoder sees them, made by `--mode=encode`; never unpickled.

An example is the law of a latent, N(mean, std^2) for each of its numbers, and a fresh draw of it each time it is used:
what encoding the images anew in every epoch would give (Rombach et al. 2021, arXiv:2112.10752), for none of its cost.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Float16, Int, Int32

from score_flow.data import features, mapped
from score_flow.data.base import Examples
from score_flow.data.splits import Split

FACTS = "latents.json"


@dataclasses.dataclass(frozen=True, eq=False)
class LatentSource:
    """Moments of latents on disk, mapped into memory; `read` gives them side by side, (b, h, w, 2 c)."""

    name: str
    mean: Float[np.ndarray, "n h w c"]  # float32, or float16 as `--mode=pack` leaves them
    std: Float[np.ndarray, "n h w c"]
    label: Int32[np.ndarray, "n"] | None
    num_classes: int
    levels: int = 256  # of the images that they decode to
    classes: tuple[str, ...] = ()
    features: Float16[np.ndarray, "n p d"] | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.mean.shape[1:]

    def __len__(self) -> int:
        return len(self.mean)

    def read(self, indices: Int[np.ndarray, "b"]) -> Examples:
        moments = np.concatenate([self.mean[indices], self.std[indices]], axis=-1)
        examples = {"image": moments.astype(np.float32, copy=False)}
        return examples if self.label is None else examples | {"label": np.asarray(self.label[indices])}


def build(split: Split = "train", path: str = "") -> LatentSource:
    """The split of a folder that --mode=encode made, <path>/<split>/{mean,std,label,features}.npy; raises UserError."""
    with mapped.opened(path, split, FACTS, "latents", "encode") as (folder, facts):
        shape, num_classes = (facts["n"], *facts["latent_shape"]), facts["num_classes"]
        kind = "float16" if facts.get("dtype") == "float16" else "float32"
        wanted = dict.fromkeys(("mean", "std"), (shape, kind)) | features.wanted(facts.get("features"), facts["n"])
        found = mapped.arrays_in(folder, wanted, num_classes)
        rest = num_classes, 256, tuple(map(str, facts.get("classes") or ())), found.get("features")
        return LatentSource(str(facts["name"]), found["mean"], found["std"], found.get("label"), *rest)
