"""The command line, `score-flow` or main.py: flags, modes, exit codes."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from evaluation.modes import habits

if TYPE_CHECKING:
    from score_flow.config.options import Config
    from score_flow.experiment import Experiment

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

EXIT_BUG = EXIT_NOT_REPRODUCED = 1
EXIT_USER_ERROR, EXIT_NON_FINITE = 2, 3  # preemption.py and peers.py have 75 and 76
ABOUT = "Train, sample and evaluate: %(prog)s --config=configs/digits.py --workdir=runs/digits --mode=train"
EPILOG = """exit codes: 0 done; 1 reproduce: another figure than the expected one; 2 a mistake in flags,
config, data or files, a full disk, or too little memory (one line says which); 3 the loss, a weight or a result was not
finite; 75 stopped by SIGTERM or Ctrl-C with everything saved (by a second SIGTERM: at once, with what was saved
before): run the same command again to go on; 76 another process of this run is lost: start all of them again.

several processes: those of SLURM (srun), OpenMPI (mpirun), a TPU slice or several join each other; else set
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID for each. SCORE_FLOW_ALONE=1: one process all the same.

"""


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


# ---- modes


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


# ---- flags


class Help(argparse.Action):
    """--help: flags, exit codes, every field of a config, every argument of every plug-in, none of which is loaded.

    Beside a --config, the values that it gives them, with those of the --config.key=value overrides.
    """

    def __init__(self, *arguments, argv: list[str], **named) -> None:
        super().__init__(*arguments, **named)
        self.argv = argv

    def __call__(self, parser, *arguments) -> None:
        from score_flow.config.loading import explain, load, resolved
        from score_flow.errors import UserError

        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        finder.add_argument("--config")
        found, others = finder.parse_known_args(self.argv)
        overrides = [flag for flag in others if flag.startswith("--config.")]
        try:
            parser.epilog = EPILOG + (resolved(load(found.config, overrides)) if found.config else explain())
        except UserError as error:
            parser.exit(EXIT_USER_ERROR, f"\nerror: {error}\n")
        parser.print_help()
        parser.exit()


def flags(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags, and the --config.key=value overrides."""
    parser = argparse.ArgumentParser(
        description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, add_help=False
    )
    add = parser.add_argument
    add("-h", "--help", action=Help, nargs=0, argv=argv, help="all flags, fields, plug-ins; of a --config, its values")
    add(
        "--config",
        help="recipe: a Python file with get_config(), e.g. configs/digits.py; default: the config of the workdir",
    )
    add(
        "--workdir", action="append", dest="workdirs",
        help="folder of the run, gs://BUCKET/... and s3://BUCKET/... too; a run goes on where it stopped (plan: none)",
    )  # fmt: skip
    about = "; ".join(": ".join(filter(None, (name, mode.about))) for name, mode in MODES.items())
    add("--mode", required=True, choices=MODES, help=about)
    add("--checkpoint", help="import: the published file (or a folder in diffusers' layout)")
    add("--reference_config", help="import: the settings that its own project trained the network with, as .json")
    add(
        "--eval_folder", default="",
        help="sub-folder of workdir for results (default, by mode: eval, samples, control)",
    )  # fmt: skip
    add(
        "--watch", action="store_true",
        help="eval: wait for milestones eval.begin_ckpt to end_ckpt (0: the first; the last of training), each in turn",
    )  # fmt: skip
    add(
        "--topology",
        help="plan: machines to compile for, which need not be there: v5e:2x4, v6e:4x4, v5p:2x2x2, a100:8, h100:8, "
        "h200:16, or here (default)",
    )
    options, overrides = parser.parse_known_args(argv)
    options.workdir = options.workdirs[-1] if options.workdirs else None
    return options, overrides


# ---- the run


def run(options: argparse.Namespace, overrides: list[str]) -> int | None:
    """Build what the config says and do what the mode says; returns an exit code other than 0, if any."""
    from evaluation.modes.checking import check_arguments, check_components
    from score_flow.config.loading import load
    from score_flow.errors import UserError
    from score_flow.runs.places import path_of

    mode = MODES[options.mode]
    if options.workdir is None and not mode.elsewhere:
        raise UserError(f"--mode={options.mode} needs --workdir=FOLDER.")
    if options.workdir is not None:
        options.workdir = str(path_of(options.workdir))
    if options.topology is not None and not mode.elsewhere:
        raise UserError(f"--topology says what to plan for: it does not go with --mode={options.mode}.")
    if len(options.workdirs or ()) > 1 and options.mode != "compare":
        raise UserError(f"--workdir is given {len(options.workdirs)} times: only --mode=compare takes several.")
    if options.watch and not mode.watches:
        raise UserError(f"--watch waits for what is to be evaluated: it does not go with --mode={options.mode}.")
    if mode.alone:
        return mode.alone(options, overrides)
    from score_flow.runs import launchers

    read = lambda: check_arguments(load(options.config or config_of(options.workdir), overrides))  # noqa: E731
    found = options.config or config_in(options.workdir) or not launchers.launch_of(os.environ)
    config = read() if found else None  # mistakes are answered before jax starts, but where others may see another disk
    from score_flow.runs import processes, programs, together

    peers = processes.initialise()
    kept = None if peers else programs.keep()  # of several, some would load what others compile together
    if peers:
        peers.where = lambda: newest_saved(options.workdir)
        together.refuse_unshared(options.workdir)
        config = together.same_config(options.mode, lambda: config or read())
    from score_flow.build import experiment
    from score_flow.runs.workdir import workdir as opened
    from score_flow.training.saver import remembered

    built = experiment(config := check_components(config), remembered(options.workdir))
    with opened(options.workdir, exclusive=mode.exclusive) as workdir:
        if kept:
            print(kept, flush=True)
        return mode.run(built, config, workdir, options)


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


def newest_saved(workdir: str) -> str:
    """What is said of a run's newest state when a process is lost."""
    from score_flow.runs.checkpoint import newest_step

    step = newest_step(workdir)
    return f"; the newest state is of step {step}" if step is not None else "; nothing was saved yet"


def main(argv: list[str] | None = None) -> int:
    """The exit code of a run, of the command line's flags if none are given; mistakes are one line, no traceback."""
    argv = sys.argv[1:] if argv is None else argv
    if said := habits.answer(argv):
        return report(said, EXIT_USER_ERROR)
    options, overrides = flags(argv)
    from score_flow.errors import NonFinite, Preempted, UserError, one_line
    from score_flow.runs import files, memory, peers, stores

    sys.unraisablehook = files.quiet(sys.__unraisablehook__)
    try:
        return run(options, overrides) or 0
    except NonFinite as error:
        return report(error, EXIT_NON_FINITE)
    except Preempted as error:
        from score_flow.runs.preemption import EXIT_PREEMPTED

        return report(error, EXIT_PREEMPTED, "stopped")
    except UserError as error:
        peers.leave_if_broken(error)  # a save that another process left is none that the disk refused
        return report(error, EXIT_USER_ERROR)
    except OSError as error:
        return report(files.of_system(error, options.workdir or "."), EXIT_USER_ERROR)
    except Exception as error:
        peers.leave_if_broken(error)
        if memory.is_exhausted(error):
            return report(memory.advice(error, options.mode), EXIT_USER_ERROR)
        if files.is_full(error) or stores.is_answer(error):
            return report(files.of_system(error, options.workdir or "."), EXIT_USER_ERROR)
        if not peers.WATCH:
            raise
        traceback.print_exc()
        return report(one_line(error), EXIT_BUG)


def report(what: object, code: int, kind: str = "error") -> int:
    """Say in one line why the run ends, and return its exit code."""
    from score_flow.runs import peers

    print(f"\n{kind}: {what}", file=sys.stderr, flush=True)
    peers.fail(code, f"{kind}: {what}")
    return code
