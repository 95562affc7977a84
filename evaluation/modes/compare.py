"""`--mode=compare --workdir=A --workdir=B`: several trained runs on one page, compare.html in the first."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.fold import state_key
from evaluation.jobs.base import MODES
from evaluation.report import results, several
from evaluation.report.one_run import total_parameters
from evaluation.report.origin import origin
from evaluation.report.page import Images
from score_flow.config.loading import flatten, read_json
from score_flow.errors import UserError
from score_flow.runs import files, places
from score_flow.runs.checkpoint import Checkpoints
from score_flow.runs.places import path_of
from score_flow.runs.progress import read_lines

FILE = "compare.html"


def compare(workdirs: Sequence[str], folder: str = "", settings: Sequence[str] = ()) -> places.Place:
    """Write the page of some runs and return its file; folder: of their evaluations, in each.

    Raises UserError, in a line, for less than two runs, one that is not there or not finished, and for any settings:
    the runs are taken as they are.
    """
    if settings:
        raise UserError(f"--mode=compare takes runs as they are, got {settings[0]}: leave it out.")
    found = [path_of(workdir) for workdir in workdirs]
    if len(found) < 2 or len(set(found)) < len(found):
        got = ", ".join(workdirs) or "none"
        raise UserError(f"--mode=compare needs two runs or more, each once: --workdir=A --workdir=B; got {got}.")
    runs = [read(place, name, folder or MODES["eval"][0]) for place, name in zip(found, names(found), strict=True)]
    several.write(file := found[0] / FILE, runs)
    return file


def names(workdirs: Sequence[places.Place]) -> list[str]:
    """Name runs by their folders, by as much of their paths as tells them apart."""
    parts = [str(workdir).strip("/").split("/") for workdir in workdirs]
    depth = next(n for n in range(1, max(map(len, parts)) + 1) if len({tuple(p[-n:]) for p in parts}) == len(parts))
    return ["/".join(p[-depth:]) for p in parts]


def read(workdir: places.Place, name: str, folder: str) -> several.Run:
    """Read what a run left; raises UserError for one that is not there or not finished."""
    if not (workdir / "config.json").is_file():
        raise UserError(f"--workdir={workdir} holds no config.json: give the --workdir of a trained run.")
    settings = read_json(places.local(workdir / "config.json"))
    step, meta = trained(workdir, settings)
    evaluation = evaluated(workdir / folder)
    found = {} if evaluation is None else {f.parent.name: f for f in sorted(evaluation.glob("*/result.json"))}
    keys = {job: (files.json_at(file) or {}).get("key", {}) for job, file in found.items()}
    result = {job: results.read(file) for job, file in found.items()}
    images = _samples(evaluation)
    return several.Run(
        name=name, config=flatten(settings), rows=read_lines(workdir / "metrics.jsonl"), results=result, keys=keys,
        facts=facts(workdir, step, meta, evaluation, keys), images=images,
        levels=result.get("samples", {}).get("levels", 256),
    )  # fmt: skip


def trained(workdir: places.Place, settings: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """(the last step, what its checkpoint says of itself); raises UserError unless training has ended."""
    milestones, states = (Checkpoints(workdir / name) for name in ("checkpoints", "checkpoints-meta"))
    try:
        steps, newest = milestones.steps(), max([*milestones.steps(), *states.steps()], default=None)
        if newest is None:
            raise UserError(f"--workdir={workdir} has no checkpoint: train first (--mode=train).")
        last, whole = steps[-1] if steps else 0, settings["training"]["n_iters"]
        meta = milestones.meta(last) if steps else {}
        if last < whole and "imported" not in meta:
            raise UserError(
                f"--workdir={workdir} is not finished, at step {newest} of {whole}: run its --mode=train to the end."
            )
        return last, meta
    finally:
        milestones.close()
        states.close()


def evaluated(folder: places.Place) -> places.Place | None:
    """Return the folder of the newest step that was evaluated, None without any; raises UserError for a broken one."""
    steps = sorted((int(file.parent.parent.name) for file in folder.glob("*/*/result.json")), key=int)
    if not steps:
        return None
    newest = folder / str(steps[-1])
    broken = [job.name for job in newest.iterdir() if job.is_dir() and not (job / "result.json").exists()]
    broken = [name for name in broken if state_key(newest / name) is not None]
    if broken:
        raise UserError(f"{newest} is not finished: {', '.join(broken)}; run its evaluation to the end first.")
    return newest


def facts(
    workdir: places.Place, step: int, meta: dict[str, Any], evaluation: places.Place | None, keys: dict[str, Any]
) -> dict[str, str]:
    """Say what a run was made with."""
    data, weights = meta.get("data") or {}, sorted({key["weights"] for key in keys.values() if "weights" in key})
    parameters = total_parameters(workdir)
    found = {
        "folder": str(workdir),
        "trained to": f"step {step}",
        "evaluated": f"step {evaluation.name}, {', '.join(weights)}" if evaluation is not None else "",
        "data": f"{data['n']:,} images {data['name']} ({data.get('first')})" if data else "",
        "parameters": f"{parameters:,}" if parameters else "",
        "saved by": f"score_flow {meta['version']}" if "version" in meta else "",
    }
    return {name: said for name, said in found.items() if said} | origin(workdir)


def _samples(evaluation: places.Place | None, most: int = 36) -> Images:
    """Read the first samples, none where there are none."""
    file = None if evaluation is None else evaluation / "samples" / "samples.npz"
    if file is None or not file.exists():
        return np.zeros((0, 1, 1, 1), np.uint8)
    image = files.arrays_of(file, ["image"])["image"]
    return image[:most]
