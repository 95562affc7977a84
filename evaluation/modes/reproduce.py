"""`--mode=reproduce`: a published figure computed again, and whether it is the published one."""

from pathlib import Path
from typing import Any

from evaluation.fold import write_json
from evaluation.jobs.base import asked
from evaluation.run import evaluate
from score_flow.config.loading import flatten, module_of
from score_flow.config.options import Config
from score_flow.config.registries import ROOT
from score_flow.experiment import Experiment
from score_flow.runs.processes import agree, is_main
from score_flow.types import UserError

Expected = dict[str, tuple[float, float]]  # {"job.figure": (value, tolerance)}


def expected_of(file: str) -> Expected:
    """What a preset says; raises UserError for a recipe that expects nothing."""
    path = Path(file) if Path(file).is_file() else ROOT / file
    module = module_of(path)
    if not getattr(module, "expected", None):
        raise UserError(
            f"--mode=reproduce needs a preset, --config=configs/reproduce/NAME.py, got {file or 'none'}; names: "
            f"{', '.join(presets())}."
        )
    return module.expected


def presets() -> list[str]:
    """The names in configs/reproduce."""
    files = (ROOT / "configs" / "reproduce").glob("*.py")
    return sorted(file.stem for file in files if "\nexpected = " in file.read_text())


def reproduce(run: Experiment, config: Config, workdir: Path, file: str, folder: str = "") -> bool:
    """Evaluate as the preset says, print and write reproduce.json, and return whether every figure is as expected."""
    expected, folder = expected_of(file), folder or f"reproduce/{Path(file).stem}"
    missing = sorted({figure.split(".")[0] for figure in expected} - set(asked(config.eval)))
    if missing:
        raise UserError(f"{file} expects figures of the job {missing[0]}, which the config does not run.")
    verdict = compared(expected, evaluate(run, config, workdir, "eval", folder))
    passed = agree(is_main() and all(row["pass"] for row in verdict.values()))  # the others may not know all figures
    if is_main():
        for name, row in verdict.items():
            outcome, got = "pass" if row["pass"] else "fail", "nothing" if row["got"] is None else f"{row['got']:.5g}"
            print(f"{outcome}: {name} expected {row['expected']:g} +- {row['tolerance']:g}, got {got}", flush=True)
        settings = {key: flatten(getattr(config, key).to_dict()) for key in ("sampling", "eval")}
        write_json(
            workdir / folder / "reproduce.json",
            {"preset": file, "pass": passed, "figures": verdict, "seed": config.seed, **settings},
        )
    return passed


def compared(expected: Expected, results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{"job.figure": {expected, tolerance, got, pass}}; nothing but a number within the tolerance passes."""
    figures, verdict = flatten(results), {}
    for name, (value, by) in expected.items():
        got = figures.get(name)
        passed = got is not None and abs(got - value) <= by
        verdict[name] = {"expected": value, "tolerance": by, "got": got, "pass": passed}
    return verdict
