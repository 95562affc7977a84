"""`--mode=eval`: every wanted job on every wanted checkpoint; what is done is not done again."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from evaluation import report
from evaluation.context import Context, build_control, build_guide
from evaluation.fold import run as run_fold
from evaluation.fold import write_json
from evaluation.weights import checkpoints_of, load_params, weights_of
from score_flow.build import Experiment, build_sampler, resolve
from score_flow.classification import Classification
from score_flow.config import differences
from score_flow.sharding import barrier, is_main
from score_flow.types import UserError

# mode -> folder of its results in the workdir
FOLDERS = {"eval": "eval", "sample": "samples", "control": "control"}


def jobs(config: ConfigDict) -> list[str]:
    """The files of evaluation/ that config.eval asks for."""
    options = config.eval
    wanted = {
        "loss": options.enable_loss,
        "samples": options.enable_sampling,
        "trajectory": options.enable_sampling,
        "likelihood": options.enable_bpd,
    }
    return [name for name, enabled in wanted.items() if enabled] + list(options.jobs)


def refuse_samples_of_classifier(run: Experiment, names: list[str]) -> None:
    """Raise UserError when more is asked of a classifier than its loss and accuracy."""
    more = [name for name in names if name not in ("loss", "accuracy")]
    if isinstance(run.objective, Classification) and more:
        raise UserError(
            f"a classifier (training.objective = classifier) has no {', '.join(more)}: evaluate it with "
            "config.eval.enable_sampling=False and config.eval.enable_bpd=False, jobs loss and accuracy."
        )


def evaluate(run: Experiment, config: ConfigDict, workdir: Path, mode: str, folder: str = "") -> dict[str, Any]:
    """Run a mode's jobs, write results.json and the report; returns {job: result} of the last checkpoint."""
    options, judged = config.eval, mode == "eval"  # against the data set, which drawing samples does not need
    names, control = jobs(config) if judged else ["samples"], build_control(run, config) if mode == "control" else None
    refuse_samples_of_classifier(run, names)
    sampler, guide, results = build_sampler(config), build_guide(run, config), {}
    chosen = checkpoints_of(workdir, options.begin_ckpt, options.end_ckpt)
    for checkpoints, step in chosen:
        params = load_params(run, config, checkpoints, step)
        directory = workdir / (folder or FOLDERS[mode]) / str(step)
        refuse_other_settings(directory, config, ("control",) if control else ())
        results = {}
        for name in names:
            (directory / name).mkdir(parents=True, exist_ok=True)
            context = Context(run, params, step, sampler, guide, options, directory / name, judged, control)
            fold = resolve("evaluation", ConfigDict({"name": name}), "config.eval.jobs", context=context)
            results[name] = run_fold(fold, directory / name, name)
            if is_main():
                print(
                    f"step {step} {name}: " + ", ".join(f"{k} {_short(v)}" for k, v in results[name].items()),
                    flush=True,
                )
        if is_main():
            facts_of = {"step": step, "weights": weights_of(checkpoints.meta(step), config)}
            write_json(
                directory / "results.json", results | facts_of | ({"data": run.test_source.name} if judged else {})
            )
    if is_main() and judged:
        real = run.test_source.read(np.arange(min(1000, len(run.test_source))))["image"]
        page = report.write(workdir, directory, real, run.scaling.levels, facts(run, config, step))
        print(f"report: {page}", flush=True)
    barrier("evaluated")
    return results


def refuse_other_settings(directory: Path, config: ConfigDict, more: tuple[str, ...] = ()) -> None:
    """One evaluation folder holds results of one set of settings; others need another --eval_folder."""
    settings = json.loads(config.to_json_best_effort())
    # What changes results. The batch size and which jobs run do not.
    evaluation = {
        k: v
        for k, v in settings["eval"].items()
        if not k.startswith("enable") and k not in ("batch_size", "jobs", "begin_ckpt", "end_ckpt")
    }
    sections = ("sampling", "guidance", "seed", *more)
    digest = {"eval": evaluation} | {section: settings[section] for section in sections}
    if "control" in more:
        digest["control"] |= {f"{key} (content)": value for key, value in contents(config.control).items()}
    file = directory / "settings.json"
    # A command that failed before it made anything may be mended and run again.
    made = any(path.is_file() and path != file for path in directory.rglob("*"))
    if file.exists() and made:
        changed = differences(json.loads(file.read_text()), digest, ("eval", *sections))
        if changed:
            raise UserError(
                f"{directory} holds results of other settings ({'; '.join(changed)}): give another --eval_folder."
            )
    elif is_main():
        directory.mkdir(parents=True, exist_ok=True)
        write_json(file, digest)
    barrier(f"settings {directory}")


def contents(section: ConfigDict) -> dict[str, str]:
    """A digest of every file that a section names."""
    files = {key: Path(value).expanduser() for key, value in section.items() if isinstance(value, str)}
    return {key: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for key, file in files.items() if file.is_file()}


def facts(run: Experiment, config: ConfigDict, step: int) -> dict[str, str]:
    """Where and with what a result was made."""
    device = jax.devices()[0]
    packages = ", ".join(f"{p} {version(p)}" for p in ("jax", "flax", "optax", "diffrax", "orbax-checkpoint", "numpy"))
    digest = hashlib.sha256(config.to_json_best_effort(sort_keys=True).encode()).hexdigest()[:12]
    return {
        "step": str(step),
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "versions": packages,
        "config": digest,
        "data": f"{run.train_source.name}, {run.test_source.name}",
        "sampler": ", ".join(f"{k}={v}" for k, v in config.sampling.items()),
        "guidance": ", ".join(f"{k}={v}" for k, v in config.guidance.items()),
    }


def _short(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
