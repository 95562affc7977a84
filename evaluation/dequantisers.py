"""The dequantiser that a likelihood is computed with, and the training of the variational one."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from evaluation.context import Context
from evaluation.fold import state_key
from evaluation.weights import checkpoints_of, load_params
from score_flow.config.components import Component
from score_flow.config.options import Config, EvalOptions
from score_flow.experiment import Experiment
from score_flow.losses.dequantisation import DecoderDequantiser, Dequantiser, UniformDequantiser, VariationalDequantiser
from score_flow.runs.checkpoint import Checkpoints, target
from score_flow.runs.sharding import replicated
from score_flow.runs.workdir import workdir as opened
from score_flow.training import dequantiser as train_deq
from score_flow.types import UserError


def build_dequantizer(context: Context, name: str) -> Dequantiser:
    """The dequantiser of a name that `dequantising` put into a context, a tree of arrays for compiled functions."""
    run, options = context.run, context.options
    if name == "variational":
        return load(run, context.workdir, context.key["dequantizer_step"])
    if name == "decoder":
        return DecoderDequantiser(run.model.path, run.scaling, start_time(options, name), run.dequantised)
    return UniformDequantiser(run.scaling)


def described(context: Context, name: str) -> dict[str, Any]:
    """What is said of the dequantiser beside a figure."""
    pinned = {"dequantizer_step": context.key["dequantizer_step"]} if name == "variational" else {}
    return {"dequantisation": name} | pinned


def dequantising(context: Context, name: str) -> Context:
    """The context of a job that depends on the dequantiser of a name too.

    A broken job goes on with the one that it began with, if that is trained on meanwhile: its state says which.
    """
    if name != "variational":
        return context
    folder = context.workdir / train_deq.FOLDER
    begun = (state_key(context.directory) or {}).get("dequantizer_step", 0)
    checkpoints, step = milestone(folder, begun, "the dequantiser that this evaluation began with")
    of = {"dequantizer_step": step, "dequantizer": checkpoints.digest(step)}
    return dataclasses.replace(context, key=context.key | of)


def load(run: Experiment, workdir: Path, step: int) -> VariationalDequantiser:
    """The EMA of the dequantiser of a step that --mode=train_deq left in a run's folder, as it was configured there."""
    checkpoints, step = milestone(workdir / train_deq.FOLDER, step, "the dequantiser")
    network = train_deq.build_network(Component.of(checkpoints.meta(step)["config"]["dequantizer"]), run.image_shape)
    image = jnp.zeros((1, *run.image_shape))
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), image, image)["params"])
    wanted = target(shapes, jax.tree.map(lambda _: replicated(run.mesh), shapes))
    return VariationalDequantiser(network, run.scaling, checkpoints.restore(step, {"ema": [wanted]})["ema"][0])


def refuse_missing(run: Experiment, options: EvalOptions, workdir: Path, name: str) -> None:
    """Raise UserError, with the remedy, where a run has not what the dequantiser of a name needs."""
    folder, t = workdir / train_deq.FOLDER, start_time(options, name)
    if name == "variational" and not any(folder.glob("checkpoints*/*.manifest.json")):
        raise UserError(
            f"no variational dequantiser in {folder}; train it: python main.py --workdir={workdir} --mode=train_deq"
        )
    if name == "decoder" and (t >= options.largest_time or not run.model.path.sigma(jnp.asarray(t)) > 0):
        raise UserError(
            f"the decoder reads levels off x at t = {t}; give a config.eval.decoder_time with noise, below "
            f"config.eval.largest_time = {options.largest_time}."
        )


def start_time(options: EvalOptions, name: str) -> float:
    """The time from which the flow carries what a dequantiser draws."""
    return options.decoder_time if name == "decoder" and options.decoder_time else options.smallest_time


def train_for(run: Experiment, config: Config, workdir: Path) -> None:
    """Train the variational dequantiser of a run in a folder of its own; goes on from what is there."""
    checkpoints, step = milestone(workdir, config.deq.score_step, f"config.deq.score_step = {config.deq.score_step}")
    score, config = load_params(run, config, checkpoints, step), train_deq.settings(config, step)
    with opened(workdir / train_deq.FOLDER, exclusive=True) as folder:
        train_deq.train_dequantiser(run, config, folder, score)


def milestone(workdir: Path, step: int, what: str = "") -> tuple[Checkpoints, int]:
    """The milestone of a step, 0 = the newest; raises UserError where there is none."""
    checkpoints, newest = checkpoints_of(workdir, 0, 0)[-1]
    if not step:
        return checkpoints, newest
    if step not in checkpoints.steps() or (problem := checkpoints.damage(step)):
        wrong = f"is damaged ({problem})" if step in checkpoints.steps() else f"is none of {checkpoints.steps()}"
        raise UserError(f"{what} {wrong}, the checkpoints in {checkpoints.directory}.")
    return checkpoints, step
