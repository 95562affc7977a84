"""Training of a variational dequantiser for a run (`--mode=train_deq`): the training of models, of another loss."""

import dataclasses
from functools import partial

from score_flow.config.components import Component, call
from score_flow.config.options import Config
from score_flow.data.preprocessing import Preprocessing
from score_flow.data.scaling import Scaling
from score_flow.errors import UserError, check_choice
from score_flow.experiment import Experiment
from score_flow.losses.base import Noising
from score_flow.losses.dequantisation import Dequantisation
from score_flow.losses.simple import Denoising
from score_flow.losses.weightings import likelihood
from score_flow.networks.flowpp import PRESETS, FlowppDequantiser
from score_flow.process.grid import finite_log_snr, noisy_end
from score_flow.process.times import log_snr
from score_flow.runs.places import Place
from score_flow.training.accepting import FIXED
from score_flow.training.run import train
from score_flow.types import Params

FOLDER = "dequantizer"  # of its checkpoints, in the run's
NETWORKS = PRESETS | {
    "small": FlowppDequantiser(
        width=32, components=8, blocks=1, block=("conv", "norm"), context_width=16, context_blocks=1
    )
}


def build_network(section: Component, image_shape: tuple[int, int, int]) -> FlowppDequantiser:
    """Build the flow that config.dequantizer names, `auto` by the size of images; other entries are its arguments."""
    check_choice("config.dequantizer.name", section.name, ["auto", *NETWORKS])
    side = max(image_shape[:2])
    by_size = "small" if side < 32 else "cifar10" if side < 64 else "imagenet64"
    network = NETWORKS[by_size if section.name == "auto" else section.name]
    preset = {f.name: getattr(network, f.name) for f in dataclasses.fields(network) if f.name not in ("parent", "name")}
    return call(partial(FlowppDequantiser, **preset), section, "config.dequantizer")


def scaling_of(run: Experiment, centred: bool) -> Scaling:
    """Return the map of levels whose cells the flow fills: around exact levels, or over the range.

    Raises UserError where the model was trained on noise in cells of the other kind.
    """
    if centred and run.dequantised:
        raise UserError("config.deq.centred is of exact levels; this model has config.data.uniform_dequantization.")
    return dataclasses.replace(run.scaling, centred=centred)


def dequantisation(run: Experiment, config: Config, score: Params) -> Dequantisation:
    """Return the dequantiser's loss under the weights of a run's model; raises UserError for an infinite bound."""
    path, t_min = run.model.path, config.training.smallest_time
    t_max = noisy_end(path, config.training.largest_time)
    finite_log_snr(path, t_min)
    prepare = Preprocessing(run.scaling, run.conditioning, run.dequantised, config.data.random_flip)
    noising = Noising(prepare, log_snr(path, t_min, t_max))
    matching = Denoising(run.model, noising, likelihood, "sum")
    network = build_network(config.dequantizer, run.image_shape)
    scaling = scaling_of(run, config.deq.centred)
    return Dequantisation(network, scaling, prepare.levels, matching, t_min=t_min, t_max=t_max, score=score)


def settings(config: Config, score_step: int) -> Config:
    """Return the config as its dequantiser's training reads it."""
    return dataclasses.replace(
        config,
        training=dataclasses.replace(
            config.training, n_iters=config.deq.n_iters or config.training.n_iters, snapshot_sampling=False, init=""
        ),
        model=dataclasses.replace(config.model, ema_rate=(config.deq.ema_rate,), ema_std=()),
        deq=dataclasses.replace(config.deq, score_step=score_step, centred=config.deq.centred or config.data.inset),
    )


def train_dequantiser(run: Experiment, config: Config, folder: Place) -> None:
    """Train a run with this loss to the end of `settings`, from the newest good checkpoint of the folder if any."""
    train(run, config, folder, lambda step, params: None, (*FIXED, "dequantizer", "deq.score_step", "deq.centred"))
