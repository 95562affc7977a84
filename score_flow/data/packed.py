"""A packed data set: the images of any other at the size of training, in one memory map that `--mode=pack` wrote."""

from typing import Any

import numpy as np

from score_flow.data import features, mapped
from score_flow.data.base import FIRST, ArraySource, Source, checksum
from score_flow.data.splits import Split
from score_flow.errors import UserError

FACTS = "packed.json"
# What is kept of a source as it is, and what stands for it where it has none.
KEPT = {"levels": 256, "num_classes": 0, "range": (), "test_share": None, "decoding": {}, "unlabelled": ""}


def build(split: Split = "train", path: str = "") -> ArraySource:
    """The split of a folder that `--mode=pack` made, <path>/<split>/{image,label,features}.npy: what its source was.

    A run that was trained on that source goes on with it. Raises UserError.
    """
    with mapped.opened(path, split, FACTS, "a packed data set", "pack") as (folder, facts):
        shape = (facts["n"], *facts["image_shape"])
        kind = "float32" if facts["range"] else "uint8"
        wanted = {"image": (shape, kind)} | features.wanted(facts.get("features"), facts["n"])
        found = mapped.arrays_in(folder, wanted, facts["num_classes"])
        label = np.array(found["label"]) if "label" in found else None
        rest = {name: facts[name] for name in KEPT} | {"range": tuple(facts["range"] or ())}
        lists = {name: tuple(map(str, facts[name])) for name in ("classes", "notes")}
        rest |= lists | {"features": found.get("features")}
        source = ArraySource(str(facts["name"]), found["image"], label, **rest)
        if checksum(source, FIRST) != facts["first"]:
            raise UserError(f"{folder / 'image.npy'} is not what --mode=pack wrote: make it again.")
        return source


def described(source: Source) -> dict[str, Any]:
    """Return what a packed copy has to know of its source, ready for JSON."""
    lists = {name: list(getattr(source, name, ())) for name in ("classes", "notes")}
    rest = {name: getattr(source, name, default) for name, default in KEPT.items()}
    rest |= {"range": list(rest["range"]) or None, "decoding": dict(rest["decoding"])}
    about = {"name": source.name, "n": len(source), "image_shape": [int(side) for side in source.image_shape]}
    return about | {"first": checksum(source, FIRST)} | rest | lists
