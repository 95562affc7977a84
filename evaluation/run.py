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
import jax.numpy as jnp
import numpy as np

from evaluation import drawing, weights
from evaluation import fold as folds
from evaluation.context import Context, build_control, build_guide
from evaluation.fold import Fold, Key
from evaluation.jobs import base, keys
from evaluation.report import results as written
from sampling.building import build_sampler
from score_flow import __version__
from score_flow.config.loading import differences, flatten
from score_flow.config.options import Config
from score_flow.errors import Preempted, UserError
from score_flow.experiment import Experiment
from score_flow.runs import files, places
from score_flow.runs.checkpoint import Checkpoints
from score_flow.runs.preemption import Preemption
from score_flow.runs.processes import barrier, decided, is_main
from score_flow.runs.workdir import held

Results = dict[str, dict[str, Any]]  # by job


class Wanted(NamedTuple):
    """What was asked for, and what that opened: nothing of it can be refused any more but results that are there."""

    jobs: dict[str, base.Job]
    opened: dict[str, base.Opened]
    context: Context  # without parameters, key and folder of a job
    which: weights.Which
    settings: Key  # all that results may depend on
    facts: Callable[[str], Key]  # of a split


class Visit(NamedTuple):
    """One checkpoint, the folder of its results, and which weights of it are evaluated."""

    checkpoints: Checkpoints | None  # None: of images that are there
    step: int
    directory: places.Place
    weights: Key


def evaluate(
    run: Experiment, config: Config, workdir: places.Place, mode: str, folder: str = "", watch: bool = False
) -> Results:
    """Run a mode's jobs, write results and the report; returns {job: result} of the last checkpoint.

    Everything that can be refused is refused before the first job works. watch: wait for milestones that training has
    yet to save. Raises Preempted after SIGTERM, between jobs too.
    """
    wanted = prepared(run, config, workdir, mode)
    return work(wanted, workdir / (folder or base.MODES[mode][0]), watch)


def prepared(run: Experiment, config: Config, workdir: places.Place, mode: str) -> Wanted:
    """Open everything that the jobs of a mode need; raises UserError for what is missing or does not fit.

    The one reader of the config: what follows sees values.
    """
    options, which, controlled = config.eval, weights.which_of(config), mode == "control"
    jobs = base.asked(options, mode)
    base.refuse_unfit(run, jobs)
    control = build_control(run, config.control) if controlled else None
    opened = {name: job.open(run, keys.seen_by(job, options), workdir) for name, job in jobs.items()}
    sampler, guide = build_sampler(config), build_guide(run, config)
    if any(job.needing("sampler") for job in jobs.values()):
        drawing.rehearse(run, sampler, guide, control)
    context = Context(
        run, None, 0, sampler, guide, options, Path(), judged=mode == "eval", control=control, workdir=workdir,
        sampler_said=drawing.described(config.sampling),
    )  # fmt: skip
    facts = functools.cache(functools.partial(keys.facts_of, run))
    return Wanted(jobs, opened, context, which, keys.settings_of(run, config, controlled), facts)


def work(wanted: Wanted, folder: places.Place, watch: bool = False) -> Results:
    """Run the jobs on every wanted checkpoint, results in a folder each; returns those of the last."""
    if wanted.context.options.samples:
        if watch:
            raise UserError("--watch waits for checkpoints: it does not go with config.eval.samples.")
        return of_images(wanted, folder)
    results, hashes, options, workdir = {}, {}, wanted.context.options, wanted.context.workdir
    ends = options.begin_ckpt, options.end_ckpt
    with Preemption() as preemption:
        if watch:
            groups = ([step] for step in weights.coming(workdir, *ends, preemption=preemption))
        else:
            groups = iter([weights.checkpoints_of(workdir, *ends)])
        for group in groups:
            visits = [visit_of(wanted, folder, *step) for step in group]
            for visit in visits:
                refuse_other_results(wanted, visit)
            with held(folder, "evaluation"):
                for visit in visits:
                    results = one_checkpoint(wanted, visit, preemption, hashes=hashes)
    barrier("evaluated")
    return results


def of_images(wanted: Wanted, folder: places.Place) -> Results:
    """Judge images that are there: no checkpoint is looked at, and results lie in a folder that is named after them."""
    [opened] = wanted.opened.values()
    images = opened.of["image set"]
    visit = Visit(None, 0, folder / f"{images['name']}-{images['sha256'][:8]}", {})
    refuse_other_results(wanted, visit)
    with Preemption() as preemption, held(folder, "evaluation"):
        results = {
            name: run_job(fold, visit.directory / name, name, of=images["name"], preemption=preemption)
            for name, fold in folds_of(wanted, visit)
        }
        if is_main():
            setting = {"weights": "", "version": __version__, "options": options_of(wanted)}
            written.write(visit.directory, results, facts={"version": __version__}, setting=setting)
    barrier("judged")
    return results


def visit_of(wanted: Wanted, folder: places.Place, checkpoints: Checkpoints, step: int) -> Visit:
    """Look at a checkpoint; raises UserError where it is of another model, or results are of other settings."""
    refuse_old_settings(folder / str(step), wanted.which.settings)
    return Visit(checkpoints, step, folder / str(step), weights.identity(wanted.which, checkpoints, step))


def folds_of(wanted: Wanted, visit: Visit, params: Any = None) -> Iterator[tuple[str, Fold]]:
    """Yield (job, what it does) on one checkpoint."""
    context = wanted.context
    for name, job in wanted.jobs.items():
        images = {}
        if context.judged:
            images = keys.images_of(job, context.options.bpd_dataset, latent=context.run.latent, facts=wanted.facts)
        opened = wanted.opened[name]
        key = {"job": name} | keys.key_of(job, wanted.settings) | visit.weights | opened.of | images
        yield name, job.build(
            dataclasses.replace(
                context, params=params, step=visit.step, directory=visit.directory / name, job=name, key=key,
                options=keys.seen_by(job, context.options),
            ),
            opened.value,
        )  # fmt: skip


def refuse_other_results(wanted: Wanted, visit: Visit) -> None:
    """Raise UserError, before any work, where a folder holds results or begun states that depend on other things."""
    for name, fold in folds_of(wanted, visit):
        folds.finished(fold.key, visit.directory / name)
        folds.refuse_other_state(fold.key, visit.directory / name)
        folds.refuse_other_neighbours(fold.key, visit.directory)


def one_checkpoint(wanted: Wanted, visit: Visit, preemption: Preemption, *, hashes: dict[str, str]) -> Results:
    """Run the jobs on one checkpoint, what is done is read, and write their results; hashes: of the splits so far."""
    context, results = wanted.context, {}
    params = weights.load_params(context.run, wanted.which, visit.checkpoints, visit.step)
    for name, fold in folds_of(wanted, visit, params):
        results[name] = run_job(fold, visit.directory / name, name, of=f"step {visit.step}", preemption=preemption)
    if is_main():
        (visit.directory / "settings.json").unlink(missing_ok=True)  # of an older program; every result has its own now
        looked_at = any(job.needing("split") for job in wanted.jobs.values())
        if context.judged and (not context.run.latent or looked_at):
            hash_data(context.run, results, hashes)
        record(wanted, visit, results, hashes=hashes)
        if context.judged:
            print(f"report: {report(wanted, visit, hashes)}", flush=True)
    return results


def run_job(fold: Fold, directory: places.Place, name: str, *, of: str, preemption: Preemption) -> dict[str, Any]:
    """Run one job, and print its result; of: what it is the result of."""
    if preemption.agreed():
        raise Preempted(f"stopped before the job {name}; run the same command to go on.")
    result = folds.run(fold, directory, name)
    if is_main():
        figures = ", ".join(f"{key} {_short(value)}" for key, value in result.items())
        print(f"{of} {written.called(name, result)}: {figures}", flush=True)
    return result


def real_images(run: Experiment, most: int = 1000) -> np.ndarray:
    """Read the first test images, as pixel levels; none of a model of latents, whose data are no images."""
    if run.latent:
        return np.zeros((0, *run.pixel_shape), np.uint8)
    image = run.test_source.read(np.arange(min(most, len(run.test_source))))["image"]
    return np.asarray(run.scaling.quantise(run.scaling.normalise(jnp.asarray(image)))) if run.real else image


def hash_data(run: Experiment, results: Results, hashes: dict[str, str]) -> None:
    """Add the hashes of the splits that results are of, and of the test images, by their name, where they are new."""
    used = {result.get("split") for result in results.values()}
    for source in (run.test_source, run.train_source):
        if source.name not in hashes and (source is run.test_source or source.name in used):
            hashes[source.name] = written.identity(source)


def record(wanted: Wanted, visit: Visit, results: Results, *, hashes: dict[str, str]) -> None:
    """Write results.json and results.txt of one checkpoint; hashes: of the splits by their name."""
    context, said = wanted.context, visit.weights["weights"]
    facts = {"step": visit.step, "weights": said, "version": __version__}
    setting = {"weights": f"{said} at step {visit.step}", "sampler": context.sampler_said, "version": __version__}
    if hashes:
        facts |= {"data": context.run.test_source.name, "checksums": hashes}
        setting |= {"checksums": hashes, "split": context.run.test_source.name}
    written.write(visit.directory, results, facts=facts, setting=setting | {"options": options_of(wanted)})


def options_of(wanted: Wanted) -> frozenset[str]:
    """Name the fields of config.eval, whose values among a result are no figures."""
    return frozenset(flatten(wanted.which.settings["eval"]))


def report(wanted: Wanted, visit: Visit, hashes: dict[str, str]) -> places.Place:
    """Write the page of a run, as of one checkpoint, with all results that its folder holds."""
    from evaluation.report import one_run  # matplotlib: mistakes are answered without waiting for it

    run, jobs = wanted.context.run, base.by_place(file.parent.name for file in visit.directory.glob("*/result.json"))
    facts = {"step": str(visit.step), **made_with(wanted), **hashes}
    return one_run.write(
        wanted.context.workdir, visit.directory, jobs, real=real_images(run), levels=run.scaling.levels, facts=facts
    )


def made_with(wanted: Wanted) -> dict[str, str]:
    """Say where and with what results are made."""
    run, settings, device = wanted.context.run, wanted.which.settings, jax.devices()[0]
    packages = ("jax", "flax", "optax", "diffrax", "orbax-checkpoint", "numpy")
    return {
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "versions": ", ".join([f"score_flow {__version__}", *(f"{name} {version(name)}" for name in packages)]),
        "config": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12],
        "data": "an autoencoder's" if run.latent else f"{run.train_source.name}, {run.test_source.name}",
        "sampler": wanted.context.sampler_said,
        "guidance": ", ".join(f"{key}={value}" for key, value in settings["guidance"].items()),
    }


def refuse_old_settings(directory: places.Place, settings: dict[str, Any]) -> None:
    """Raise UserError where an older program left results of other settings, which it noted for a folder as a whole."""
    there = lambda: files.json_at(directory / "settings.json") if any(directory.glob("*/result.json")) else None  # noqa: E731
    if not (found := decided(f"settings in {directory}", there)):
        return
    now = {section: settings[section] for section in found if section in settings}
    enabled = (name for name in now["eval"] if name.startswith("enable"))
    same = {"batch_size", "jobs", "only", "begin_ckpt", "end_ckpt", *enabled}
    now["eval"] = {name: value for name, value in now["eval"].items() if name not in same}
    if "control" in found:
        found["control"] = {k: v for k, v in found["control"].items() if not k.endswith(" (content)")}
    if changed := differences(found, now, tuple(found)):
        raise UserError(
            f"{directory} holds results of other settings ({'; '.join(changed)}): give another --eval_folder."
        )


def _short(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.001 else f"{value:.3g}"
