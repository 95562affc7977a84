"""Latents of a data set's images as an autoencoder sees them, made by `--mode=encode`; never unpickled.

An example is the law of a latent, N(mean, std^2) for each of its numbers, and a fresh draw of it each time it is used:
what encoding the images anew in every epoch would give (Rombach et al. 2021, arXiv:2112.10752), for none of its cost.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int, Int32

from score_flow.data.base import MAX_CLASSES, PATH, Examples
from score_flow.data.splits import Split
from score_flow.runs.files import existing_path, regular_file
from score_flow.types import UserError, one_line

FACTS = "latents.json"  # written last: a folder without it was not finished
FACTS_BYTES = 1 << 24
ARRAYS = ("mean", "std", "label")


@dataclasses.dataclass(frozen=True, eq=False)
class LatentSource:
    """Moments of latents on disk, mapped into memory; `read` gives them side by side, (b, h, w, 2 c)."""

    name: str
    mean: Float32[np.ndarray, "n h w c"]
    std: Float32[np.ndarray, "n h w c"]
    label: Int32[np.ndarray, "n"] | None
    num_classes: int
    levels: int = 256  # of the images that they decode to
    classes: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.mean.shape[1:]

    def __len__(self) -> int:
        return len(self.mean)

    def read(self, indices: Int[np.ndarray, "b"]) -> Examples:
        examples = {"image": np.concatenate([self.mean[indices], self.std[indices]], axis=-1)}
        return examples if self.label is None else examples | {"label": np.asarray(self.label[indices])}


def build(split: Split = "train", path: str = "") -> LatentSource:
    """The split of a folder that `--mode=encode` made, <path>/<split>/{mean,std,label}.npy; raises UserError."""
    folder = existing_path(path, PATH) / split
    if not (folder / FACTS).exists():
        raise UserError(f"{PATH}: {folder} holds no {FACTS}: make it by --mode=encode, or let that finish.")
    if regular_file(folder / FACTS, PATH).stat().st_size > FACTS_BYTES:
        raise UserError(f"{folder / FACTS}: larger than {FACTS_BYTES} bytes; make it by --mode=encode.")
    try:
        facts = json.loads((folder / FACTS).read_text())
        found = {
            name: np.load(regular_file(folder / f"{name}.npy", PATH), mmap_mode="r", allow_pickle=False)
            for name in ARRAYS
            if name != "label" or facts["num_classes"]
        }
        _check(folder, found, facts)
        rest = facts["num_classes"], 256, tuple(map(str, facts.get("classes") or ()))
        return LatentSource(str(facts["name"]), found["mean"], found["std"], found.get("label"), *rest)
    except UserError:
        raise
    except Exception as error:  # hostile bytes raise almost anything
        raise UserError(f"{folder}: cannot be read as latents ({one_line(error)}).") from error


def _check(folder: Path, found: dict[str, np.ndarray], facts: dict) -> None:
    classes = facts["num_classes"]
    if type(classes) is not int or not 0 <= classes < MAX_CLASSES:
        raise UserError(f"{folder / FACTS}: got num_classes = {classes}; allowed: 0 to {MAX_CLASSES - 1}.")
    shape = (facts["n"], *facts["latent_shape"])
    wanted = {"mean": (shape, "float32"), "std": (shape, "float32"), "label": (shape[:1], "int32")}
    for name, array in found.items():
        got = (array.shape, array.dtype.name)
        if got != wanted[name]:
            raise UserError(
                f"{folder / name}.npy holds {got[1]} of shape {got[0]}; allowed: {wanted[name][1]} {wanted[name][0]}"
            )
    label = found.get("label")
    if label is not None and label.size and not 0 <= label.min() <= label.max() < classes:
        allowed = f"0 to {classes - 1}, as {FACTS} says"
        raise UserError(f"{folder / 'label.npy'}: labels run from {label.min()} to {label.max()}; allowed: {allowed}")
