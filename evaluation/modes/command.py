"""The command line, `score-flow` or main.py: flags, a run, exit codes."""

import argparse
import os
import sys
import traceback

from evaluation.modes import habits
from evaluation.modes.table import MODES, config_in, config_of

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

EXIT_BUG = 1
EXIT_USER_ERROR, EXIT_NON_FINITE = 2, 3  # preemption.py and peers.py have 75 and 76
ABOUT = "Train, sample and evaluate: %(prog)s --config=configs/digits.py --workdir=runs/digits --mode=train"
EPILOG = """exit codes: 0 done; 1 reproduce: another figure than the expected one; 2 a mistake in flags,
config, data or files, a full disk, or too little memory (one line says which); 3 the loss, a weight or a result was not
finite; 75 stopped by SIGTERM or Ctrl-C with everything saved (by a second SIGTERM: at once, with what was saved
before): run the same command again to go on; 76 another process of this run is lost: start all of them again.

several processes: those of SLURM (srun), OpenMPI (mpirun), a TPU slice or several join each other; else set
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID for each. SCORE_FLOW_ALONE=1: one process all the same.

"""


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
