"""The sections of a report that show what a model draws."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evaluation import figures, page
from evaluation.page import Images

N_TRAJECTORIES = 8


class Record(NamedTuple):
    """What there is of a run; what is missing is empty."""

    name: str
    config: dict[str, Any]  # flat: {"path.name": "vp", ...}
    rows: list[dict[str, Any]]  # of metrics.jsonl
    parameters: str
    results: dict[str, dict[str, Any]]  # by job
    split: str | None  # that `real` is from
    evaluation: Path
    real: Images
    levels: int
    facts: dict[str, str]

    def arrays(self, job: str, file: str) -> dict[str, np.ndarray]:
        """The arrays of a job, {} without them."""
        path = self.evaluation / job / file
        if not path.exists():
            return {}
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)


def samples(record: Record) -> str:
    """As many samples as real images, side by side."""
    image, real = record.arrays("samples", "samples.npz").get("image", record.real[:0]), record.real
    if not len(image):
        return ""
    most = int(np.clip(page.SHEET // image.shape[2], 2, 10)) ** 2
    n = min(most, len(image), len(real) or most)
    sheets = [
        page.sheet(image[:n], record.levels, f"{n} samples of the model", f"Samples: the first {n} of {len(image):,}")
    ]
    if len(real):
        spread = np.linspace(0, len(real) - 1, n).astype(int)  # a split may be in order of class
        sheets.append(page.sheet(real[spread], record.levels, f"{n} images of the test set", "Test images"))
    features = record.results.get("samples", {}).get("features")
    return page.section(
        "Samples", page.pair(*sheets), note=f"Features of the Fréchet distance: {features}." if features else ""
    )


def trajectory(record: Record) -> str:
    """x(t) and E[x(0) | x(t)] of some samples at some times."""
    arrays = record.arrays("trajectory", "trajectory.npz")
    sheets = []
    for name, what in (("image", "State x(t)"), ("x0", "Denoised estimate E[x(0) | x(t)]")):
        if name in arrays and "t" in arrays:
            rows = np.swapaxes(arrays[name][:, :N_TRAJECTORIES], 0, 1)  # one row a sample
            images = rows.reshape(-1, *rows.shape[2:])
            alt = f"{what} of {len(rows)} samples, one a row, at {len(arrays['t'])} times from noise to data"
            sheets.append(page.sheet(images, record.levels, alt, what, heads=[f"{t:.2f}" for t in arrays["t"]]))
    return page.section(
        "From noise to data", page.pair(*sheets), note="The time t is above each column: 1 is noise, 0 data."
    )


def interpolation(record: Record) -> str:
    """What lies between the latents of pairs of images."""
    rows = record.arrays("interpolation", "interpolation.npz").get("image", record.real[:0, None])[:N_TRAJECTORIES]
    if not len(rows):
        return ""
    n, columns = rows.shape[:2]
    error = record.results.get("interpolation", {}).get("round_trip_rms_levels", math.nan)
    caption = f"{n} pairs, one a row: two images of the data, and between them the decoded latents between theirs"
    sheet = page.sheet(rows.reshape(-1, *rows.shape[2:]), record.levels, caption, caption, columns=columns)
    note = f"Decoded again, the images are {error:.2g} levels off (rms)." if math.isfinite(error) else ""
    return page.section("Interpolation", sheet, note=note)


def gallery(record: Record) -> str:
    """Every picture of the gallery, two side by side."""
    sheets = []
    for picture in record.results.get("gallery", {}).get("pictures", []):
        images = record.arrays("gallery", f"{picture['name']}.npz").get("image", record.real[:0])
        if len(images):
            caption, columns = picture["caption"], picture["columns"]
            sheets.append(page.sheet(images, record.levels, caption, caption, columns=columns))
    return page.section("Gallery", page.two_columns(*sheets))


def calls(record: Record) -> str:
    """Quality against network calls, as curves, as a table and as a few samples of every row of it."""
    result = record.results.get("calls", {})
    rows = [row for row in result.get("rows", []) if "frechet_distance" in row]
    if not rows:
        return ""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        curves.setdefault(row["sampler"], []).append((row["calls"], row["frechet_distance"]))
    plot = page.picture(
        figures.quality_by_calls(curves, result.get("frechet_distance_train"), "Fréchet distance"),
        "Curves of the Fréchet distance over network calls, one a sampler",
        f"Fréchet distance of {result['n_samples']:,} samples, the same noise for all; data themselves: dashed",
    )
    heads = ["sampler", "network calls", "Fréchet distance"]
    accuracies = all("classifier_accuracy" in row for row in rows)
    cells = [[row["sampler"], str(row["calls"]), f"{row['frechet_distance']:.3g}"] for row in rows]
    if accuracies:
        heads.append("right class")
        cells = [[*cell, f"{row['classifier_accuracy']:.1%}"] for cell, row in zip(cells, rows, strict=True)]
    return page.section("Quality against network calls", page.pair(plot, page.matrix(heads, cells)))
