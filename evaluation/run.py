"""`--mode=eval`: every wanted job on every wanted checkpoint; what is done is not done again."""

import dataclasses
import hashlib
import importlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from evaluation.context import Context, build_control, build_guide
from evaluation.fold import run as run_fold
from evaluation.fold import write_json
from evaluation.results import identity
from evaluation.results import write as write_results
from evaluation.watch import coming
from evaluation.weights import checkpoints_of, load_params, weights_of
from score_flow.build import Experiment, build_sampler
from score_flow.components import Component, available, resolve
from score_flow.config import differences, flatten
from score_flow.options import Config, EvalOptions, GuidanceOptions
from score_flow.sharding import barrier, is_main
from score_flow.training import Preemption
from score_flow.types import Preempted, UserError, check_choice

# mode -> folder of its results in the workdir
FOLDERS = {"eval": "eval", "sample": "samples", "control": "control"}
OF_LATENTS = ("loss", "samples", "trajectory", "fid")  # jobs that need no pixels of the data set


def jobs(config: Config) -> list[str]:
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
    if run.loss.produces == "classifier" and more:
        raise UserError(
            f"a classifier (training.objective = classifier) has no {', '.join(more)}: evaluate it with "
            "config.eval.enable_sampling=False and config.eval.enable_bpd=False, jobs loss and accuracy."
        )


def prepared(run: Experiment, options: EvalOptions, workdir: Path, names: list[str]) -> dict[str, Any]:
    """{job: what it opened} of the files that jobs need, before any of them does its work: a job may export `check`.

    A model of latents needs its autoencoder, and can do nothing that needs pixels of its data.
    """
    if run.latent and run.pixel_shape:
        for name in set(names) - set(OF_LATENTS):
            raise UserError(f"the job {name} needs pixels, the data are latents; allowed: {', '.join(OF_LATENTS)}.")
    opened = {}
    for name in names:
        check_choice("config.eval.jobs", name, available("evaluation"))
        if check := getattr(importlib.import_module(f"evaluation.{name}"), "check", None):
            opened[name] = check(run, options, workdir)
    return opened


def evaluate(
    run: Experiment, config: Config, workdir: Path, mode: str, folder: str = "", watch: bool = False
) -> dict[str, Any]:
    """Run a mode's jobs, write results and the report; returns {job: result} of the last checkpoint.

    watch: wait for milestones that training has yet to save. Raises Preempted after SIGTERM, between jobs too.
    """
    options, judged = config.eval, mode == "eval"  # against the data set, which drawing samples does not need
    names, control = jobs(config) if judged else ["samples"], build_control(run, config) if mode == "control" else None
    refuse_samples_of_classifier(run, names)
    opened = prepared(run, options, workdir, names)
    sampler, guide, results, hashes = build_sampler(config), build_guide(run, config), {}, {}
    with Preemption() as preemption:
        ends = options.begin_ckpt, options.end_ckpt
        for checkpoints, step in coming(workdir, *ends, preemption) if watch else checkpoints_of(workdir, *ends):
            directory = workdir / (folder or FOLDERS[mode]) / str(step)
            refuse_other_settings(directory, config, ("control",) if control else ())
            params = load_params(run, config, checkpoints, step)
            context = Context(run, params, step, sampler, guide, options, directory, judged, control, workdir)
            results = run_jobs(context, names, opened, preemption)
            if is_main():
                record(context, config, results, weights_of(checkpoints.meta(step), config), hashes)
            if is_main() and judged:
                from evaluation import report  # matplotlib: mistakes are answered without waiting for it

                shown = facts(run, config, step) | hashes
                page = report.write(workdir, directory, real_images(run), run.scaling.levels, shown)
                print(f"report: {page}", flush=True)
    barrier("evaluated")
    return results


def real_images(run: Experiment, most: int = 1000) -> np.ndarray:
    """The first test images, as pixel levels; none of a model of latents, whose data are no images."""
    if run.latent:
        return np.zeros((0, *run.pixel_shape), np.uint8)
    return run.test_source.read(np.arange(min(most, len(run.test_source))))["image"]


def run_jobs(
    context: Context, names: list[str], opened: dict[str, Any], preemption: Preemption
) -> dict[str, dict[str, Any]]:
    """{job: result} of one checkpoint; what is done is read."""
    results = {}
    for name in names:
        if preemption.agreed():
            raise Preempted(f"stopped before the job {name}; run the same command to go on.")
        job = dataclasses.replace(context, directory=context.directory / name, opened=opened.get(name))
        job.directory.mkdir(parents=True, exist_ok=True)
        fold = resolve("evaluation", Component(name), "config.eval.jobs", context=job)
        results[name] = run_fold(fold, job.directory, name)
        if is_main():
            figures = ", ".join(f"{key} {_short(value)}" for key, value in results[name].items())
            print(f"step {context.step} {name}: {figures}", flush=True)
    return results


def record(context: Context, config: Config, results: dict[str, Any], weights: str, hashes: dict[str, str]) -> None:
    """Write results.json and results.txt of one checkpoint; hashes: of the splits by their name, filled when needed."""
    facts_of, setting = {"step": context.step, "weights": weights}, {}
    run, used = context.run, {result.get("split") for result in results.values()}
    if context.judged and (not run.latent or "loss" in results):  # samples of latents need no data set
        for source in (run.test_source, run.train_source):
            if source.name not in hashes and (source is run.test_source or source.name in used):
                hashes[source.name] = identity(source)
        facts_of |= {"data": run.test_source.name, "checksums": hashes}
        setting = {"checksums": hashes, "split": run.test_source.name}
    setting |= {"weights": f"{weights} at step {context.step}", "sampler": _said(config.sampling)}
    write_results(
        context.directory, results, facts_of, setting | {"options": frozenset(flatten(config.eval.to_dict()))}
    )


def refuse_other_settings(directory: Path, config: Config, more: tuple[str, ...] = ()) -> None:
    """One evaluation folder holds results of one set of settings; others need another --eval_folder."""
    settings = json.loads(config.to_json())
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


def contents(section: Component) -> dict[str, str]:
    """A digest of every file that a section names."""
    files = {key: Path(value).expanduser() for key, value in section.arguments.items() if isinstance(value, str)}
    return {key: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for key, file in files.items() if file.is_file()}


def facts(run: Experiment, config: Config, step: int) -> dict[str, str]:
    """Where and with what a result was made."""
    device = jax.devices()[0]
    packages = ", ".join(f"{p} {version(p)}" for p in ("jax", "flax", "optax", "diffrax", "orbax-checkpoint", "numpy"))
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()[:12]
    return {
        "step": str(step),
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "versions": packages,
        "config": digest,
        "data": "latents" if run.latent else f"{run.train_source.name}, {run.test_source.name}",
        "sampler": _said(config.sampling),
        "guidance": _said(config.guidance),
    }


def _said(section: Component | GuidanceOptions) -> str:
    return ", ".join(f"{key}={value}" for key, value in section.to_dict().items())


def _short(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
