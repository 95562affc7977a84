"""One run on one page: a self-contained HTML file of its figures, samples and settings."""

import itertools
import math
import re
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from evaluation.report import figures, page, results
from evaluation.report.page import Images, Record
from score_flow.config.loading import flatten
from score_flow.runs import files, places, provenance
from score_flow.runs.progress import read_lines
from score_flow.training import history


@runtime_checkable
class Part(Protocol):
    """What a job says of its result, as HTML: a section, and the cards of its headline figures."""

    section: Callable[[Record], str] | None
    cards: Callable[[Record], list[str]] | None


def write(
    workdir: places.Place,
    evaluation: places.Place,
    jobs: dict[str, Part],
    *,
    real: Images,
    levels: int,
    facts: dict[str, str],
) -> places.Place:
    """Write workdir/report.html, whole or not at all: training in workdir, results in evaluation, some test images.

    jobs: by the names of their results, in the order of the page; the figures of others stand in a table all the same.
    Every input may be missing: the page then does without it. Returns the file.
    """
    record = Record(
        name=workdir.resolve().name,
        config=flatten(_json(workdir / "config.json")),
        rows=read_lines(workdir / "metrics.jsonl"),
        parameters=_text_of(workdir / "parameters.txt"),
        results={file.parent.name: results.read(file) for file in sorted(evaluation.glob("*/result.json"))},
        split=_json(evaluation / "results.json").get("data"),
        evaluation=evaluation, real=real, levels=levels, facts=facts,
        starts=provenance.starts(workdir),
        history=history.told(history.read(workdir)),
    )  # fmt: skip
    parts = [job for name, job in jobs.items() if name in record.results]
    sections = [job.section(record) for job in parts if job.section]
    sections += [part(record) for part in (training, checkpoints, tables)]
    headline = [card for job in parts if job.cards for card in job.cards(record)] + cards(record)
    html = page.document(record.name, _subtitle(record), cards=headline, body="".join(sections))
    files.write_whole(file := workdir / "report.html", html)
    return file


def cards(record: Record) -> list[str]:
    """Show the headline figures of the training."""
    found = []
    if seconds := training_seconds(record.rows):
        steps = f"{max(row['step'] for row in record.rows):,} steps"
        found.append(page.card("training", page.duration(seconds), note=steps))
    if total := _total(record.parameters):
        found.append(page.card("parameters", page.compact(total), note=f"{total:,}"))
    return found


def total_parameters(workdir: places.Place) -> int:
    """Read how many parameters a run trains; 0 where that is not known."""
    return _total(_text_of(workdir / "parameters.txt"))


def _total(parameters: str) -> int:
    found = re.search(r"Total: ([\d,]+)", parameters)
    return int(found[1].replace(",", "")) if found else 0


def training(record: Record) -> str:
    """Show losses over steps."""
    curves = [series(record.rows, name) for name in figures.LOGGED]
    if not any(len(step) for step, _ in curves):
        return ""
    png = figures.loss_curves(*curves[0], *curves[1])
    picture = page.picture(png, "Curves of training and test loss over steps", "Loss over training")
    return page.section("Training", page.pair(picture))


def checkpoints(record: Record) -> str:
    """Show figures of every checkpoint that was evaluated in the same folder, over its step, a line a job."""
    files = [file for file in record.evaluation.parent.glob("*/results.json") if file.parent.name.isdigit()]
    plots = {figure: {} for figure in results.OVER_STEPS}
    for file in sorted(files, key=lambda file: int(file.parent.name)):
        for job, result in _json(file).items():
            for figure, value, error in results.figures(result) if isinstance(result, dict) else ():
                if figure in plots and math.isfinite(value):
                    curve = plots[figure].setdefault(results.called(job, result), [])
                    curve.append((int(file.parent.name), value, error))
    pictures = [
        page.picture(
            figures.over_steps(curves, results.OVER_STEPS[figure]),
            f"Curves of {figure} over steps",
            results.OVER_STEPS[figure],
        )
        for figure, curves in plots.items()
        if max(map(len, curves.values()), default=0) > 1
    ]
    return page.section("Quality over checkpoints", page.pair(*pictures))


def tables(record: Record) -> str:
    """Show every figure of every job, the facts, the configuration and the parameters."""
    jobs = page.two_columns(
        *(
            page.table(values, caption=results.called(name, result))
            for name, result in record.results.items()
            if (values := plain(result))
        )
    )
    setup = [
        page.table(record.facts) if record.facts else "",
        page.details("Starts of training", starts(record.starts)) if record.starts else "",
        page.table(record.history, caption="How it came about") if record.history else "",
        page.details("Configuration", page.table(record.config)) if record.config else "",
        page.details("Parameters", page.preformatted(record.parameters)) if record.parameters else "",
    ]
    return page.section("Figures", jobs) + page.section("Setup", *setup)


STARTS = {
    "time": "Time", "step": "From step", "commit": "Commit", "host": "Host", "devices": "Devices",
    "version": "score_flow",
}  # fmt: skip


def starts(found: list[dict[str, Any]]) -> str:
    """Show where each segment of training ran, and of what code; their commands and packages below."""
    rows = []
    for start in found:
        changed = " with changes" if start.get("changes") else ""
        known = start | {"commit": f"{str(start.get('commit', 'unknown'))[:12]}{changed}"}
        rows.append([page.text(known.get(name)) for name in STARTS])
    said = []
    for start in found:
        packages = flatten({"packages": start.get("packages", {})})
        versions = [f"{name.removeprefix('packages.')} {version}" for name, version in packages.items()]
        said += [page.text(start.get("command")), f"  {page.text(versions)}"]
    return page.matrix([*STARTS.values()], rows) + page.preformatted("\n".join(said))


def plain(result: dict[str, Any]) -> dict[str, Any]:
    """Pick the figures of a job, without the lists of rows that have a section of their own."""
    return {
        name: value
        for name, value in flatten(result).items()
        if not (isinstance(value, list) and any(isinstance(row, dict) for row in value))
    }


def training_seconds(rows: list[dict[str, Any]]) -> float:
    """Count seconds of training; the clock starts anew when a run is resumed, so its falls are where segments end."""
    clock = [row["seconds"] for row in rows if _is_number(row.get("seconds"))]
    return sum((now for now, later in itertools.pairwise([*clock, -1.0]) if later < now), 0.0)


def _subtitle(record: Record) -> str:
    what = {"data.source.name": "", "path.name": " path", "network.name": " network", "model.prediction": " prediction"}
    parts = [f"{record.config[key]}{noun}" for key, noun in what.items() if key in record.config]
    parts += [f"step {value}" for key, value in record.facts.items() if key == "step"]
    return " · ".join(parts)


def series(rows: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Pick (steps, values) of the rows that have a finite value of this name."""
    found = [(row["step"], row[name]) for row in rows if _is_number(row.get(name))]
    return np.array([step for step, _ in found], np.int64), np.array([value for _, value in found], np.float64)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _json(file: places.Place) -> dict[str, Any]:
    return files.json_at(file) or {}


def _text_of(file: places.Place) -> str:
    return file.read_text() if file.exists() else ""
