"""`--mode=pack`: a data set's images at the size of training in one memory map, which big data sets train from."""

import math
from pathlib import Path

import numpy as np

from evaluation.modes.converting import convert, is_made, refuse_store
from score_flow.config.options import Config
from score_flow.data import latents
from score_flow.data.base import FIRST, Source, checksum
from score_flow.data.latents import LatentSource
from score_flow.data.packed import FACTS, described
from score_flow.errors import UserError
from score_flow.experiment import Experiment
from score_flow.runs import files
from score_flow.runs.places import Place, local, place_of
from score_flow.runs.processes import barrier, is_main
from score_flow.runs.workdir import held

ROUND, ROUNDS = 1 << 26, 100  # bytes at most that a round writes, and how many rounds a small data set has
KEYS = ("first", "n", "decoding")


def pack(run: Experiment, config: Config, workdir: Place) -> None:
    """Write the images and labels of both splits to workdir/{train,test}/; resumable, what is done stays.

    Latents are written in half precision, for data.source.name = latents. Raises UserError for what is packed already,
    and where the disk has no place; Preempted after SIGTERM.
    """
    refuse_store(workdir, "pack")
    if config.data.source.name == "packed":
        raise UserError("--mode=pack: config.data.source.name is packed, which is packed already.")
    with held(workdir, "packing"):
        for split in ("train", "test"):
            source, target = run.open_source(split), workdir / split
            if isinstance(source, LatentSource):
                halve(source, local(place_of(config.data.source.arguments["path"])) / split, target)
                continue
            facts = described(source)
            if not is_made(facts, target, FACTS, KEYS, "a copy of other data"):
                pack_split(source, target, facts)
            if is_main():
                print(f"packed: {target}: {len(source)} images {source.name}", flush=True)


def halve(source: LatentSource, folder: Path, target: Path) -> None:
    """Write the latents of a folder in half precision; raises UserError where they are already."""
    facts = (files.json_at(folder / latents.FACTS) or {}) | {"dtype": "float16", "first": checksum(source, FIRST)}
    facts = {"features": None} | facts
    if source.mean.dtype == np.float16:
        raise UserError(f"--mode=pack: {folder} holds latents in half precision, which are packed already.")
    keys = ("first", "n", "dtype", "features")
    if not is_made(facts, target, latents.FACTS, keys, "a copy of other latents"):
        beside = {"label": source.label, "features": source.features}
        arrays = {"mean": source.mean, "std": source.std}
        arrays |= {name: array for name, array in beside.items() if array is not None}
        needed = source.mean.nbytes + (0 if source.features is None else source.features.nbytes)
        _refuse_full(target, needed)

        def make(indices):
            return {
                name: np.array(array[indices], np.int32 if name == "label" else np.float16)
                for name, array in (arrays if is_main() else {}).items()
            }

        size = max(min(ROUND // (needed // len(source) + 1), -(-len(source) // ROUNDS)), 1)
        convert(facts, target, latents.FACTS, keys, size=size, make=make, what="packing")
    if is_main():
        print(f"packed: {target}: {len(source)} {source.name}", flush=True)


def pack_split(source: Source, target: Path, facts: dict) -> None:
    """Pack one split; the main process reads and writes."""
    bytes_each = math.prod(source.image_shape) * (4 if facts["range"] else 1)
    _refuse_full(target, bytes_each * len(source))

    def make(indices):
        if not is_main():
            return {}
        arrays = source.read(indices)
        return {name: np.ascontiguousarray(array) for name, array in arrays.items() if name in ("image", "label")}

    size = max(min(ROUND // bytes_each, -(-len(source) // ROUNDS)), 1)
    convert(facts, target, FACTS, KEYS, size=size, make=make, what="packing", hashed=True)


def _refuse_full(target: Path, needed: int) -> None:
    begun = (target / "image.npy").exists()  # its place is taken already
    free = files.free(target)
    if is_main() and not begun and needed > free:
        raise UserError(f"cannot write {target}: {files.said(needed)} needed, {files.said(free)} free.")
    barrier(f"place for {target}")
