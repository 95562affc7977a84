"""Guidance scales compared: the figures of the job fid at each, of the same noise and labels."""

import functools

from evaluation.context import Context, Guidance
from evaluation.fold import Fold
from evaluation.jobs import judging
from evaluation.jobs.base import Job, Opened
from evaluation.jobs.rounds import drawing, drawn, of_row
from evaluation.metrics.extractors.base import Extractor
from evaluation.metrics.statistics import Statistics
from evaluation.report import page
from score_flow.config.options import EvalOptions
from score_flow.errors import UserError
from score_flow.experiment import Experiment
from score_flow.runs.places import Place

WHERE = "config.eval.sweep"
HEADS = {
    "fd_dinov2": "FD-DINOv2", "sfid": "sFID", "precision": "precision", "recall": "recall",
    **{names.score: names.score.replace("_", " ") for names in judging.NAMES},
}  # fmt: skip


def open_reference(run: Experiment, options: EvalOptions, workdir: Place) -> Opened:
    """Open the reference and the extractor; raises UserError without them, or without scales, each of them once."""
    if not options.sweep or len(set(options.sweep)) < len(options.sweep):
        raise UserError(f"{WHERE} is {options.sweep}; give scales of guidance, each once: (1.0, 1.25, 1.5, 2.0).")
    return judging.open_reference(run, options, workdir, options.num_samples, "config.eval.num_samples")


def build(context: Context, opened: tuple[Statistics, Extractor]) -> Fold:
    """Draw num_samples samples at each scale in turn; the result is {"rows": [{scale, distance, ...}], "best_scale"}.

    All that guidance is besides its scale is as in config.guidance. Raises UserError where the model has none.
    """
    judge, scales = judging.Judge.of(context, opened, context.n_samples), context.options.sweep
    guides = [_guide(context, scale) for scale in scales]

    def finish(state, arrays):
        calls = state["calls"].mean(axis=1).tolist()
        rows = [
            {"scale": scale, **judge.figures(of_row(state, i)), "network_calls_per_sample": calls[i]}
            for i, scale in enumerate(scales)
        ]
        key, _ = judging.distance_of(rows[0])
        best = min(rows, key=lambda row: row[key])
        about = {k: v for k, v in context.about_samples(state["calls"]).items() if "calls" not in k}
        return {"rows": rows, "best_scale": best["scale"], f"least_{key}": best[key]} | about | judge.about()

    at = [functools.partial(drawing, context, guide=guide, extractor=judge.extractor) for guide in guides]
    return drawn(context, finish, keep=(), each=judge.each, rows=at)


def _guide(context: Context, scale: float) -> Guidance:
    try:
        if not context.guide.conditioning.num_classes and not context.guide.bad_model:
            raise UserError("the model has no classes, and no worse model (config.guidance.bad) guides it.")
        return context.guide.at(scale)
    except UserError as error:
        raise UserError(f"{WHERE} is {context.options.sweep}, but: {error}") from error


def section(record: page.Record) -> str:
    """Show the distance over the scale, as a curve and as a table."""
    from evaluation.report import figures  # matplotlib: mistakes are answered without waiting for it

    result = record.results["sweep"]
    rows = result.get("rows", [])
    if not rows or not (found := judging.distance_of(rows[0])):
        return ""
    key, name = found
    points = sorted((row["scale"], row[key]) for row in rows)
    caption = f"{name} of {result.get('n_samples', 0):,} samples a scale, the same noise for all"
    plot = page.picture(figures.by_scale(*zip(*points, strict=True), name), f"Curve of {name} over scales", caption)
    heads = {key: name} | {column: said for column, said in HEADS.items() if column in rows[0] and column != key}
    cells = [[f"{row['scale']:g}", *(f"{row[column]:.3g}" for column in heads)] for row in rows]
    note = f"Features: {result.get('features', '')}."
    return page.section("Guidance scales", page.pair(plot, page.matrix(["scale", *heads.values()], cells)), note=note)


NEEDS = frozenset({"denoiser", "sampler", "guidance", "levels"})
job = Job(build, NEEDS, (*judging.READS, "num_samples", "sweep"), open_reference, section, place=18)
