"""What --mode names: each mode with what it does, loading what it needs when it runs."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from score_flow.config.options import Config
    from score_flow.experiment import Experiment

EXIT_NOT_REPRODUCED = 1


class Mode(NamedTuple):
    """What a mode does with the objects of a run, loading what it needs.

    run: (experiment, config, workdir, flags) -> an exit code other than 0, or None; None: it makes its own config and
    experiment, by `alone`, (flags, overrides) -> the same. exclusive: it holds the workdir against a second run.
    watches: it may wait for milestones. elsewhere: it takes a --topology, and needs no workdir.
    """

    about: str
    run: Callable[["Experiment", "Config", Path, argparse.Namespace], int | None] | None
    exclusive: bool = False
    watches: bool = False
    alone: Callable[[argparse.Namespace, list[str]], int | None] | None = None
    elsewhere: bool = False


def train(run: "Experiment", config: "Config", workdir: Path, options: argparse.Namespace) -> None:
    """Train, with a sheet of samples at each milestone; a mistake in what evaluation will need is answered now."""
    from evaluation.context import build_guide, taught
    from evaluation.modes.snapshot import cheap_sampler, sheet
    from evaluation.modes.starting import beginning
    from evaluation.plan.compiling import least_seconds
    from sampling.building import build_sampler
    from score_flow.training.run import train

    guide, run = build_guide(run, config), taught(run)
    build_sampler(config)
    drawn = sheet(run, cheap_sampler(config.sampling), guide, workdir / "samples")
    train(run, config, workdir, drawn, least_seconds=least_seconds(run, config), beginning=beginning(run, config))


def train_deq(run: "Experiment", config: "Config", workdir: Path, options: argparse.Namespace) -> None:
    """Train a dequantiser for the run's model."""
    from evaluation.dequantisers import train_for

    train_for(run, config, workdir)


def evaluate(run: "Experiment", config: "Config", workdir: Path, options: argparse.Namespace) -> None:
    """The jobs of eval, sample or control."""
    from evaluation.run import evaluate

    evaluate(run, config, workdir, options.mode, options.eval_folder, options.watch)


def reproduce(run: "Experiment", config: "Config", workdir: Path, options: argparse.Namespace) -> int | None:
    """Evaluate as a preset says, and say whether its figures are reached."""
    from evaluation.modes.reproduce import reproduce

    passed = reproduce(run, config, workdir, options.config or "", options.eval_folder)
    return None if passed else EXIT_NOT_REPRODUCED


def stats(run: "Experiment", config: "Config", workdir: Path, options: argparse.Namespace) -> None:
    """Write reference statistics."""
    from evaluation.modes.statistics import write_statistics

    write_statistics(run, config, workdir)


def encode(run: "Experiment", config: "Config", workdir: Path, options: argparse.Namespace) -> None:
    """Write the latents of a data set."""
    from evaluation.modes.encode import encode

    encode(run, config, workdir)


def pack(run: "Experiment", config: "Config", workdir: Path, options: argparse.Namespace) -> None:
    """Write a data set's images into one memory map."""
    from evaluation.modes.pack import pack

    pack(run, config, workdir)


def import_checkpoint(options: argparse.Namespace, overrides: list[str]) -> None:
    """Published weights into a workdir."""
    from evaluation.modes.checking import check_components
    from evaluation.modes.importing import import_into, open_published
    from score_flow.build import experiment
    from score_flow.config.loading import load
    from score_flow.errors import UserError
    from score_flow.runs.workdir import workdir as opened

    if not options.checkpoint:
        raise UserError("--mode=import needs --checkpoint=FILE.")
    published = open_published(options.checkpoint)
    settings = published.settings(options.reference_config, recipe=bool(options.config))
    config = check_components(load(options.config, overrides, settings))
    run = experiment(config)
    with opened(options.workdir, exclusive=True) as workdir:
        print(import_into(workdir, published, run, config), flush=True)


def plan(options: argparse.Namespace, overrides: list[str]) -> None:
    """What a training step takes on a machine; nothing is written, and of a workdir the config and the data's shape."""
    from evaluation.modes.checking import check_components
    from evaluation.modes.plan import plan
    from evaluation.plan.chips import HERE, machine
    from score_flow.config.loading import load
    from score_flow.errors import UserError
    from score_flow.runs import processes
    from score_flow.training.saver import remembered

    if not (options.config or options.workdir):
        raise UserError("--mode=plan needs --config=RECIPE, or --workdir=FOLDER with the config of a run.")
    config = check_components(load(options.config or config_of(options.workdir), overrides))
    topology = HERE if options.topology is None else options.topology
    if topology == HERE:
        processes.initialise()
    plan(config, machine(topology), remembered(options.workdir) if options.workdir else None)


def compare(options: argparse.Namespace, overrides: list[str]) -> None:
    """Several runs on one page."""
    from evaluation.modes.compare import compare

    settings = [*overrides, *(["--config"] if options.config else [])]
    print(f"comparison: {compare(options.workdirs, options.eval_folder, settings)}", flush=True)


MODES = {
    "train": Mode("", train, exclusive=True),
    "train_deq": Mode("a variational dequantiser for a trained model", train_deq),
    "eval": Mode("loss, samples, bits/dim, report", evaluate, watches=True),
    "sample": Mode("samples only", evaluate, watches=True),
    "control": Mode("samples of which something is known (config.control: inpainting, ...)", evaluate, watches=True),
    "import": Mode("published weights", None, alone=import_checkpoint),
    "reproduce": Mode("is the published figure of --config=configs/reproduce/NAME.py reached", reproduce),
    "stats": Mode("reference statistics for the job fid", stats),
    "encode": Mode("a data set's latents, for a latent model's training", encode),
    "plan": Mode("memory, time and batch of training on --topology", None, alone=plan, elsewhere=True),
    "compare": Mode("trained runs on one page, --workdir=A --workdir=B", None, alone=compare),
    "pack": Mode("a data set's images in one memory map, for data.source.name = packed", pack),
}


def config_of(workdir: str) -> str:
    """The file of the config that a run left in its workdir."""
    from score_flow.errors import UserError

    if not (file := config_in(workdir)):
        raise UserError(f"give --config=RECIPE: {workdir} holds no config.json of an earlier run.")
    return file


def config_in(workdir: str) -> str | None:
    from score_flow.runs import places

    file = places.place_of(workdir) / "config.json"
    return str(places.local(file)) if file.is_file() else None
