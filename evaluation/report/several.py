"""Several runs on one page: curves over each other, figures side by side where they are of one kind, what differs."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from evaluation.report import figures, page, results
from evaluation.report.one_run import series, training_seconds
from score_flow.config.loading import flatten, within
from score_flow.runs.files import write_whole
from score_flow.runs.places import Place

# Of what a result depends on, what tells one run's weights from another's: that is what is compared.
OF_THE_WEIGHTS = ("checkpoint", "weights")
# What the height of a loss depends on beside the weights.
OF_THE_LOSS = (
    "path", "model.prediction", "model.learn_sigma", "model.low_res", "data.centered", "data.source", "data.levels",
    "data.range", "data.uniform_dequantization", "training.objective", "training.contrast",
    "training.vlb_weight", "training.variance",
    "training.decoder", "training.weighting", "training.min_snr_gamma", "training.velocity_clip",
    "training.likelihood_weighting",
    "training.time_sampler", "training.importance_weighting", "training.smallest_time", "training.largest_time",
    "training.reduce_mean", "training.label_dropout",
)  # fmt: skip
ABSENT = "absent"


@dataclasses.dataclass(frozen=True)
class Run:
    """What is compared of a run; what it has not is empty.

    Attributes:
        name: by which the page calls it.
        config: flat.
        rows: of metrics.jsonl.
        results: by job, of the newest step that was evaluated.
        keys: of them: what each depends on.
        facts: what it was made with.
        images: its samples, as levels of so many `levels`.
    """

    name: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    results: dict[str, dict[str, Any]]
    keys: dict[str, dict[str, Any]]
    facts: dict[str, str]
    images: page.Images
    levels: int = 256


def write(file: Place, runs: Sequence[Run]) -> None:
    """Write the page, whole or not at all."""
    parts = (curves, pace, side_by_side, samples, settings, made_with)
    title = " · ".join(run.name for run in runs)
    write_whole(file, page.document(title, f"{len(runs)} runs", cards=(), body="".join(part(runs) for part in parts)))


def curves(runs: Sequence[Run]) -> str:
    """Show training and test losses, over each other where they are of one objective, and the learning rates."""
    groups = grouped(runs, lambda run: {k: v for k, v in run.config.items() if within(k, OF_THE_LOSS)})
    pictures = []
    for of_one in groups:
        names = ", ".join(run.name for run in of_one) if len(groups) > 1 else "all runs"
        for key, what in zip(figures.LOGGED, ("Training loss (running mean)", "Test loss"), strict=True):
            found = {run.name: series(run.rows, key) for run in of_one}
            pictures += _picture(found, f"{what}, {names}", runs, ylabel="loss", smooth=key == "loss")
    rates = {run.name: series(run.rows, "lr") for run in runs}
    pictures += _picture(rates, "Learning rate", runs, ylabel="learning rate", linear=True)
    note = ""
    if len(groups) > 1:
        differ = differing([{k: v for k, v in run.config.items() if within(k, OF_THE_LOSS)} for run in runs])
        note = f"Losses of different kinds are not drawn over each other: {_named(differ, runs)}."
    return page.section("Training", page.pair(*pictures), note=note)


def _picture(found: dict[str, tuple], caption: str, runs: Sequence[Run], **style: Any) -> list[str]:
    """Set a plot of the series that have points, none without any; a run has one colour on the whole page."""
    colors = dict(zip((run.name for run in runs), itertools.cycle(figures.CYCLE), strict=False))
    shown = {name: points for name, points in found.items() if len(points[0])}
    if not shown:
        return []
    return [page.picture(figures.over_runs(shown, colors, **style), f"Curves: {caption}", caption)]


def pace(runs: Sequence[Run]) -> str:
    """Show how long each trained, and how fast."""
    rows: dict[str, list[str]] = {"steps": [], "training time": [], "steps / s": [], "images / s": [], "MFU": []}
    for run in runs:
        seconds, steps = training_seconds(run.rows), max((row["step"] for row in run.rows), default=0)
        rate, mfu = _rate(run.rows), series(run.rows, "mfu")[1]
        said = series(run.rows, "images_per_second")[1]
        images = float(np.median(said)) if len(said) else rate * run.config.get("training.batch_size", 0)
        rows["steps"].append(f"{steps:,}" if steps else "–")
        rows["training time"].append(page.duration(seconds) if seconds else "–")
        rows["steps / s"].append(f"{rate:.3g}" if rate else "–")
        rows["images / s"].append(f"{images:,.0f}" if images else "–")
        rows["MFU"].append(f"{np.median(mfu):.1%}" if len(mfu) else "–")
    kept = [[name, *cells] for name, cells in rows.items() if set(cells) != {"–"}]
    if not kept:
        return ""
    return page.section("Pace", page.matrix(["", *(run.name for run in runs)], kept), note="Medians over logged steps.")


def _rate(rows: list[dict[str, Any]]) -> float:
    """Compute the median of steps a second, as logged, else between logged steps; 0 where nothing is known."""
    if len(said := series(rows, "steps_per_second")[1]):
        return float(np.median(said))
    clock = [(row["step"], row["seconds"]) for row in rows if "loss" in row and row.get("seconds")]
    rates = [(b[0] - a[0]) / (b[1] - a[1]) for a, b in itertools.pairwise(clock) if b[1] > a[1] and b[0] > a[0]]
    return float(np.median(rates)) if rates else 0.0


def side_by_side(runs: Sequence[Run]) -> str:
    """Show the figures of each job in a row, of the runs whose results depend on the same but for the weights."""
    parts = []
    for job in dict.fromkeys(job for run in runs for job in run.results):
        having = [run for run in runs if job in run.results]
        groups = grouped(having, lambda run, job=job: comparable(run.keys[job]))
        for group in groups:
            of = f" of {', '.join(run.name for run in group)}" if len(groups) > 1 else ""
            rows = _figures(job, group)
            parts += [page.matrix(["", *(run.name for run in group)], rows, caption=f"{job}{of}")] if rows else []
        if len(groups) > 1:
            differ = differing([comparable(run.keys[job]) for run in having])
            parts.append(page.note(f"{job} is not of one kind, and stands apart: {_named(differ, having)}."))
        lacking = [run.name for run in runs if run not in having]
        if lacking:
            parts.append(page.note(f"{job} was not evaluated of {', '.join(lacking)}."))
    return page.section("Figures", *parts)


def _figures(job: str, runs: Sequence[Run]) -> list[list[str]]:
    """Return a row a figure, with its standard error where that is known, and one of how many it is of."""
    found = [{name: (value, error) for name, value, error in results.figures(run.results[job])} for run in runs]
    rows = [
        [name, *(_with_error(*one[name]) if name in one else "–" for one in found)]
        for name in dict.fromkeys(name for one in found for name in one)
    ]
    counts = dict.fromkeys(n for run in runs for n in run.results[job] if n in ("n_images", "n_samples"))
    return rows + [[n.replace("n_", ""), *(page.text(run.results[job].get(n)) for run in runs)] for n in counts]


def _with_error(value: float, error: float) -> str:
    return f"{value:.5g}" + (f" ± {error:.2g}" if math.isfinite(error) else "")


def samples(runs: Sequence[Run]) -> str:
    """Show the samples of the same numbers of each run: of one seed, of the same noise."""
    shown = [run for run in runs if len(run.images)]
    if not shown:
        return ""
    n = min(36, *(len(run.images) for run in shown))
    sheets = [page.sheet(run.images[:n], run.levels, run.name, alt=f"{n} samples of {run.name}") for run in shown]
    differ = differing([comparable(run.keys["samples"]) for run in shown])
    seeds = {str(run.keys["samples"].get("seed")) for run in shown}
    note = "The same place is the same seed." if len(seeds) == 1 else f"The seeds differ: {', '.join(sorted(seeds))}."
    note += f" They were drawn with other settings: {_named(differ, shown)}." if differ else ""
    return page.section("Samples", page.pair(*sheets), note=note)


def settings(runs: Sequence[Run]) -> str:
    """Show every setting in which the runs differ."""
    differ = differing([run.config for run in runs])
    if not differ:
        return page.section("Settings", page.note("The runs have the same settings."))
    rows = [[key, *map(page.text, values)] for key, values in differ.items()]
    return page.section("Settings that differ", page.matrix(["", *(run.name for run in runs)], rows))


def made_with(runs: Sequence[Run]) -> str:
    """Show what each run was made with."""
    return page.section("Made with", page.pair(*(page.table(run.facts, caption=run.name) for run in runs)))


# ---- what is of one kind


def comparable(key: dict[str, Any]) -> dict[str, Any]:
    """Return what a result depends on beside the weights, flat."""
    return flatten({name: value for name, value in key.items() if name not in OF_THE_WEIGHTS})


def grouped(runs: Sequence[Run], of: Callable[[Run], Any]) -> list[list[Run]]:
    """Return the runs in groups of which `of` is the same, in their order."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(of(run), sort_keys=True, default=str), []).append(run)
    return list(groups.values())


def differing(trees: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return the values, one a tree, of each name for which they are not all the same."""
    found = {key: [tree.get(key, ABSENT) for tree in trees] for key in sorted(set().union(*trees))}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def _named(differ: dict[str, list[Any]], runs: Sequence[Run]) -> str:
    """Say "eval.probe is gaussian (A), rademacher (B, C)"."""
    parts = []
    for key, values in differ.items():
        having: dict[str, list[str]] = {}
        for value, run in zip(values, runs, strict=True):
            having.setdefault(page.text(value), []).append(run.name)
        parts.append(f"{key} is " + ", ".join(f"{value} ({', '.join(names)})" for value, names in having.items()))
    return "; ".join(parts)
