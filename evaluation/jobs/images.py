"""Figures of images that exist already (config.eval.samples), those of the job fid, without a model."""

import functools

from evaluation.context import Context
from evaluation.fold import Fold
from evaluation.jobs import judging
from evaluation.jobs.base import Job, Opened
from evaluation.jobs.rounds import drawn
from evaluation.metrics.existing import Existing, open_existing
from evaluation.metrics.extractors.base import Extractor
from evaluation.metrics.statistics import Statistics
from score_flow.config.options import EvalOptions
from score_flow.experiment import Experiment
from score_flow.runs.places import Place


def open_images(run: Experiment, options: EvalOptions, workdir: Place) -> Opened:
    """Open the images and what they are compared with; raises UserError where they do not fit the run's."""
    images = open_existing(run, options.samples)
    opened = judging.open_reference(run, options, workdir, images.n, f"the number of images of {images.name}")
    of = {"name": images.name, "n": images.n, "sha256": images.sha256}
    return Opened((images, opened.value), opened.of | {"image set": of})


def build(context: Context, opened: tuple[Existing, tuple[Statistics, Extractor]]) -> Fold:
    """Extract the features of a batch in a round, and compare all with the reference."""
    images, reference = opened
    judge = judging.Judge.of(context, reference, images.n)

    def finish(state, arrays):
        of = {"n_images": images.n, "images": images.name, "images_sha256": images.sha256}
        return judge.figures(state) | of | judge.about()

    row = functools.partial(judging.reading, context, judge.extractor, lambda indices: {"image": images.read(indices)})
    return drawn(context, finish, keep=(), each=judge.each, rows=[row], n=images.n)


job = Job(build, frozenset({"levels"}), ("samples", *judging.READS), open_images, place=16)
