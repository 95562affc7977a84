"""`--mode=reproduce`: a published figure computed again, and whether it is the published one."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from evaluation import run as evaluation
from score_flow.config.loading import flatten, module_of
from score_flow.config.options import Config
from score_flow.config.registries import ROOT
from score_flow.errors import UserError
from score_flow.experiment import Experiment
from score_flow.runs import files, places
from score_flow.runs.processes import agree, is_main

Expected = dict[str, tuple[float, float]]  # {"job.figure": (value, tolerance)}


def expected_of(file: str) -> Expected:
    """Read what a preset expects; raises UserError for a recipe that expects nothing."""
    path = Path(file) if Path(file).is_file() else ROOT / file
    module = module_of(path)
    if not getattr(module, "expected", None):
        raise UserError(
            f"--mode=reproduce needs a preset, --config=configs/reproduce/NAME.py, got {file or 'none'}; names: "
            f"{', '.join(presets())}."
        )
    return module.expected


def presets() -> list[str]:
    """List the names in configs/reproduce."""
    recipes = (ROOT / "configs" / "reproduce").glob("*.py")
    return sorted(file.stem for file in recipes if "\nexpected = " in file.read_text())


def reproduce(run: Experiment, config: Config, workdir: places.Place, file: str, folder: str = "") -> bool:
    """Evaluate as the preset says, print and write reproduce.json, and return whether every figure is as expected."""
    expected, folder = expected_of(file), folder or f"reproduce/{Path(file).stem}"
    wanted = evaluation.prepared(run, config, workdir, "eval")
    missing = sorted({job_of(figure, wanted.jobs) for figure in expected} - wanted.jobs.keys())
    if missing:
        raise UserError(f"{file} expects figures of the job {missing[0]}, which the config does not run.")
    verdict = compared(expected, evaluation.work(wanted, workdir / folder))
    passed = agree(is_main() and all(row["pass"] for row in verdict.values()))  # the others may not know all figures
    if is_main():
        for name, row in verdict.items():
            outcome, got = "pass" if row["pass"] else "fail", "nothing" if row["got"] is None else f"{row['got']:.5g}"
            print(f"{outcome}: {name} expected {row['expected']:g} +- {row['tolerance']:g}, got {got}", flush=True)
        settings = {key: flatten(getattr(config, key).to_dict()) for key in ("sampling", "eval")}
        files.write_json(
            workdir / folder / "reproduce.json",
            {"preset": file, "pass": passed, "figures": verdict, "seed": config.seed, **settings},
        )
    return passed


def job_of(figure: str, jobs: Iterable[str]) -> str:
    """Find the job that a figure is of, whose name may have dots too; else what stands before the first dot."""
    return next((name for name in jobs if figure.startswith(f"{name}.")), figure.split(".")[0])


def compared(expected: Expected, results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Make {"job.figure": {expected, tolerance, got, pass}}; nothing but a number within the tolerance passes."""
    figures, verdict = flatten(results), {}
    for name, (value, by) in expected.items():
        got = figures.get(name)
        passed = got is not None and abs(got - value) <= by
        verdict[name] = {"expected": value, "tolerance": by, "got": got, "pass": passed}
    return verdict
