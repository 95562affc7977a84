"""`--mode=stats`: reference statistics of a split's images, for what samples are compared with."""

import hashlib
import json
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import UInt8

from evaluation import fold as folds
from evaluation.metrics import statistics
from evaluation.metrics.collector import Collector
from evaluation.metrics.extractors.base import Extractor
from evaluation.metrics.frechet import Moments
from score_flow import FIGURES
from score_flow.config.options import Config
from score_flow.data.base import FIRST, Source, checksum
from score_flow.data.pipeline import gather
from score_flow.errors import UserError
from score_flow.experiment import Experiment
from score_flow.runs.places import Place, make_folder, remove
from score_flow.runs.processes import barrier, decided, is_main
from score_flow.runs.sharding import batch_sharding, multiple, to_host
from score_flow.runs.workdir import held


def write_statistics(run: Experiment, config: Config, workdir: Place) -> Place:
    """Write the statistics of all images of a split (`--mode=stats`); resumable; returns the file, which may be there.

    Raises UserError where it is there and of something else, and Preempted after SIGTERM.
    """
    if run.latent:
        raise UserError("--mode=stats is of images: leave config.eval.autoencoder out, in a recipe of their data set.")
    if run.real:
        raise UserError("--mode=stats is of pixel levels, and the data are real numbers.")
    options, source = config.eval, statistics.reference_source(run, config.eval)
    file, extractor = statistics.statistics_file(run, options, workdir), statistics.extractor_of(run, options)
    if decided(f"statistics {file}", file.exists):
        statistics.refuse_unfit(statistics.read(file, extractor.names.distance), extractor, run, source=source)
    else:
        first = checksum(source, FIRST)
        about = {"extractor": extractor.name, "data": source.name, "first": first, "preprocessing": _settings(config)}
        if extractor.more:
            about["more_features"] = json.dumps({distance: name for distance, (name, _) in extractor.more.items()})
        fold, directory = statistics_fold(run, config, extractor, source, file, about), workdir / "stats" / file.stem
        with held(workdir / "stats", "making of statistics"):
            folds.run(fold, directory, f"statistics of {source.name}", restart=True)
            if is_main():
                remove(directory)  # the file is the result
    if is_main():
        print(f"reference statistics: {file}", flush=True)
    barrier(f"statistics {file}")
    return file


def statistics_fold(
    run: Experiment, config: Config, extractor: Extractor, source: Source, file: Place, about: dict[str, str]
) -> folds.Fold:
    """Extract the features of the next images in a round; in the end all is written to the file."""
    options, sharding, n = config.eval, batch_sharding(run.mesh), len(source)
    collector = Collector(n, extractor.n_features, options.kept_features)
    size = multiple(run.mesh, options.batch_size)
    compiled, hashed = jax.jit(lambda extractor, images: extractor.features(images).arrays()), input_hash(source)
    more = {distance: Moments.empty(d) for distance, (_, d) in extractor.more.items()}
    key = about | {"n": n, "eval.kept_features": options.kept_features, "version": FIGURES}

    def init():
        return collector.init() | {"done": np.zeros((1, n), bool)} | ({"more": more} if more else {})

    def step(state):
        _, indices, mask = folds.next_round(~state["done"], size)
        batch = gather(source, indices, sharding)
        features, images = to_host((compiled(extractor, batch["image"]), batch["image"]))
        hashed(int(indices[0]), images[mask])
        done = state["done"].copy()
        done[0, indices[mask]] = True
        added = {name: state["more"][name].merge(Moments.of(features[name][mask])) for name in more}
        of = {"done": done} | ({"more": added} if more else {})
        return collector.add(state, indices[mask], features["pool"][mask]) | of

    def finish(state):
        (mu, sigma), digest = collector.gaussian(state), hashed(n, None)
        facts = about | {"n": n, "sha256": digest, "levels": run.scaling.levels, "image_shape": run.image_shape}
        arrays = {"mu": mu, "sigma": sigma, "features": state["features"]}
        for name in more:
            end = statistics.MORE[name]
            arrays[f"mu{end}"], arrays[f"sigma{end}"] = state["more"][name].gaussian()
        make_folder(file.parent)
        folds.write_arrays(file, **arrays, **{name: np.asarray(value) for name, value in facts.items()})
        return {"n_images": n, "split": source.name, "sha256": digest, "features": extractor.name}

    return folds.Fold(key, lambda state: folds.rounds_left(~state["done"], size), init, step, finish)


def input_hash(source: Source) -> Callable[[int, UInt8[np.ndarray, "b h w c"] | None], str]:
    """Make (first index, images) -> the SHA-256 of the levels of all images up to and with these, in order.

    Images before them that were not seen (a resumed run's) are read again.
    """
    digest, seen = hashlib.sha256(), 0

    def add(first: int, images: UInt8[np.ndarray, "b h w c"] | None) -> str:
        nonlocal seen
        while seen < first:
            part = source.read(np.arange(seen, min(seen + 1024, first)))["image"]
            digest.update(part.tobytes())
            seen += len(part)
        if images is not None:
            digest.update(images.tobytes())
            seen += len(images)
        return digest.hexdigest()

    return add


def _settings(config: Config) -> str:
    """Say how the data set's files become images: its settings but for where they are."""
    return json.dumps(
        {key: value for key, value in config.data.source.to_dict().items() if key != "path"}, default=list
    )
