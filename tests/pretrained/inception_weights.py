"""InceptionV3 with the weights that a golden folder describes: drawn, for nobody may pass the published ones on."""

import json
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import PyTree

from score_flow.pretrained import inception
from score_flow.pretrained.base import as_dtype


@cache
def drawn(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor under its published name; the description's checks hold."""
    tensors = {}
    for entry in json.loads((folder / "weights.json").read_text())["keys"]:
        if entry["kind"] == "counter":
            tensors[entry["key"]] = np.zeros((), np.int64)
            continue
        noise = np.random.RandomState(entry["seed"]).standard_normal(entry["shape"])
        noise = np.abs(noise) if entry["kind"] == "bn_var" else noise
        w = (entry["offset"] + entry["scale"] * noise).astype(np.float32)
        if "sum64" in entry:
            rounding = 1e-15 * np.abs(w).sum(dtype=np.float64)
            assert w.ravel()[0] == np.float32(entry["first"])
            assert abs(w.sum(dtype=np.float64) - entry["sum64"]) <= rounding
        tensors[entry["key"]] = w
    return tensors


@cache
def params_of(folder: Path, dtype: str) -> PyTree:
    """The same as parameters of ours."""
    return as_dtype(inception.params_of(drawn(folder)), dtype)
