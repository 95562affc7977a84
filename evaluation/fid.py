"""Sample quality in one pass: FID, KID, Inception score, precision and recall of exactly num_samples samples."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evaluation.collector import Collector, State, extract
from evaluation.context import Context
from evaluation.drawing import drawer, joined, refuse_failed
from evaluation.extractors.base import Extractor
from evaluation.fold import Fold, write_arrays
from evaluation.kernel_distance import block_distance, kernel_distance, subset_distances
from evaluation.manifold import precision_recall
from evaluation.metrics import ClassSums, frechet_distance, split_of
from evaluation.statistics import Statistics, open_statistics
from score_flow.build import Experiment
from score_flow.options import EvalOptions
from score_flow.sharding import is_main
from score_flow.types import UserError

SPLITS = 10  # of the samples, for the published form of the Inception score
BLOCK = 1024  # features in each block of TF-GAN's KID, which score_sde reports
SUBSET = 1000  # features in each subset of torch-fidelity's KID
NEIGHBOURS = 3  # of the manifolds of precision and recall


def check(run: Experiment, options: EvalOptions, workdir: Path) -> tuple[Statistics, Extractor]:
    """Raise UserError, before any work is done, where weights or statistics are missing or of something else."""
    if options.num_samples < 2:
        raise UserError(f"config.eval.num_samples is {options.num_samples}; the job fid needs at least 2.")
    return open_statistics(run, options, workdir)


def build(context: Context) -> Fold:
    """A round draws a batch and adds its features to float64 moments and to those that are kept.

    The samples stay on the device, where one program draws them and extracts their features, unless they are wanted in
    samples.npz (config.eval.save_npz).
    """
    options, n, b = context.options, context.n_samples, context.batch_size
    reference, extractor = context.opened or open_statistics(context.run, options, context.workdir)
    splits = min(n, SPLITS)
    collector, split = Collector(n, extractor.n_features, options.kept_features), split_of(n, splits)
    keep = ("pool", "logits", "image", "label") if options.save_npz else ("pool", "logits")
    draw, n_classes = drawer(context.run, context.sampler, keep=keep), n_logits(extractor, context.run.pixel_shape)
    (context.directory / "rounds").mkdir(parents=True, exist_ok=True)

    def init():
        calls = np.zeros(context.rounds_of(n), np.int64)
        return collector.init() | {"classes": ClassSums.empty(splits, n_classes), "calls": calls}

    def step(state, round_number):
        indices = round_number * b + np.arange(b)
        arrays, calls, ok = draw(context.params, context.guide, context.control, indices, extractor)
        wanted = indices < n
        refuse_failed(indices[wanted], ok[wanted])
        indices, arrays = indices[wanted], {name: array[wanted] for name, array in arrays.items()}
        if options.save_npz:
            write_arrays(_file(context, round_number), **{k: arrays[k] for k in ("image", "label") if k in arrays})
        classes, by_round = state["classes"], state["calls"].copy()
        by_round[round_number] = calls
        if "logits" in arrays:
            classes = classes.add(arrays["logits"], split[indices])
        return collector.add(state, indices, arrays["pool"]) | {"classes": classes, "calls": by_round}

    def finish(state):
        if not is_main():
            return {}
        if options.save_npz:
            save_samples(context, n)
        found = figures(collector.gaussian(state), state, reference)
        calls = {"network_calls_per_batch": float(state["calls"].mean())}
        return {"n_samples": n, **found, **calls, **about(extractor, reference)}

    return Fold(context.rounds_of(n), init, step, finish)


def about(extractor: Extractor, reference: Statistics) -> dict[str, Any]:
    """What was compared with what, by what."""
    return {
        "features": extractor.name,
        "n_features": extractor.n_features,
        "reference": reference.file,
        "reference_sha256": reference.file_sha256,
        "n_reference": reference.n,
        "split": reference.name,
    }


def n_logits(extractor: Extractor, image_shape: tuple[int, ...]) -> int:
    """How many classes the extractor's logits tell apart; 1 where it has none, of which no image is then counted."""
    logits = jax.eval_shape(extract, extractor, jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)).logits
    return 1 if logits is None else logits.shape[1]


def figures(gaussian: tuple[np.ndarray, np.ndarray], state: State, reference: Statistics) -> dict[str, Any]:
    """The figures of all samples against the reference; without its features, those that need only its Gaussian."""
    found = {"fid": frechet_distance(*gaussian, reference.mu, reference.sigma)}
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
        found["inception_score"], _ = classes.together().score()
        found["inception_score_splits"], found["inception_score_splits_deviation"] = classes.score()
    return found


def save_samples(context: Context, n: int) -> None:
    """samples.npz as ADM's evaluator reads it: arr_0 uint8 (n, h, w, c) in 0 .. 255, arr_1 the labels, if any."""
    arrays = joined([_file(context, r) for r in range(context.rounds_of(n))])
    levels = context.run.scaling.levels
    images = np.rint(arrays["image"] * (255 / (levels - 1))).astype(np.uint8)
    labels = {"arr_1": arrays["label"]} if "label" in arrays else {}
    write_arrays(context.directory / "samples.npz", arr_0=images, **labels)


def _file(context: Context, round_number: int) -> Path:
    return context.directory / "rounds" / f"{round_number:06d}.npz"
