"""Sample quality in one pass: Fréchet distance (of Inception's features the FID), KID, score, precision and recall."""

import functools

import numpy as np

from evaluation.context import Context
from evaluation.fold import Fold, write_arrays
from evaluation.jobs import judging, shared
from evaluation.jobs.base import Job, Opened
from evaluation.jobs.rounds import drawing, drawn, of_row
from evaluation.metrics.extractors.base import Extractor
from evaluation.metrics.statistics import Statistics
from evaluation.report import page
from score_flow.config.options import EvalOptions
from score_flow.errors import UserError
from score_flow.experiment import Experiment
from score_flow.runs.places import Place


def open_reference(run: Experiment, options: EvalOptions, workdir: Place) -> Opened:
    """Open the reference and the extractor; raises UserError without either, and for seeds of 33 bits."""
    if (last := run.seed + options.seeds - 1) >= 2**32:
        raise UserError(f"config.eval.seeds is {options.seeds}: the last seed would be {last}; allowed: below 2**32.")
    return judging.open_reference(run, options, workdir, options.num_samples, "config.eval.num_samples")


def build(context: Context, opened: tuple[Statistics, Extractor]) -> Fold:
    """Draw a batch in a round, and add its features to float64 moments and to those that are kept.

    Samples that the job samples has drawn are taken from it. The others stay on the device, where one program draws
    them and extracts their features, unless they are wanted in samples.npz (config.eval.save_npz). With config.eval.
    seeds, the same for each seed; samples.npz has those of the first.
    """
    judge, options, first = judging.Judge.of(context, opened, context.n_samples), context.options, context.run.seed
    seeds = range(first, first + options.seeds)

    def row(seed, leave):
        found = shared.samples(context) if seed == first else None
        if found:
            return judging.reading(context, judge.extractor, found, leave)
        return drawing(context, leave, seed=seed, extractor=judge.extractor)

    def finish(state, arrays):
        if options.save_npz:
            save_samples(context, arrays)
        of_seeds = {seed: judge.figures(of_row(state, i)) for i, seed in enumerate(seeds)}
        found = judging.spread(of_seeds) if len(seeds) > 1 else of_seeds[first]
        return found | context.about_samples(state["calls"]) | judge.about()

    keep = ("image", "label") if options.save_npz else ()
    return drawn(context, finish, keep=keep, each=judge.each, rows=[functools.partial(row, seed) for seed in seeds])


def save_samples(context: Context, arrays: dict[str, np.ndarray]) -> None:
    """Write samples.npz as ADM's evaluator reads it: arr_0 uint8 (n, h, w, c) in 0 .. 255, arr_1 the labels, if any."""
    levels = context.run.scaling.levels
    images = np.rint(arrays["image"][0] * (255 / (levels - 1))).astype(np.uint8)
    labels = {"arr_1": np.asarray(arrays["label"][0])} if "label" in arrays else {}
    write_arrays(context.directory / "samples.npz", arr_0=images, **labels)


def cards(record: page.Record) -> list[str]:
    """Show every distance, under the name that its features give it."""
    result, found = record.results["fid"], []
    for key, name in judging.distances_of(result):
        spread = f"± {result[f'{key}_std']:.2g} over {result['n_seeds']} seeds" if f"{key}_std" in result else ""
        features = result.get(f"features_{key}") or result.get("features", "")
        note = f"{result.get('n_samples', 0):,} samples, features: {features}"
        found.append(page.card(name, f"{result[key]:.3g}", error=spread, note=note))
    return found


NEEDS = frozenset({"denoiser", "sampler", "guidance", "levels"})
job = Job(build, NEEDS, (*judging.READS, "num_samples", "save_npz", "seeds"), open_reference, cards=cards, place=15)
