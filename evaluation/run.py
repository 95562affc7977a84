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
from evaluation.context import Context, build_guide
from evaluation.fold import run as run_fold
from evaluation.fold import write_json
from score_flow.build import Experiment, build_sampler, resolve
from score_flow.checkpoint import Checkpoints, target
from score_flow.config import differences
from score_flow.sharding import barrier, is_main, replicated
from score_flow.train import refuse_other_config
from score_flow.types import Params, UserError

MODEL = (
    "path",
    "network",
    "model.prediction",
    "model.time",
    "model.time_scale",
    "model.time_shift",
    "model.learn_sigma",
    "model.low_res",
    "model.input",
    "model.data_std",
    "model.class_conditional",
    "data.centered",
)


SAMPLES_FOLDER = "samples"  # of --mode=sample


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


def evaluate(run: Experiment, config: ConfigDict, workdir: Path, folder: str, names: list[str]) -> dict[str, Any]:
    """Run the jobs, write results.json and the report; returns {job: result} of the last checkpoint."""
    options, judged = config.eval, folder != SAMPLES_FOLDER  # against the data set, which drawing samples does not need
    sampler, guide, results = build_sampler(config), build_guide(run, config), {}
    chosen = checkpoints_of(workdir, options.begin_ckpt, options.end_ckpt)
    for checkpoints, step in chosen:
        params = load_params(run, config, checkpoints, step)
        directory = workdir / folder / str(step)
        refuse_other_settings(directory, config)
        results = {}
        for name in names:
            (directory / name).mkdir(parents=True, exist_ok=True)
            context = Context(run, params, step, sampler, guide, options, directory / name, judged)
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


def checkpoints_of(workdir: Path, begin: int, end: int) -> list[tuple[Checkpoints, int]]:
    """Milestones begin..end counted from 1 (0 = the newest); without any milestone, the newest resumable state."""
    milestones, meta = workdir / "checkpoints", workdir / "checkpoints-meta"
    if not any(any(folder.glob("*.manifest.json")) for folder in (milestones, meta)):
        raise UserError(
            f"no checkpoint in {workdir}: train first (--mode=train), or give the --workdir of a trained run."
        )
    opened = Checkpoints(milestones, reader=True)
    steps = opened.steps()
    if not steps:
        opened = Checkpoints(meta, reader=True)
        return [(opened, opened.newest_good())]
    if not begin and not end:
        return [(opened, opened.newest_good())]
    first, last = begin or len(steps), end or len(steps)
    if not 1 <= first <= last <= len(steps):
        raise UserError(
            f"eval.begin_ckpt={begin}, eval.end_ckpt={end}: there are {len(steps)} milestones, counted from 1."
        )
    for step in steps[first - 1 : last]:
        if problem := opened.damage(step):
            raise UserError(f"checkpoint {milestones / str(step)} is damaged ({problem}).")
    return [(opened, step) for step in steps[first - 1 : last]]


def weights_of(meta: dict[str, Any], config: ConfigDict) -> str:
    """Which weights of a checkpoint an evaluation uses; an imported file may hold one kind for both."""
    which = config.eval.ema
    kind = meta["weights"]["raw" if which < 0 else "ema"]
    return "raw" if kind == "raw" else f"EMA {config.model.ema_rate[max(which, 0)]}"


def load_params(run: Experiment, config: ConfigDict, checkpoints: Checkpoints, step: int) -> Params:
    """The wanted weights of a checkpoint, on every device; refuses one of another model."""
    saved, which = checkpoints.meta(step)["config"], config.eval.ema
    refuse_other_config(saved, config, MODEL, checkpoints.directory)
    n = len(saved["model"]["ema_rate"])
    if which >= n:
        raise UserError(f"config.eval.ema is {which}, but the checkpoint has {n} EMA rate(s), counted from 0.")
    shapes = jax.eval_shape(lambda: run.init(jax.random.key(0)))
    wanted = target(shapes, jax.tree.map(lambda _: replicated(run.mesh), shapes))
    if which < 0:
        return checkpoints.restore(step, {"params": wanted})["params"]
    return checkpoints.restore(step, {"ema": [wanted] * n})["ema"][which]


def refuse_other_settings(directory: Path, config: ConfigDict) -> None:
    """One evaluation folder holds results of one set of settings; others need another --eval_folder."""
    settings = json.loads(config.to_json_best_effort())
    # What changes results. The batch size and which jobs run do not.
    evaluation = {
        k: v
        for k, v in settings["eval"].items()
        if not k.startswith("enable") and k not in ("batch_size", "jobs", "begin_ckpt", "end_ckpt")
    }
    sections = ("sampling", "guidance", "seed")
    digest = {"eval": evaluation} | {section: settings[section] for section in sections}
    file = directory / "settings.json"
    if file.exists():
        changed = differences(json.loads(file.read_text()), digest, ("eval", *sections))
        if changed:
            raise UserError(
                f"{directory} holds results of other settings ({'; '.join(changed)}): give another --eval_folder."
            )
    elif is_main():
        directory.mkdir(parents=True, exist_ok=True)
        write_json(file, digest)
    barrier(f"settings {directory}")


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
