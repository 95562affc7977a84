"""Samples as PNG files, one each, beside the result that they are of."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from evaluation.report.pictures import picture_of
from score_flow.errors import Preempted, UserError
from score_flow.experiment import Experiment
from score_flow.runs import files
from score_flow.runs.places import Place, make_folder
from score_flow.runs.preemption import Preemption
from score_flow.runs.processes import decided, is_main

AT_ONCE, THREADS = 256, 8  # files between two looks for a signal; those that wait for a disk, or a store, at once


def refuse_unfit(run: Experiment) -> None:
    """Raise UserError where samples are no pictures."""
    if run.pixel_shape[-1] not in (1, 3):
        raise UserError(f"config.eval.save_png is True, but images have {run.pixel_shape[-1]} channels; allowed: 1, 3.")


def write(archive: Place, folder: Place, levels: int) -> None:
    """Write `image` of an .npz, levels (n, h, w, c), as folder/<number>.png, or <number>_label<label>.png with labels.

    Each is there whole or not at all, and those that are there are not written again. Raises Preempted after SIGTERM.
    """
    left = decided(f"files in {folder}", lambda: _missing(archive, folder))
    images = files.arrays_of(archive, {"image"})["image"] if left and is_main() else None

    def save(row: tuple[int, str]) -> None:
        pixels = np.rint(images[row[0]] * (255 / (levels - 1))).astype(np.uint8)
        files.write_whole(folder / row[1], lambda stream: picture_of(pixels).save(stream, "PNG"))

    with Preemption() as preemption, ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(left), AT_ONCE):
            if preemption.agreed():
                raise Preempted(f"stopped with {len(left) - start} files of {folder} to write; run the same command.")
            if is_main():
                list(pool.map(save, left[start : start + AT_ONCE]))


def _missing(archive: Place, folder: Place) -> list[tuple[int, str]]:
    """List (number, name) of the files that are not there."""
    arrays = files.arrays_of(archive, {"image", "label"})
    n, labels = len(arrays["image"]), arrays.get("label")
    width = max(6, len(str(n - 1)))
    names = [f"{i:0{width}d}" + ("" if labels is None else f"_label{labels[i]}") + ".png" for i in range(n)]
    make_folder(folder)
    there = {file.name for file in folder.glob("*.png")}
    return [(i, name) for i, name in enumerate(names) if name not in there]
