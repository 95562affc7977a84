"""Which weights of which checkpoint of a run are evaluated, and the wait for those that training has yet to save."""

import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from score_flow.config.options import Config
from score_flow.errors import NonFinite, Preempted, UserError
from score_flow.experiment import Experiment
from score_flow.model import OWN, PROJECTOR
from score_flow.runs.checkpoint import FOLDERS, Checkpoints, good_states, target
from score_flow.runs.places import Place
from score_flow.runs.preemption import Preemption
from score_flow.runs.processes import decided, is_main
from score_flow.runs.sharding import replicated, to_host
from score_flow.training.ema import combination, gamma_of, n_averages
from score_flow.training.saver import refuse_other_config
from score_flow.training.steps import all_finite
from score_flow.types import Params

INTERVAL = 5.0  # seconds between two looks for a milestone that training has yet to save
LARGEST_ERROR = 0.1  # of a reconstructed average's profile, a share of its norm
MODEL = (
    "path",
    "network",
    "model.prediction",
    "model.precision",
    "model.time",
    "model.time_scale",
    "model.time_shift",
    "model.learn_sigma",
    "model.low_res",
    "model.input",
    "model.data_std",
    "model.class_conditional",
    "model.guidance",
    "model.span",
    "model.consistency",
    "data.centered",
    "data.inset",
    "training.contrast",
)


def checkpoints_of(workdir: Place, begin: int, end: int) -> list[tuple[Checkpoints, int]]:
    """Find milestones begin..end counted from 1; (0, 0): the newest one, else the newest good state.

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


def coming(workdir: Place, begin: int, end: int, *, preemption: Preemption) -> Iterator[tuple[Checkpoints, int]]:
    """Yield milestones begin..end counted from 1 (begin = 0: the first; end = 0: the one at which training ends).

    Raises Preempted when asked to stop, and UserError when training ended before milestone `end`.
    """
    if 0 < end < begin:
        raise UserError(f"eval.begin_ckpt={begin}, eval.end_ckpt={end}: the first must not come after the last.")
    number = begin or 1
    while True:
        wait_for(number, workdir / "checkpoints", preemption)
        [(checkpoints, step)] = checkpoints_of(workdir, number, number)
        yield checkpoints, step
        trained = step >= checkpoints.meta(step)["config"]["training"]["n_iters"]
        if number == end or (trained and not end):
            return
        if trained:
            raise UserError(f"eval.end_ckpt={end}: training ended with milestone {number}, at step {step}.")
        number += 1


def wait_for(number: int, milestones: Place, preemption: Preemption) -> None:
    """Return, on every process, once the main one sees so many milestones; the others look at no file meanwhile."""
    announced = False
    seen = lambda: len(list(milestones.glob("*.manifest.json"))) >= number  # noqa: E731
    while not decided(f"milestone in {milestones}", seen):
        if is_main() and not announced:
            print(f"waiting for milestone {number} in {milestones}, with a look every {INTERVAL:g} s", flush=True)
        announced = True
        if preemption.agreed():
            raise Preempted(f"stopped while waiting for milestone {number}; run the same command to go on.")
        time.sleep(INTERVAL)


def state_at(workdir: Place, step: int | None) -> tuple[Checkpoints, int]:
    """Find the checkpoint of a step, milestones first; the newest good one for None. Raises UserError without it."""
    if step is None:
        return checkpoints_of(workdir, 0, 0)[-1]
    states = [Checkpoints(workdir / name) for name in reversed(FOLDERS)]
    saved = next((state for state in states if step in state.steps()), None)
    if saved is None:
        there = sorted({step for state in states for step in state.steps()})
        has = ", ".join(map(str, there)) or "none"
        raise UserError(f"{workdir} has no checkpoint of step {step!r}; it has: {has}.")
    if problem := saved.damage(step):
        raise UserError(f"checkpoint {saved.directory / str(step)} is damaged ({problem}).")
    return saved, step


class Which(NamedTuple):
    """Which weights of a checkpoint are wanted, and the settings of the run that it has to be of."""

    ema: int  # an average by its number; -1: the raw weights
    ema_std: float  # not 0: the average of this width instead
    settings: dict[str, Any]  # a config as JSON reads it


def which_of(config: Config) -> Which:
    """Read off a config which weights its evaluations are of."""
    return Which(config.eval.ema, config.eval.ema_std, json.loads(config.to_json()))


def weights_of(meta: dict[str, Any], which: Which) -> str:
    """Name the wanted weights of a checkpoint as they were trained: by the checkpoint's own rates.

    An imported file may hold one kind for both. Raises UserError where the checkpoint has not so many averages.
    """
    model = which.settings["model"] | meta.get("config", {}).get("model", {})
    if which.ema_std:
        return f"EMA power {which.ema_std}, reconstructed"
    names = [f"EMA {rate}" for rate in model["ema_rate"]] + [f"EMA power {std}" for std in model["ema_std"]]
    refuse_absent(which, len(names))
    kind = meta.get("weights", {"raw": "raw", "ema": "ema"})["raw" if which.ema < 0 else "ema"]
    return "raw" if kind == "raw" else names[max(which.ema, 0)]


def refuse_absent(which: Which, n: int) -> None:
    """Raise UserError where a checkpoint has too few averages."""
    if which.ema >= n:
        raise UserError(f"config.eval.ema is {which.ema}, but the checkpoint has {n} EMA(s), counted from 0.")


def identity(which: Which, checkpoints: Checkpoints, step: int) -> dict[str, str]:
    """Say what the wanted weights of a checkpoint are; raises UserError for those of another model."""
    meta = checkpoints.meta(step)
    refuse_other_config(meta.get("config"), which.settings, MODEL, checkpoints.directory)
    parts = [s for s in checkpoints.steps() if s <= step] if which.ema_std else [step]
    digests = [checkpoints.digest(s) for s in parts]
    return {"weights": weights_of(meta, which), "checkpoint": ", ".join(digests)}


def load_params(run: Experiment, which: Which, checkpoints: Checkpoints, step: int) -> Params:
    """Load the wanted weights of a checkpoint, on every device; refuses one of another model."""
    saved = checkpoints.meta(step).get("config")
    refuse_other_config(saved, which.settings, MODEL, checkpoints.directory)
    n = n_averages(saved["model"])
    refuse_absent(which, n)
    shapes = jax.eval_shape(lambda: run.init(jax.random.key(0)))
    unread = checkpoints.layout(step, "params").get(OWN, {}).get(PROJECTOR)
    if unread is not None:
        shapes |= {OWN: shapes.get(OWN, {}) | {PROJECTOR: unread}}
    wanted = target(shapes, jax.tree.map(lambda _: replicated(run.mesh), shapes))
    if which.ema_std:
        params = reconstruct(checkpoints, step, wanted, std=which.ema_std)
    elif which.ema < 0:
        params = checkpoints.restore(step, {"params": wanted})["params"]
    else:
        params = checkpoints.restore(step, {"ema": [wanted] * n})["ema"][which.ema]
    if not to_host(all_finite(params)):
        raise NonFinite(f"the weights in {checkpoints.directory / str(step)} are not finite: train again.")
    return without_projector(params)


def without_projector(params: PyTree) -> PyTree:
    """Return parameters without those that training alone has a use for."""
    own = {name: part for name, part in params.get(OWN, {}).items() if name != PROJECTOR}
    return {name: part for name, part in params.items() if name != OWN} | ({OWN: own} if own else {})


def reconstruct(checkpoints: Checkpoints, step: int, wanted: PyTree, *, std: float) -> Params:
    """Make the power-function average of relative width std at a step, of those in all milestones up to it.

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
