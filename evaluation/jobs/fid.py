"""Sample quality in one pass: Fréchet distance (of Inception's features the FID), KID, score, precision and recall."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evaluation.context import Context
from evaluation.fold import Fold, write_arrays
from evaluation.jobs.base import Job, Opened
from evaluation.jobs.rounds import Each, drawn
from evaluation.metrics.collector import Collector, State
from evaluation.metrics.extractors.base import Extractor
from evaluation.metrics.frechet import ClassSums, frechet_distance, split_of
from evaluation.metrics.kernel_distance import block_distance, kernel_distance, subset_distances
from evaluation.metrics.manifold import precision_recall
from evaluation.metrics.statistics import Statistics, open_statistics
from evaluation.report import page
from score_flow.config.options import EvalOptions
from score_flow.experiment import Experiment
from score_flow.runs.places import Place
from score_flow.types import UserError

SPLITS = 10  # of the samples, for the published form of the Inception score
BLOCK = 1024  # features in each block of TF-GAN's KID, which score_sde reports
SUBSET = 1000  # features in each subset of torch-fidelity's KID
NEIGHBOURS = 3  # of the manifolds of precision and recall


def open_reference(run: Experiment, options: EvalOptions, workdir: Place) -> Opened:
    """Raise UserError, before any work is done, where weights or statistics are missing or of something else."""
    if options.num_samples < 2:
        raise UserError(f"config.eval.num_samples is {options.num_samples}; the job fid needs at least 2.")
    reference, extractor = open_statistics(run, options, workdir)
    return Opened((reference, extractor), {"reference": reference.file_sha256, "features": extractor.name})


def build(context: Context, opened: tuple[Statistics, Extractor]) -> Fold:
    """Draw a batch in a round, and add its features to float64 moments and to those that are kept.

    The samples stay on the device, where one program draws them and extracts their features, unless they are wanted in
    samples.npz (config.eval.save_npz).
    """
    (reference, extractor), options, n = opened, context.options, context.n_samples
    collector, splits = Collector(n, extractor.n_features, options.kept_features), min(n, SPLITS)
    split, n_classes = split_of(n, splits), n_logits(extractor, context.run.pixel_shape)

    def init():
        return collector.init() | {"classes": ClassSums.empty(splits, n_classes)}

    def add(state, indices, arrays):
        classes = state["classes"]
        if "logits" in arrays:
            classes = classes.add(arrays["logits"], split[indices])
        return collector.add(state, indices, arrays["pool"]) | {"classes": classes}

    def finish(state, arrays):
        if options.save_npz:
            save_samples(context, arrays)
        names = INCEPTION if extractor.inception else OTHER
        found = figures(collector.gaussian(state), state, reference, names=names)
        return found | context.about_samples(state["calls"]) | about(extractor, reference)

    keep, each = ("image", "label") if options.save_npz else (), Each(("pool", "logits"), init, add)
    return drawn(context, finish, keep=keep, each=each, extractor=extractor)


def about(extractor: Extractor, reference: Statistics) -> dict[str, Any]:
    """Say what was compared with what, by what."""
    return {
        "features": extractor.name,
        "n_features": extractor.n_features,
        "reference": reference.file,
        "reference_sha256": reference.file_sha256,
        "n_reference": reference.n,
        "split": reference.name,
    }


def n_logits(extractor: Extractor, image_shape: tuple[int, ...]) -> int:
    """Count the classes that the extractor's logits tell apart; 1 where it has none, of which no image is counted."""
    logits = jax.eval_shape(extractor.features, jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)).logits
    return 1 if logits is None else logits.shape[1]


class Names(NamedTuple):
    """Of figures that are called after the features that they are made of."""

    distance: str
    score: str


INCEPTION, OTHER = Names("fid", "inception_score"), Names("frechet_distance", "classifier_score")


def figures(
    gaussian: tuple[np.ndarray, np.ndarray], state: State, reference: Statistics, *, names: Names
) -> dict[str, Any]:
    """Compute the figures of all samples against a reference; without its features, those of its Gaussian alone."""
    found = {names.distance: frechet_distance(*gaussian, reference.mu, reference.sigma)}
    x, y = state["features"], reference.features
    if y is not None and min(len(x), len(y)) > NEIGHBOURS:
        found["kid"], found["kid_standard_error"] = kernel_distance(x, y)
        if max(len(x), len(y)) > BLOCK:
            found["kid_blocks"], found["kid_blocks_standard_error"] = block_distance(x, y, BLOCK)
        if min(len(x), len(y)) > SUBSET:
            subsets = subset_distances(x, y, size=SUBSET)
            found["kid_subsets"], found["kid_subsets_deviation"] = float(subsets.mean()), float(subsets.std())
        found["precision"], found["recall"] = precision_recall(x, y, NEIGHBOURS)
        found |= {"n_kept": len(x), "n_reference_kept": len(y)}
    classes = state["classes"]
    if classes.count.any():
        found[names.score], _ = classes.together().score()
        found[f"{names.score}_splits"], found[f"{names.score}_splits_deviation"] = classes.score()
    return found


def save_samples(context: Context, arrays: dict[str, np.ndarray]) -> None:
    """Write samples.npz as ADM's evaluator reads it: arr_0 uint8 (n, h, w, c) in 0 .. 255, arr_1 the labels, if any."""
    levels = context.run.scaling.levels
    images = np.rint(arrays["image"][0] * (255 / (levels - 1))).astype(np.uint8)
    labels = {"arr_1": np.asarray(arrays["label"][0])} if "label" in arrays else {}
    write_arrays(context.directory / "samples.npz", arr_0=images, **labels)


def cards(record: page.Record) -> list[str]:
    """Show the distance, under the name that its features give it."""
    result = record.results["fid"]
    for key, name in (("fid", "FID"), (OTHER.distance, "Fréchet distance")):
        if key in result:
            note = f"{result.get('n_samples', 0):,} samples, {result.get('features', '')}"
            return [page.card(name, f"{result[key]:.3g}", note=note)]
    return []


NEEDS, READS = (
    frozenset({"denoiser", "sampler", "guidance", "levels"}),
    ("num_samples", "fid_dataset", "kept_features", "save_npz"),
)
job = Job(build, NEEDS, (*READS, "extractor", "stats"), open_reference, cards=cards, place=15)
