"""Which weights of which checkpoint of a run are evaluated."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from score_flow.config.options import Config
from score_flow.experiment import Experiment
from score_flow.runs.checkpoint import FOLDERS, Checkpoints, good_states, target
from score_flow.runs.processes import is_main
from score_flow.runs.sharding import replicated, to_host
from score_flow.training.ema import combination, gamma_of, n_averages
from score_flow.training.saver import refuse_other_config
from score_flow.training.steps import all_finite
from score_flow.types import NonFinite, Params, UserError

LARGEST_ERROR = 0.1  # of a reconstructed average's profile, a share of its norm
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


def checkpoints_of(workdir: Path, begin: int, end: int) -> list[tuple[Checkpoints, int]]:
    """Milestones begin..end counted from 1; (0, 0): the newest one, else the newest good state.

    A resumable state is taken where there is no milestone, or the newest is damaged, which is said then. Raises
    UserError where there is none, or where a milestone that was asked for is damaged.
    """
    meta, milestones = (Checkpoints(workdir / name) for name in FOLDERS)
    steps = milestones.steps()
    if not steps and not meta.steps():
        raise UserError(
            f"no checkpoint in {workdir}: train first (--mode=train), or give the --workdir of a trained run."
        )
    if not steps or not (begin or end):
        return [next(good_states(milestones, meta, first=(milestones, steps[-1]) if steps else None))]
    first, last = begin or len(steps), end or len(steps)
    if not 1 <= first <= last <= len(steps):
        raise UserError(
            f"eval.begin_ckpt={begin}, eval.end_ckpt={end}: there are {len(steps)} milestones, counted from 1."
        )
    for step in steps[first - 1 : last]:
        if problem := milestones.damage(step):
            raise UserError(f"checkpoint {milestones.directory / str(step)} is damaged ({problem}).")
    return [(milestones, step) for step in steps[first - 1 : last]]


def weights_of(meta: dict[str, Any], config: Config) -> str:
    """Which weights of a checkpoint an evaluation uses, named as they were trained: by the checkpoint's own rates.

    An imported file may hold one kind for both. Raises UserError where the checkpoint has not so many averages.
    """
    which, model = config.eval.ema, meta.get("config", {}).get("model", {})
    rates, widths = (model.get(name, getattr(config.model, name)) for name in ("ema_rate", "ema_std"))
    if config.eval.ema_std:
        return f"EMA power {config.eval.ema_std}, reconstructed"
    names = [f"EMA {rate}" for rate in rates] + [f"EMA power {std}" for std in widths]
    if which >= len(names):
        raise UserError(f"config.eval.ema is {which}, but the checkpoint has {len(names)} EMA(s), counted from 0.")
    kind = meta.get("weights", {"raw": "raw", "ema": "ema"})["raw" if which < 0 else "ema"]
    return "raw" if kind == "raw" else names[max(which, 0)]


def identity(config: Config, checkpoints: Checkpoints, step: int) -> dict[str, str]:
    """What the wanted weights of a checkpoint are; raises UserError for those of another model."""
    meta = checkpoints.meta(step)
    refuse_other_config(meta.get("config"), config, MODEL, checkpoints.directory)
    parts = [s for s in checkpoints.steps() if s <= step] if config.eval.ema_std else [step]
    digests = [checkpoints.digest(s) for s in parts]
    return {"weights": weights_of(meta, config), "checkpoint": ", ".join(digests)}


def load_params(run: Experiment, config: Config, checkpoints: Checkpoints, step: int) -> Params:
    """The wanted weights of a checkpoint, on every device; refuses one of another model."""
    saved, which = checkpoints.meta(step).get("config"), config.eval.ema
    refuse_other_config(saved, config, MODEL, checkpoints.directory)
    n = n_averages(saved["model"])
    if which >= n:
        raise UserError(f"config.eval.ema is {which}, but the checkpoint has {n} EMA(s), counted from 0.")
    shapes = jax.eval_shape(lambda: run.init(jax.random.key(0)))
    wanted = target(shapes, jax.tree.map(lambda _: replicated(run.mesh), shapes))
    if config.eval.ema_std:
        params = reconstruct(checkpoints, step, wanted, config.eval.ema_std)
    elif which < 0:
        params = checkpoints.restore(step, {"params": wanted})["params"]
    else:
        params = checkpoints.restore(step, {"ema": [wanted] * n})["ema"][which]
    if not to_host(all_finite(params)):
        raise NonFinite(f"the weights in {checkpoints.directory / str(step)} are not finite: train again.")
    return params


def reconstruct(checkpoints: Checkpoints, step: int, wanted: PyTree, std: float) -> Params:
    """The power-function average of relative width std at a step, of those in all milestones up to it.

    Raises UserError where they cannot make it: there are none, it is too narrow, or much wider than all.
    """
    sources = [s for s in checkpoints.steps() if s <= step]
    metas = [checkpoints.meta(s) for s in sources]
    models, where = [meta["config"]["model"] for meta in metas], f"config.eval.ema_std = {std}"
    if any("imported" in meta or not model.get("ema_std") for meta, model in zip(metas, models, strict=True)):
        raise UserError(f"{where} is made of the averages of model.ema_std, which {checkpoints.directory} has not.")
    for s in sources:
        if problem := checkpoints.damage(s):
            raise UserError(f"checkpoint {checkpoints.directory / str(s)} is damaged ({problem}).")
    found = [(s, width) for s, model in zip(sources, models, strict=True) for width in model["ema_std"]]
    steps, gammas = (np.array(column, float) for column in zip(*((s, gamma_of(w)) for s, w in found), strict=True))
    weights, error = combination(steps, gammas, float(step), gamma_of(std))
    if error > LARGEST_ERROR:
        raise UserError(
            f"{where} cannot be made of widths {sorted({w for _, w in found})} at steps {sources}: its profile would "
            f"be off by {error:.0%}, allowed are {LARGEST_ERROR:.0%}. Ask for a width between them, or train with more "
            "milestones (training.snapshot_freq)."
        )
    if is_main():
        print(f"EMA of width {std} from {len(found)} averages; its profile is off by {error:.2%}", flush=True)
    total = jax.tree.map(lambda leaf: np.zeros(leaf.shape), wanted)
    for s, model in zip(sources, models, strict=True):
        first = len(model["ema_rate"])
        averages = to_host(checkpoints.restore(s, {"ema": [wanted] * n_averages(model)})["ema"][first:])
        for average in averages:
            weight, weights = weights[0], weights[1:]
            total = jax.tree.map(lambda sum_, leaf, w=weight: sum_ + w * leaf.astype(float), total, average)
    return jax.tree.map(lambda leaf, like: jax.device_put(leaf.astype(like.dtype), like.sharding), total, wanted)
