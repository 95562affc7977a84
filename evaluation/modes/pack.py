"""`--mode=pack`: a data set's images at the size of training in one memory map, which big data sets train from."""

import math
from pathlib import Path

import numpy as np

from evaluation import fold as folds
from evaluation.modes.converting import convert, is_made
from score_flow.config.options import Config
from score_flow.data.base import Source
from score_flow.data.packed import FACTS, described
from score_flow.experiment import Experiment
from score_flow.runs import files
from score_flow.runs.processes import barrier, is_main
from score_flow.types import UserError

ROUND, ROUNDS = 1 << 26, 100  # bytes at most that a round writes, and how many rounds a small data set has
KEYS = ("first", "n", "decoding")


def pack(run: Experiment, config: Config, workdir: Path) -> None:
    """Write the images and labels of both splits to workdir/{train,test}/; resumable, what is done stays.

    Raises UserError for latents, which are packed already, and where the disk has no place; Preempted after SIGTERM.
    """
    if config.data.source.name in ("latents", "packed"):
        raise UserError(f"--mode=pack: config.data.source.name is {config.data.source.name}, which is packed already.")
    with folds.held(workdir, "packing"):
        for split in ("train", "test"):
            source, target = run.open_source(split), workdir / split
            facts = described(source)
            if not is_made(facts, target, FACTS, KEYS, "a copy of other data"):
                pack_split(source, target, facts)
            if is_main():
                print(f"packed: {target}: {len(source)} images {source.name}", flush=True)


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
