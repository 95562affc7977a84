"""`--mode=eval`: every wanted job on every wanted checkpoint; what is done is not done again."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from evaluation.context import Context, build_control, build_guide
from evaluation.drawing import described, rehearse
from evaluation.fold import Fold, finished, held, read_json, refuse_other_neighbours, refuse_other_state
from evaluation.fold import run as run_fold
from evaluation.jobs import keys
from evaluation.jobs.base import MODES, Job, Opened, asked, refuse_unfit
from evaluation.report.results import identity as identity_of_data
from evaluation.report.results import write as write_results
from evaluation.watch import coming
from evaluation.weights import checkpoints_of, identity, load_params
from sampling.building import build_sampler
from score_flow.config.loading import differences, flatten
from score_flow.config.options import Config
from score_flow.experiment import Experiment
from score_flow.runs.checkpoint import Checkpoints
from score_flow.runs.preemption import Preemption
from score_flow.runs.processes import barrier, is_main
from score_flow.types import Preempted, UserError

Step = tuple[Checkpoints, int]


class Wanted(NamedTuple):
    """What was asked for, and what that opened: nothing of it can be refused any more but results that are there."""

    jobs: dict[str, Job]
    opened: dict[str, Opened]
    context: Context  # without parameters, key and folder of a job
    facts: Callable[[str], dict[str, Any]]  # of a split


def evaluate(
    run: Experiment, config: Config, workdir: Path, mode: str, folder: str = "", watch: bool = False
) -> dict[str, Any]:
    """Run a mode's jobs, write results and the report; returns {job: result} of the last checkpoint.

    Everything that can be refused is refused before the first job works. watch: wait for milestones that training has
    yet to save. Raises Preempted after SIGTERM, between jobs too.
    """
    directory = workdir / (folder or MODES[mode][0])
    wanted, results, hashes = prepared(run, config, workdir, mode), {}, {}
    with Preemption() as preemption:
        ends = config.eval.begin_ckpt, config.eval.end_ckpt
        groups: Iterator[list[Step]] = (
            ([step] for step in coming(workdir, *ends, preemption)) if watch else iter([checkpoints_of(workdir, *ends)])
        )
        for group in groups:
            for checkpoints, step in group:
                refuse_other_results(wanted, config, checkpoints, step, directory / str(step))
            with held(directory, "evaluation"):
                for checkpoints, step in group:
                    results = one_checkpoint(
                        wanted, config, checkpoints, step, directory / str(step), preemption, hashes
                    )
    barrier("evaluated")
    return results


def prepared(run: Experiment, config: Config, workdir: Path, mode: str) -> Wanted:
    """Everything that the jobs of a mode need, opened; raises UserError for what is missing or does not fit."""
    jobs, options = asked(config.eval, mode), config.eval
    refuse_unfit(run, jobs)
    control = build_control(run, config) if mode == "control" else None
    opened = {name: job.open(run, keys.seen_by(job, options), workdir) for name, job in jobs.items()}
    sampler, guide, judged = build_sampler(config), build_guide(run, config), mode == "eval"
    if any(job.needing("sampler") for job in jobs.values()):
        rehearse(run, sampler, guide, control)
    said = described(config.sampling)
    context = Context(run, None, 0, sampler, guide, options, Path(), judged, control, workdir, sampler_said=said)
    return Wanted(jobs, opened, context, functools.cache(functools.partial(keys.facts_of, run)))


def folds(wanted: Wanted, config: Config, weights: dict[str, str], context: Context) -> Iterator[tuple[str, Fold]]:
    """(job, what it does) on one checkpoint."""
    run, options = context.run, context.options
    for name, job in wanted.jobs.items():
        images = keys.images_of(job, run, options, wanted.facts) if context.judged else {}
        opened, controlled = wanted.opened[name], context.control is not None
        key = keys.key_of(name, job, run, config, weights, images, controlled, opened.of)
        directory, options_seen = context.directory / name, keys.seen_by(job, options)
        own = dataclasses.replace(context, directory=directory, options=options_seen, job=name, key=key)
        yield name, job.build(own, opened.value)


def refuse_other_results(wanted: Wanted, config: Config, checkpoints: Checkpoints, step: int, directory: Path) -> None:
    """Raise UserError, before any work, where a folder holds results or begun states that depend on other things."""
    refuse_old_settings(directory, config)
    context = dataclasses.replace(wanted.context, step=step, directory=directory)
    for name, fold in folds(wanted, config, identity(config, checkpoints, step), context):
        finished(fold.key, directory / name)
        refuse_other_state(fold.key, directory / name)
        refuse_other_neighbours(fold.key, directory)


def one_checkpoint(
    wanted: Wanted,
    config: Config,
    checkpoints: Checkpoints,
    step: int,
    directory: Path,
    preemption: Preemption,
    hashes: dict[str, str],
) -> dict[str, dict[str, Any]]:
    """{job: result} of one checkpoint, which are written down; what is done is read."""
    run, weights, results = wanted.context.run, identity(config, checkpoints, step), {}
    params = load_params(run, config, checkpoints, step)
    context = dataclasses.replace(wanted.context, params=params, step=step, directory=directory)
    for name, fold in folds(wanted, config, weights, context):
        results[name] = run_job(fold, directory / name, name, step, preemption)
    if is_main():
        (directory / "settings.json").unlink(missing_ok=True)  # of an older program; every result has its own now
        if context.judged and (not run.latent or any(job.needing("split") for job in wanted.jobs.values())):
            hash_data(run, results, hashes)
        record(context, config, results, weights["weights"], hashes)
        if context.judged:
            from evaluation.report import one_run as report  # matplotlib: mistakes are answered without waiting for it

            shown = facts(run, config, step) | hashes
            page = report.write(context.workdir, directory, real_images(run), run.scaling.levels, shown)
            print(f"report: {page}", flush=True)
    return results


def run_job(fold: Fold, directory: Path, name: str, step: int, preemption: Preemption) -> dict[str, Any]:
    """The result of one job, printed."""
    if preemption.agreed():
        raise Preempted(f"stopped before the job {name}; run the same command to go on.")
    result = run_fold(fold, directory, name)
    if is_main():
        figures = ", ".join(f"{key} {_short(value)}" for key, value in result.items())
        print(f"step {step} {name}: {figures}", flush=True)
    return result


def real_images(run: Experiment, most: int = 1000) -> np.ndarray:
    """The first test images, as pixel levels; none of a model of latents, whose data are no images."""
    if run.latent:
        return np.zeros((0, *run.pixel_shape), np.uint8)
    return run.test_source.read(np.arange(min(most, len(run.test_source))))["image"]


def hash_data(run: Experiment, results: dict[str, Any], hashes: dict[str, str]) -> None:
    """Add the hashes of the splits that results are of, and of the test images, by their name, where they are new."""
    used = {result.get("split") for result in results.values()}
    for source in (run.test_source, run.train_source):
        if source.name not in hashes and (source is run.test_source or source.name in used):
            hashes[source.name] = identity_of_data(source)


def record(context: Context, config: Config, results: dict[str, Any], weights: str, hashes: dict[str, str]) -> None:
    """Write results.json and results.txt of one checkpoint; hashes: of the splits by their name."""
    facts_of = {"step": context.step, "weights": weights}
    setting = {"weights": f"{weights} at step {context.step}", "sampler": context.sampler_said}
    if hashes:
        facts_of |= {"data": context.run.test_source.name, "checksums": hashes}
        setting |= {"checksums": hashes, "split": context.run.test_source.name}
    options = frozenset(flatten(config.eval.to_dict()))
    write_results(context.directory, results, facts_of, setting | {"options": options})


def refuse_old_settings(directory: Path, config: Config) -> None:
    """Raise UserError where an older program left results of other settings, which it noted for a folder as a whole."""
    found = read_json(directory / "settings.json")
    if not found or not any(directory.glob("*/result.json")):
        return
    now = json.loads(config.to_json())
    now = {section: now[section] for section in found if section in now}
    same = {
        "batch_size",
        "jobs",
        "begin_ckpt",
        "end_ckpt",
        *(name for name in now["eval"] if name.startswith("enable")),
    }
    now["eval"] = {name: value for name, value in now["eval"].items() if name not in same}
    if "control" in found:
        found["control"] = {k: v for k, v in found["control"].items() if not k.endswith(" (content)")}
    if changed := differences(found, now, tuple(found)):
        raise UserError(
            f"{directory} holds results of other settings ({'; '.join(changed)}): give another --eval_folder."
        )


def facts(run: Experiment, config: Config, step: int) -> dict[str, str]:
    """Where and with what a result was made."""
    device = jax.devices()[0]
    packages = ", ".join(f"{p} {version(p)}" for p in ("jax", "flax", "optax", "diffrax", "orbax-checkpoint", "numpy"))
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()[:12]
    guidance = config.guidance.to_dict()
    return {
        "step": str(step),
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "versions": packages,
        "config": digest,
        "data": "an autoencoder's" if run.latent else f"{run.train_source.name}, {run.test_source.name}",
        "sampler": described(config.sampling),
        "guidance": ", ".join(f"{key}={value}" for key, value in guidance.items()),
    }


def _short(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
