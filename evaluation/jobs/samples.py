"""Samples: exactly num_samples of them, each made once, and how far their features are from the data's."""

import numpy as np

from evaluation.context import Context
from evaluation.fold import Fold, write_arrays
from evaluation.jobs import pngs, shared
from evaluation.jobs.base import Job, Opened
from evaluation.jobs.rounds import drawn
from evaluation.metrics.features import Judge
from evaluation.report import page
from evaluation.report.pictures import beside, save_grid
from score_flow.config.options import EvalOptions
from score_flow.experiment import Experiment
from score_flow.runs.places import Place


def build(context: Context, opened: None) -> Fold:
    """Draw, keep as uint8 in samples.npz, and compare with the test images; real numbers are kept too, as `value`."""
    run, folder = context.run, context.directory

    def finish(state, arrays):
        arrays = {name: np.asarray(array[0]) for name, array in arrays.items()}
        write_arrays(folder / shared.CALLS, calls=state["calls"][0])
        write_arrays(folder / shared.IMAGES, **arrays)
        save_grid(folder / "samples.png", arrays["image"][:100], run.scaling.levels)
        if context.control:
            shown = [np.asarray(run.pixels(picture)) for picture in context.control.pictures]
            sheet, columns = beside(shown, arrays["image"][:100])
            save_grid(folder / "control.png", sheet, run.scaling.levels, columns=columns)
        result = context.about_samples(state["calls"]) | {"levels": run.scaling.levels}
        if context.judged and not run.latent and not run.real:
            result |= {"split": run.test_source.name}
            result |= Judge(run.train_source, run.test_source)(arrays["image"], arrays.get("label"))
        return result

    def leave():
        if context.options.save_png:
            pngs.write(folder / shared.IMAGES, folder / "png", run.scaling.levels)

    return drawn(context, finish)._replace(leave=leave)


def open_files(run: Experiment, options: EvalOptions, workdir: Place) -> Opened:
    """Refuse PNG files (config.eval.save_png) of what is no picture."""
    if options.save_png:
        pngs.refuse_unfit(run)
    return Opened()


def section(record: page.Record) -> str:
    """Show as many samples as real images, side by side."""
    image, real = record.arrays("samples", "samples.npz").get("image", record.real[:0]), record.real
    if not len(image):
        return ""
    most = int(np.clip(page.SHEET // image.shape[2], 2, 10)) ** 2
    n = min(most, len(image), len(real) or most)
    alt, caption = f"{n} samples of the model", f"Samples: the first {n} of {len(image):,}"
    sheets = [page.sheet(image[:n], record.levels, caption, alt=alt)]
    if len(real):
        spread = np.linspace(0, len(real) - 1, n).astype(int)  # a split may be in order of class
        sheets.append(page.sheet(real[spread], record.levels, "Test images", alt=f"{n} images of the test set"))
    features = record.results["samples"].get("features")
    note = f"Features of the Fréchet distance: {features}." if features else ""
    return page.section("Samples", page.pair(*sheets), note=note)


def cards(record: page.Record) -> list[str]:
    """Show the distance to the test images, the classifier's confidence, the cost."""
    result, found = record.results["samples"], []
    for key, name, real, split, digits in (
        ("frechet_distance", "Fréchet distance", "frechet_distance_train", "training", ".3g"),
        ("classifier_confidence", "classifier confidence", "classifier_confidence_test", "test", ".1%"),
    ):
        if key in result:
            reference = f"{split} images: {result[real]:{digits}}" if real in result else ""
            found.append(page.card(name, f"{result[key]:{digits}}", note=reference))
    if "network_calls_per_sample" in result:
        found.append(page.card("network calls", f"{result['network_calls_per_sample']:.0f}", note="a sample"))
    return found


NEEDS = frozenset({"denoiser", "sampler", "guidance", "training images", "test images"})
job = Job(build, NEEDS, ("num_samples", "save_png"), open_files, section, cards, place=10)
