"""What an evaluation job is, and which jobs there are: the files of evaluation/jobs/ that export `job`."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, get_args

from evaluation.context import Context
from evaluation.fold import Fold, Key
from evaluation.report.page import Record
from sampling.flow import Solver
from score_flow.config import registries
from score_flow.config.options import EvalOptions
from score_flow.errors import UserError, check_choice
from score_flow.experiment import Experiment
from score_flow.runs.places import Place

# What a job works with; a run without it is refused, and what it is of is among what the result depends on.
#   denoiser: a model of images;  classifier: one of labels
#   pixels: data that are no latents;  levels: data that are no real numbers
#   objective: what the network was trained by;  sampler: the config's;  guidance: the denoiser that samplers see
#   split: the data set's, by eval.bpd_dataset;  training images, test images: those
Need = Literal[
    "denoiser", "classifier", "pixels", "levels", "objective", "sampler", "guidance", "split", "training images",
    "test images",
]


class Opened(NamedTuple):
    """What a job opened before any job worked, and what that is, where the result depends on it."""

    value: Any = None
    of: Key = {}  # noqa: RUF012 - never changed


class Job(NamedTuple):
    """A job as a value. open refuses all that can be refused and does no work yet; build says what the work is."""

    build: Callable[[Context, Any], Fold]  # of the value that was opened
    needs: frozenset[Need] = frozenset()
    reads: tuple[str, ...] = ()  # the fields of config.eval that it looks at; it cannot see any other
    open: Callable[[Experiment, EvalOptions, Place], Opened] = lambda run, options, workdir: Opened()
    section: Callable[[Record], str] | None = None  # its part of the report
    cards: Callable[[Record], list[str]] | None = None  # its headline figures
    place: int = 100  # of these, from the top

    def needing(self, *needs: Need) -> bool:
        """Say whether it works with all of these."""
        return self.needs.issuperset(needs)


# What a job that integrates the model's flow reads; open_flow opens the solver
FLOW_READS = ("solver", "smallest_time", "largest_time")
# The jobs that a field of config.eval asks for
ASKED = {
    "enable_loss": ("loss",), "enable_sampling": ("samples", "trajectory"), "enable_bpd": ("likelihood",),
    "sweep": ("sweep",),
}  # fmt: skip
# mode -> (folder of its results in the workdir, its jobs; none: those that config.eval asks for)
MODES = {"eval": ("eval", ()), "sample": ("samples", ("samples",)), "control": ("control", ("samples",))}


def open_solver(run: Experiment, options: EvalOptions, t_min: float) -> Solver:
    """Make eval.solver; raises UserError where it cannot integrate from t_min to eval.largest_time."""
    solver = Solver(**options.solver.to_dict())
    solver.refuse(run.model.path, t_min, options.largest_time)
    return solver


def open_flow(run: Experiment, options: EvalOptions, workdir: Place) -> Opened:
    """Open the solver over the times of eval; raises UserError where it cannot integrate over them."""
    return Opened(open_solver(run, options, options.smallest_time))


def find(name: str) -> Job:
    """Find the job of a name, by a dotted one that of another package; raises UserError where it is none."""
    job = registries.JOBS.entry(name, "config.eval.jobs")
    if not isinstance(job, Job):
        raise UserError(f"config.eval.jobs: the `job` of {name} is a {type(job).__name__}; it must be a Job.")
    fields = tuple(field.name for field in dataclasses.fields(EvalOptions))
    for what, given, allowed in (("needs", sorted(job.needs), get_args(Need)), ("reads", job.reads, fields)):
        for word in given:
            check_choice(f"config.eval.jobs: what the job {name} {what}", word, allowed)
    return job


def asked(options: EvalOptions, mode: str = "eval") -> dict[str, Job]:
    """Find the jobs that a mode does, in order."""
    if options.samples:
        return _of_images(options, mode)
    enabled = [name for field, names in ASKED.items() if getattr(options, field) for name in names]
    first = [name for names in ASKED.values() for name in names if name in options.only]  # whose samples others share
    return {name: find(name) for name in MODES[mode][1] or (*first, *options.only) or (*enabled, *options.jobs)}


def _of_images(options: EvalOptions, mode: str) -> dict[str, Job]:
    """Find the job that judges images that are there; raises UserError where others are asked for beside it."""
    others = {*options.only, *options.jobs} - {"fid", "images"}
    if mode != "eval" or others:
        got = f"the job {sorted(others)[0]}" if mode == "eval" else f"--mode={mode}"
        raise UserError(
            f"config.eval.samples is given, whose images are judged in place of samples (--mode=eval, jobs images and "
            f"fid): it does not go with {got}."
        )
    return {"images": find("images")}


def by_place(names: Iterable[str]) -> dict[str, Job]:
    """Find the jobs of some names, as they stand in the report; without those whose file, or package, is gone."""
    found = {}
    for name in names:
        with contextlib.suppress(UserError):
            found[name] = find(name)
    return dict(sorted(found.items(), key=lambda item: (item[1].place, item[0])))


def _flows(job: Job) -> bool:
    """Say whether a job follows the flow, whatever the sampler is, or is a classifier's."""
    follows = job.needing("denoiser") and not job.needing("sampler")
    return job.needing("classifier") or follows or "smallest_time" in job.reads


# Fields of config.eval that change no figure, and those that name files, by whose content the job that opens them is
# keyed
NO_FIGURES, BY_CONTENT = ("save_png",), ("stats", "samples", "code_file")


def refuse_unfit(run: Experiment, jobs: dict[str, Job]) -> None:
    """Raise UserError where jobs need what the run's model has not, naming those that it could do."""
    classifies = run.loss.produces == "classifier"
    if more := [name for name, job in jobs.items() if classifies and job.needing("denoiser")]:
        raise UserError(
            f"a classifier (training.objective = classifier) has no {', '.join(more)}: evaluate it with "
            "config.eval.enable_sampling=False and config.eval.enable_bpd=False; its jobs: "
            f"{', '.join(n for n in registries.JOBS.names() if not find(n).needing('denoiser'))}."
        )
    if more := [name for name, job in jobs.items() if not classifies and job.needing("classifier")]:
        raise UserError(f"the job {more[0]} is a classifier's: config.training.objective must be classifier.")
    if run.model.consistency:
        allowed = ", ".join(n for n in registries.JOBS.names() if not _flows(find(n)))
        if more := [name for name, job in jobs.items() if _flows(job)]:
            raise UserError(
                f"the job {more[0]} needs a velocity, which a consistency model (config.model.consistency) has not: "
                f"set config.eval.only to some of {allowed}."
            )
    if run.real and (more := [name for name, job in jobs.items() if job.needing("levels")]):
        allowed = ", ".join(n for n in registries.JOBS.names() if not find(n).needs & {"levels", "classifier"})
        raise UserError(f"the job {more[0]} needs pixel levels, the data are real numbers; allowed: {allowed}.")
    if run.latent and run.pixel_shape:  # which refuses a missing autoencoder
        for name in [name for name, job in jobs.items() if job.needing("pixels")]:
            allowed = (
                n for n in registries.JOBS.names() if not (find(n).needing("pixels") or find(n).needing("classifier"))
            )
            raise UserError(f"the job {name} needs pixels, the data are latents; allowed: {', '.join(allowed)}.")
