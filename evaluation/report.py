"""One run on one page: a self-contained HTML file of its figures, samples and settings."""

import itertools
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from evaluation import figures, page, results
from evaluation.page import Images
from evaluation.report_samples import Record, calls, gallery, interpolation, samples, trajectory
from score_flow.record import read_lines

N_EXTREMES = 16
OVER_STEPS = {"bits_per_dim": "bits / dim", "fid": "FID", "frechet_distance": "Fréchet distance"}


def write(workdir: Path, evaluation: Path, real: Images, levels: int, facts: dict[str, str]) -> Path:
    """Write workdir/report.html, whole or not at all: training in workdir, results in evaluation, some test images.

    Every input may be missing: the page then does without it. Returns the file.
    """
    record = Record(
        name=workdir.resolve().name,
        config=flatten(_json(workdir / "config.json")),
        rows=read_lines(workdir / "metrics.jsonl"),
        parameters=_text_of(workdir / "parameters.txt"),
        results={file.parent.name: _json(file) for file in sorted(evaluation.glob("*/result.json"))},
        split=_json(evaluation / "results.json").get("data"),
        evaluation=evaluation, real=real, levels=levels, facts=facts,
    )  # fmt: skip
    parts = (samples, trajectory, interpolation, gallery, calls, training, likelihood, checkpoints, tables)
    sections = [part(record) for part in parts]
    html = page.document(record.name, _subtitle(record), cards(record), "".join(sections))
    file, temporary = workdir / "report.html", workdir / "report.html.tmp"
    temporary.write_text(html, encoding="utf-8")
    os.replace(temporary, file)
    return file


def cards(record: Record) -> list[str]:
    """The headline figures."""
    bits, drawn = record.results.get("likelihood", {}), record.results.get("samples", {})
    found = []
    if "bits_per_dim" in bits:
        found.append(page.card("bits / dim", f"{bits['bits_per_dim']:.3f}", _error(bits), _images_of(bits)))
    for key, name, real, split, digits in (
        ("frechet_distance", "Fréchet distance", "frechet_distance_train", "training", ".3g"),
        ("classifier_confidence", "classifier confidence", "classifier_confidence_test", "test", ".1%"),
    ):
        if key in drawn:
            reference = f"{split} images: {drawn[real]:{digits}}" if real in drawn else ""
            found.append(page.card(name, f"{drawn[key]:{digits}}", "", reference))
    if "fid" in (compared := record.results.get("fid", {})):
        note = f"{compared.get('n_samples', 0):,} samples, {compared.get('features', '')}"
        found.append(page.card("FID", f"{compared['fid']:.3g}", "", note))
    if "network_calls_per_batch" in drawn:
        found.append(page.card("network calls", f"{drawn['network_calls_per_batch']:.0f}", "", "per batch of samples"))
    if seconds := training_seconds(record.rows):
        found.append(
            page.card("training", page.duration(seconds), "", f"{max(row['step'] for row in record.rows):,} steps")
        )
    if total := re.search(r"Total: ([\d,]+)", record.parameters):
        found.append(page.card("parameters", page.compact(int(total[1].replace(",", ""))), "", total[1]))
    return found


def training(record: Record) -> str:
    """Losses over steps and over time."""
    (step, loss), (test_step, test_loss) = _series(record.rows, "loss"), _series(record.rows, "test_loss")
    plots = []
    if len(step) or len(test_step):
        curves = figures.loss_curves(step, loss, test_step, test_loss)
        plots.append(page.picture(curves, "Curves of training and test loss over steps", "Loss over training"))
    result = record.results.get("loss", {})
    if any(value is not None for value in result.get("by_time", [])):
        mean = f": mean {result['loss']:.4g} {_error(result)} over {_images_of(result)}" if "loss" in result else ""
        bars = figures.loss_by_time(result["by_time"])
        plots.append(page.picture(bars, "Bars of the mean loss in bins of time", f"Loss by time{mean}"))
    return page.section("Training", page.pair(*plots))


def likelihood(record: Record) -> str:
    """How bits per dimension are distributed; which images are the most and the least likely."""
    bits = record.arrays("likelihood", "bits.npz").get("bits", np.empty((0, 0)))
    if not bits.size or not np.isfinite(bits).all():
        return ""
    bits = bits.mean(axis=0)
    caption = f"Bits per dimension of {len(bits):,} images"
    plot = page.picture(figures.histogram(bits, "bits / dim"), "Histogram of bits per dimension over images", caption)
    split = record.results.get("likelihood", {}).get("split")
    # Bits of another split say nothing about the images that we have.
    return page.section(
        "Likelihood", page.pair(plot, extremes(record, bits) if split == (record.split or split) else "")
    )


def extremes(record: Record, bits: Float[np.ndarray, "n"]) -> str:
    """The most and the least likely of the first images of the split."""
    n = min(len(bits), len(record.real))
    order, k = np.argsort(bits[:n]), min(N_EXTREMES, n // 2)
    sheets = []
    for which, chosen in (("most", order[:k]), ("least", order[::-1][:k])):
        if k:
            low, high = sorted((bits[chosen[0]], bits[chosen[-1]]))
            caption = f"The {k} {which} likely of {n:,} test images: {low:.2f} to {high:.2f} bits / dim"
            sheets.append(
                page.sheet(record.real[chosen], record.levels, f"The {which} likely images", caption, columns=8)
            )
    return "".join(sheets)


def checkpoints(record: Record) -> str:
    """Figures of every checkpoint that was evaluated in the same folder, over its step, a line a job."""
    files = [file for file in record.evaluation.parent.glob("*/results.json") if file.parent.name.isdigit()]
    plots = {figure: {} for figure in OVER_STEPS}
    for file in sorted(files, key=lambda file: int(file.parent.name)):
        for job, result in _json(file).items():
            for figure, value, error in results.figures(result) if isinstance(result, dict) else ():
                if figure in plots and math.isfinite(value):
                    plots[figure].setdefault(job, []).append((int(file.parent.name), value, error))
    pictures = [
        page.picture(
            figures.over_steps(curves, OVER_STEPS[figure]), f"Curves of {figure} over steps", OVER_STEPS[figure]
        )
        for figure, curves in plots.items()
        if max(map(len, curves.values()), default=0) > 1
    ]
    return page.section("Quality over checkpoints", page.pair(*pictures))


def tables(record: Record) -> str:
    """Every figure of every job, the facts, the configuration and the parameters."""
    jobs = page.two_columns(
        *(page.table(values, caption=name) for name, result in record.results.items() if (values := plain(result)))
    )
    setup = [
        page.table(record.facts) if record.facts else "",
        page.details("Configuration", page.table(record.config)) if record.config else "",
        page.details("Parameters", page.preformatted(record.parameters)) if record.parameters else "",
    ]
    return page.section("Figures", jobs) + page.section("Setup", *setup)


def plain(result: dict[str, Any]) -> dict[str, Any]:
    """The figures of a job, without the lists of rows that have a section of their own."""
    return {
        name: value
        for name, value in flatten(result).items()
        if not (isinstance(value, list) and any(isinstance(row, dict) for row in value))
    }


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def training_seconds(rows: list[dict[str, Any]]) -> float:
    """Seconds of training; the clock starts anew when a run is resumed, so its falls are where segments end."""
    clock = [row["seconds"] for row in rows if "seconds" in row]
    return sum((now for now, later in itertools.pairwise([*clock, -1.0]) if later < now), 0.0)


def _subtitle(record: Record) -> str:
    what = {"data.source.name": "", "path.name": " path", "network.name": " network", "model.prediction": " prediction"}
    parts = [f"{record.config[key]}{noun}" for key, noun in what.items() if key in record.config]
    parts += [f"step {value}" for key, value in record.facts.items() if key == "step"]
    return " · ".join(parts)


def _images_of(result: dict[str, Any]) -> str:
    """297 images of digits/test."""
    return f"{result.get('n_images', 0):,} images of {result.get('split', 'the data')}"


def _error(result: dict[str, Any]) -> str:
    """± the standard error of a result, where it has one."""
    error = result.get("standard_error", math.nan)
    return f"± {error:.2g}" if math.isfinite(error) else ""


def _series(rows: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of the rows that have a finite value of this name."""
    found = [(row["step"], row[name]) for row in rows if name in row and math.isfinite(row[name])]
    return np.array([step for step, _ in found], np.int64), np.array([value for _, value in found], np.float64)


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {}


def _text_of(file: Path) -> str:
    return file.read_text() if file.exists() else ""
