"""Train, sample and evaluate: python main.py --config=configs/digits.py --workdir=runs/digits --mode=train"""

import argparse
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

EXIT_NOT_REPRODUCED, EXIT_USER_ERROR, EXIT_NON_FINITE, EXIT_PREEMPTED = 1, 2, 3, 75
EPILOG = """exit codes: 0 done; 1 reproduce: another figure than the expected one; 2 a mistake in flags,
config, data or files, a full disk, or too little memory (one line says which); 3 the loss, a weight or a result was not
finite; 75 stopped by SIGTERM or Ctrl-C with everything saved: run the same command again to go on; 76 another process
of this run is lost: start all of them again.

several processes: set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID for each (a TPU pod needs nothing).

"""


class Help(argparse.Action):
    """--help: flags, exit codes, every field of a config, every argument of every plug-in, for which all are loaded."""

    def __call__(self, parser, *arguments) -> None:
        from score_flow.config.loading import explain

        parser.epilog = EPILOG + explain()
        parser.print_help()
        parser.exit()


def flags(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags, and the --config.key=value overrides."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, add_help=False
    )
    parser.add_argument("-h", "--help", action=Help, nargs=0, help="all flags, all fields, all plug-ins")
    parser.add_argument(
        "--config",
        help="recipe: a Python file with get_config(), e.g. configs/digits.py; default: the config of the workdir",
    )
    parser.add_argument("--workdir", required=True, help="folder of the run; the same folder goes on where it stopped")
    parser.add_argument(
        "--mode",
        required=True,
        choices=("train", "train_deq", "eval", "sample", "control", "import", "reproduce", "stats", "encode"),
        help="train; train_deq: a variational dequantiser for a trained model; eval: loss, samples, bits/dim, report; "
        "sample: samples only; control: samples of which something is known (config.control: inpainting, ...); "
        "import: published weights; reproduce: is the published figure of --config=configs/reproduce/NAME.py reached; "
        "stats: reference statistics for the job fid; encode: a data set's latents, for a latent model's training",
    )
    parser.add_argument("--checkpoint", help="import: the published file (or a folder in diffusers' layout)")
    parser.add_argument(
        "--reference_config", help="import: the settings that the network was trained with in its own project, as .json"
    )
    parser.add_argument(
        "--eval_folder", default="", help="sub-folder of workdir for results (default, by mode: eval, samples, control)"
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="eval: wait for milestones eval.begin_ckpt to end_ckpt (0: the first; the last of training), each in turn",
    )
    known, rest = parser.parse_known_args(argv)
    return known, rest


def run(options: argparse.Namespace, overrides: list[str]) -> int | None:
    """Build what the config says and do what the mode says; returns an exit code other than 0, if any."""
    from score_flow.config.loading import load
    from score_flow.runs.workdir import path_of
    from score_flow.types import UserError

    options.workdir = str(path_of(options.workdir))
    if options.watch and options.mode not in ("eval", "sample", "control"):
        raise UserError(f"--watch waits for what is to be evaluated: it does not go with --mode={options.mode}.")
    if options.mode == "import":
        return import_checkpoint(options, overrides)
    config = load(options.config or config_of(options.workdir), overrides)  # mistakes are answered before jax starts
    from score_flow.runs import processes

    peers = processes.initialise()
    if peers:
        peers.where = lambda: newest_saved(options.workdir)
    from evaluation.modes.checking import check_components
    from sampling.building import build_sampler
    from score_flow.build import experiment
    from score_flow.runs.workdir import workdir as opened
    from score_flow.training.saver import remembered

    config = check_components(config)
    built = experiment(config, remembered(options.workdir))
    with opened(options.workdir, exclusive=options.mode == "train") as workdir:
        if options.mode == "train":
            from evaluation.context import build_guide
            from evaluation.modes.snapshot import cheap_sampler, sheet
            from score_flow.training.run import train

            guide = build_guide(built, config)
            build_sampler(config)  # the evaluation's: a mistake is answered now
            train(built, config, workdir, sheet(built, cheap_sampler(config.sampling), guide, workdir / "samples"))
        elif options.mode == "train_deq":
            from evaluation.dequantisers import train_for

            train_for(built, config, workdir)
        elif options.mode == "stats":
            from evaluation.modes.statistics import write_statistics

            write_statistics(built, config, workdir)
        elif options.mode == "encode":
            from evaluation.modes.encode import encode

            encode(built, config, workdir)
        elif options.mode == "reproduce":
            from evaluation.modes.reproduce import reproduce

            passed = reproduce(built, config, workdir, options.config or "", options.eval_folder)
            return None if passed else EXIT_NOT_REPRODUCED
        else:
            from evaluation.run import evaluate

            evaluate(built, config, workdir, options.mode, options.eval_folder, options.watch)
    return None


def config_of(workdir: str) -> str:
    """The config that a run left in its workdir."""
    from score_flow.types import UserError

    file = os.path.join(workdir, "config.json")
    if not os.path.isfile(file):
        raise UserError(f"give --config=RECIPE: {workdir} holds no config.json of an earlier run.")
    return file


def import_checkpoint(options: argparse.Namespace, overrides: list[str]) -> None:
    """Published weights into a workdir."""
    from evaluation.modes.checking import check_components
    from evaluation.modes.importing import import_into, open_published
    from score_flow.build import experiment
    from score_flow.config.loading import load
    from score_flow.runs.workdir import workdir as opened
    from score_flow.types import UserError

    if not options.checkpoint:
        raise UserError("--mode=import needs --checkpoint=FILE.")
    published = open_published(options.checkpoint)
    settings = published.settings(options.reference_config, recipe=bool(options.config))
    config = check_components(load(options.config or "configs/base.py", overrides, settings))
    run = experiment(config)
    with opened(options.workdir, exclusive=True) as workdir:
        import_into(workdir, published, run, config)


def newest_saved(workdir: str) -> str:
    """What is said of a run's newest state when a process is lost."""
    from score_flow.runs.checkpoint import newest_step

    step = newest_step(workdir)
    return f"; the newest state is of step {step}" if step is not None else "; nothing was saved yet"


def main(argv: list[str]) -> int:
    """The exit code of a run; mistakes are one line, not a traceback."""
    options, overrides = flags(argv)
    from score_flow.runs import files, memory, peers
    from score_flow.types import NonFinite, Preempted, UserError

    sys.unraisablehook = files.quiet(sys.__unraisablehook__)
    try:
        return run(options, overrides) or 0
    except NonFinite as error:
        return report(error, EXIT_NON_FINITE)
    except Preempted as error:
        return report(error, EXIT_PREEMPTED)
    except UserError as error:
        return report(error, EXIT_USER_ERROR)
    except OSError as error:
        return report(files.of_system(error, options.workdir), EXIT_USER_ERROR)
    except Exception as error:
        peers.leave_if_broken(error)
        if memory.is_exhausted(error):
            return report(memory.advice(error, options.mode), EXIT_USER_ERROR)
        if files.is_full(error):
            return report(files.of_system(error, options.workdir), EXIT_USER_ERROR)
        raise


def report(what: object, code: int) -> int:
    """Say in one line why the run ends, and return its exit code."""
    print(f"\n{'stopped' if code == EXIT_PREEMPTED else 'error'}: {what}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
