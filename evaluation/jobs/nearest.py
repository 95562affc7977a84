"""Samples beside the training images that are nearest to them, so that copies would be seen."""

import numpy as np
from jaxtyping import Float, Int, UInt8
from threadpoolctl import threadpool_limits

from evaluation.context import Context
from evaluation.fold import Fold, write_arrays
from evaluation.jobs.base import Job
from evaluation.jobs.rounds import drawn
from evaluation.report import page
from evaluation.report.pictures import Pixels, save_grid
from score_flow.data.base import Source

NEIGHBOURS, SHOWN = 3, 24
COLUMNS = 2 * (1 + NEIGHBOURS)  # two samples a row, each with its neighbours
CHUNK = 1024  # training images compared at a time


def build(context: Context, opened: None) -> Fold:
    """Draw num_samples samples, and find the nearest training images of each by the distance of pixels.

    The distance is rms over pixels, in the range [0, 1]. `distance` is the median of samples to their nearest training
    image, `distance_of_test_images` that of test images: of copies the first is much the smaller. nearest.npz has all.
    """
    train, test, levels = context.run.train_source, context.run.test_source, context.run.scaling.levels

    def finish(state, arrays):
        image = np.asarray(arrays["image"][0])
        index, distance = nearest(image, train, levels)
        real = test.read(np.arange(len(test)))["image"]
        _, of_real = nearest(real, train, levels)
        cells = sheet(image[:SHOWN], index[:SHOWN], train)
        write_arrays(context.directory / "nearest.npz", index=index, distance=distance, sheet=cells, of_test=of_real)
        save_grid(context.directory / "nearest.png", cells, levels, columns=COLUMNS)
        figures = {"distance": distance, "distance_of_test_images": of_real}
        medians = {name: float(np.median(values[:, 0])) for name, values in figures.items()}
        return {**medians, **context.about_samples(state["calls"]), "split": train.name}

    return drawn(context, finish, keep=("image",))


@threadpool_limits.wrap(limits=1)
def nearest(image: Pixels, train: Source, levels: int) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    """Return (numbers, distances) of the nearest training images of each image, the nearest first."""
    flat, k = _unit(image, levels), min(NEIGHBOURS, len(train))
    index, square = np.zeros((len(flat), 0), int), np.zeros((len(flat), 0))
    for start in range(0, len(train), CHUNK):
        numbers = np.arange(start, min(start + CHUNK, len(train)))
        other = _unit(train.read(numbers)["image"], levels)
        found = (flat**2).sum(axis=1)[:, None] + (other**2).sum(axis=1) - 2 * flat @ other.T
        index = np.concatenate([index, np.broadcast_to(numbers, found.shape)], axis=1)
        square = np.concatenate([square, found], axis=1)
        order = np.argsort(square, axis=1, kind="stable")[:, :k]
        index, square = np.take_along_axis(index, order, axis=1), np.take_along_axis(square, order, axis=1)
    return index, np.sqrt(np.maximum(square, 0) / flat.shape[1])


def sheet(image: Pixels, index: Int[np.ndarray, "n k"], train: Source) -> UInt8[np.ndarray, "cells h w c"]:
    """Return cells of rows of COLUMNS: a sample, its nearest training images, the next sample, ..."""
    near = [train.read(numbers)["image"] for numbers in index]
    return np.concatenate([np.stack([one, *few]) for one, few in zip(image, near, strict=True)])


def _unit(image: Pixels, levels: int) -> Float[np.ndarray, "n d"]:
    return image.reshape(len(image), -1) / (levels - 1)


def section(record: page.Record) -> str:
    """Show the samples and their neighbours."""
    cells = record.arrays("nearest", "nearest.npz").get("sheet", record.real[:0])
    if not len(cells):
        return ""
    caption = f"A sample, then the {NEIGHBOURS} training images nearest to it; two samples a row"
    result = record.results["nearest"]
    note = (
        f"Distance to the nearest training image (rms of pixels in [0, 1], median): samples {result['distance']:.3f}, "
        f"test images {result['distance_of_test_images']:.3f}."
    )
    sheet_of_all = page.sheet(cells, record.levels, caption, columns=COLUMNS)
    return page.section("Nearest training images", sheet_of_all, note=note)


NEEDS = frozenset({"denoiser", "sampler", "guidance", "pixels", "levels", "training images", "test images"})
job = Job(build, NEEDS, ("num_samples",), section=section, place=45)
