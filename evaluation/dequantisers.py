"""The dequantiser that a likelihood is computed with, and the training of the variational one."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from evaluation import weights
from score_flow.config.components import Component
from score_flow.config.options import Config, EvalOptions
from score_flow.data.scaling import Scaling
from score_flow.errors import UserError
from score_flow.experiment import Experiment
from score_flow.losses.dequantisation import (
    DecoderDequantiser,
    Dequantiser,
    TruncatedNormalDequantiser,
    UniformDequantiser,
    VariationalDequantiser,
)
from score_flow.runs.checkpoint import Checkpoints, target
from score_flow.runs.places import Place
from score_flow.runs.processes import decided
from score_flow.runs.sharding import replicated
from score_flow.runs.workdir import workdir as opened
from score_flow.training import dequantiser as train_deq

# Those that begin at a time with noise, at which they read levels off x.
AT_A_TIME = {"decoder": DecoderDequantiser, "truncated_normal": TruncatedNormalDequantiser}


class Chosen(NamedTuple):
    """A dequantiser, a tree of arrays for compiled functions, and what tells it from others of its name."""

    dequantise: Dequantiser
    of: dict[str, Any]  # among what a result depends on
    said: dict[str, Any]  # beside a figure


def choose(run: Experiment, options: EvalOptions, name: str, *, workdir: Place, begun: dict[str, Any]) -> Chosen:
    """Build, or load, the dequantiser of a name.

    begun: the key of the state that a broken job left, {} without one. It goes on with the variational dequantiser that
    it began with, if that is trained on meanwhile: its key says which.
    """
    if name == "variational":
        step = begun.get("dequantizer_step", 0)
        checkpoints, step = milestone(
            workdir / train_deq.FOLDER, step, "the dequantiser that this evaluation began with"
        )
        loaded, said = load(run, checkpoints, step), {"dequantizer_step": step}
        of = said | {"dequantizer": checkpoints.digest(step)} | cells(loaded.scaling)
        return Chosen(loaded, of, {"dequantisation": name} | said | cells(loaded.scaling))
    built = UniformDequantiser(run.scaling)
    if name in AT_A_TIME:
        built = AT_A_TIME[name](run.model.path, run.scaling, start_time(options, name), run.dequantised)
        return Chosen(built, {}, {"dequantisation": name})
    return Chosen(built, cells(run.scaling), {"dequantisation": name} | cells(run.scaling))


def cells(scaling: Scaling) -> dict[str, str]:
    """Say where cells of levels lie, unless they fill the range, as all did once."""
    return {"cells": "around levels"} if scaling.centred else {}


def load(run: Experiment, checkpoints: Checkpoints, step: int) -> VariationalDequantiser:
    """Load the EMA of the dequantiser that --mode=train_deq left at a step, as it was configured there."""
    config = checkpoints.meta(step)["config"]
    network = train_deq.build_network(Component.of(config["dequantizer"]), run.image_shape)
    scaling = train_deq.scaling_of(run, config.get("deq", {}).get("centred", False))
    image = jnp.zeros((1, *run.image_shape))
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), image, image)["params"])
    wanted = target(shapes, jax.tree.map(lambda _: replicated(run.mesh), shapes))
    return VariationalDequantiser(network, scaling, checkpoints.restore(step, {"ema": [wanted]})["ema"][0])


def refuse_missing(run: Experiment, options: EvalOptions, name: str, *, workdir: Place) -> None:
    """Raise UserError, with the remedy, where a run has not what the dequantiser of a name needs."""
    folder, t = workdir / train_deq.FOLDER, start_time(options, name)
    if run.real and name != "uniform":
        raise UserError(f"config.eval.dequantizer is {name!r}: real numbers have no levels; leave it at 'uniform'.")
    trained = lambda: any(folder.glob("checkpoints*/*.manifest.json"))  # noqa: E731
    if name == "variational" and not decided(f"dequantiser in {folder}", trained):
        raise UserError(
            f"no variational dequantiser in {folder}; train it: python main.py --workdir={workdir} --mode=train_deq"
        )
    if name in AT_A_TIME and (t >= options.largest_time or not run.model.path.sigma(jnp.asarray(t)) > 0):
        raise UserError(
            f"the dequantiser {name} reads levels off x at t = {t}; give a config.eval.decoder_time with noise, below "
            f"config.eval.largest_time = {options.largest_time}."
        )


def start_time(options: EvalOptions, name: str) -> float:
    """Return the time from which the flow carries what a dequantiser draws."""
    return options.decoder_time if name in AT_A_TIME and options.decoder_time else options.smallest_time


def train_for(run: Experiment, config: Config, workdir: Place) -> None:
    """Train the variational dequantiser of a run in a folder of its own; goes on from what is there."""
    if run.real:
        raise UserError("--mode=train_deq trains a dequantiser of pixel levels, and the data are real numbers.")
    checkpoints, step = milestone(workdir, config.deq.score_step, f"config.deq.score_step = {config.deq.score_step}")
    refuse_init(config, checkpoints.meta(step).get("config", {}))
    score = weights.load_params(run, weights.which_of(config), checkpoints, step)
    config = train_deq.settings(config, step)
    run = dataclasses.replace(run, loss=train_deq.dequantisation(run, config, score))
    with opened(workdir / train_deq.FOLDER, exclusive=True) as folder:
        train_deq.train_dequantiser(run, config, folder)


def refuse_init(config: Config, saved: dict[str, Any]) -> None:
    """Raise UserError where a dequantiser is asked to begin with other weights than its own."""
    asked = config.training.init
    if asked and asked != saved.get("training", {}).get("init"):
        raise UserError(
            f"config.training.init is {asked!r}, with which a model may begin, and a dequantiser not: leave it out."
        )


def milestone(workdir: Place, step: int, what: str = "") -> tuple[Checkpoints, int]:
    """Find the milestone of a step, 0 = the newest; raises UserError where there is none."""
    checkpoints, newest = weights.checkpoints_of(workdir, 0, 0)[-1]
    if not step:
        return checkpoints, newest
    if step not in checkpoints.steps() or (problem := checkpoints.damage(step)):
        wrong = f"is damaged ({problem})" if step in checkpoints.steps() else f"is none of {checkpoints.steps()}"
        raise UserError(f"{what} {wrong}, the checkpoints in {checkpoints.directory}.")
    return checkpoints, step
