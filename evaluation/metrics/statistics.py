"""Reference statistics: what the features of samples are compared with, in one file."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Float64

from evaluation.metrics import pickled
from evaluation.metrics.collector import Collector
from evaluation.metrics.extractors.base import DINOV2, INCEPTION, Extractor
from evaluation.metrics.frechet import Moments
from score_flow.config import registries
from score_flow.config.components import resolve
from score_flow.config.options import EvalOptions
from score_flow.data.base import FIRST, Source, checksum
from score_flow.errors import UserError
from score_flow.experiment import Experiment
from score_flow.runs import files, places
from score_flow.runs.sharding import place

LARGEST = 16 << 30  # bytes that an array of a file may unpack to
BUILD = "build statistics of this data set and extractor by the same command with --mode=stats"
MORE = {"sfid": "_s", DINOV2.distance: f"_{DINOV2.distance}"}  # ends of the names of the Gaussians of more distances
SPELLINGS = {"ref_mu": "mu", "ref_sigma": "sigma"}  # of other projects

Gaussian = tuple[Float64[np.ndarray, "_"], Float64[np.ndarray, "_ _"]]


@dataclasses.dataclass(frozen=True)
class Statistics:
    """A Gaussian fitted to the features of n images, and the features of some of them where the file has them.

    The other fields say what images and features they are; files of other projects say none of it, and n only where
    they hold every feature.
    """

    mu: Float64[np.ndarray, "d"]
    sigma: Float64[np.ndarray, "d d"]
    n: int = 0  # 0 = not said
    features: Float[np.ndarray, "k d"] | None = None
    more: Mapping[str, Gaussian] = dataclasses.field(default_factory=dict)  # by the name of the distance
    more_features: Mapping[str, str] = dataclasses.field(default_factory=dict)  # what they are, where that is said
    extractor: str = ""
    data: str = ""
    sha256: str = ""  # of the pixel levels of all images in order
    first: str = ""  # checksum of the first FIRST images
    image_shape: tuple[int, ...] = ()
    levels: int = 0
    preprocessing: str = ""  # the data source's settings, as JSON
    file: str = ""  # where they were read
    file_sha256: str = ""

    @property
    def name(self) -> str:
        """Of the images, as far as it is known."""
        return self.data or Path(self.file).name


def extractor_of(run: Experiment, options: EvalOptions) -> Extractor:
    """Build what config.eval.extractor names, on every device."""
    if run.latent and options.extractor.name == "small":
        raise UserError(
            "config.eval.extractor = small is fitted to images of the data set, which a model of latents has not; "
            "allowed: inception, dinov2."
        )
    known = {"levels": run.scaling.levels} | ({} if run.latent else {"train": run.train_source})
    extractor = resolve(registries.EXTRACTORS, options.extractor, "config.eval.extractor", **known)
    return jax.tree.map(lambda leaf: place(run.mesh, np.asarray(leaf), split=False), extractor)


def reference_source(run: Experiment, options: EvalOptions) -> Source:
    """Open the split that samples are compared with."""
    return run.open_source(options.fid_dataset)


def statistics_file(run: Experiment, options: EvalOptions, workdir: places.Place) -> places.Place:
    """Name config.eval.stats, or workdir/stats/<data>-<split>-<extractor>.npz."""
    if options.stats:
        return places.place_of(options.stats)
    if run.latent:
        raise UserError("config.eval.stats: got nothing; a model of latents needs a file of statistics of images.")
    split = options.fid_dataset
    data = reference_source(run, options).name.removesuffix(f"/{split}").removesuffix(".npz").replace("/", "_")
    return workdir / "stats" / f"{data}-{split}-{options.extractor.name}.npz"


def open_statistics(run: Experiment, options: EvalOptions, workdir: places.Place) -> tuple[Statistics, Extractor]:
    """Open the reference of a run and its extractor; raises UserError where either is missing or they do not fit.

    Of the features of a reference at most eval.kept_features are used, as of the samples'.
    """
    file = statistics_file(run, options, workdir)
    if not file.is_file():
        raise UserError(f"no reference statistics {file}: {BUILD}, or give a file by --config.eval.stats=FILE.")
    extractor = extractor_of(run, options)
    found = read(file, extractor.names.distance)
    refuse_unfit(found, extractor, run, source=None if run.latent else reference_source(run, options))
    if found.features is not None:
        collector = Collector(len(found.features), extractor.n_features, options.kept_features)
        found = dataclasses.replace(found, features=found.features[collector.kept])
    return found, extractor


def refuse_unfit(found: Statistics, extractor: Extractor, run: Experiment, *, source: Source | None) -> None:
    """Raise UserError unless the statistics are of these features of this data set, as far as their file says.

    A model of latents has no data set of images to be compared: source None.
    """
    for what, theirs, ours in (
        ("features", found.extractor, extractor.name),
        ("number of features", len(found.mu), extractor.n_features),
        ("shape of images", found.image_shape, run.pixel_shape),
        ("number of pixel levels", found.levels, run.scaling.levels),
        ("number of images", source and found.image_shape and found.n, source and len(source)),
        *_of_more(found, extractor),
    ):
        if theirs and theirs != ours:
            raise UserError(f"{found.file} has {what} other than this run's: {theirs}, here {ours}; {BUILD}.")
    if source and found.first and found.first != checksum(source, FIRST):
        raise UserError(f"{found.file} is of other images, {found.data}, than this run's {source.name}; {BUILD}.")


def _of_more(found: Statistics, extractor: Extractor) -> list[tuple[str, Any, Any]]:
    """List (what, theirs, ours) of further distances' features; raises UserError where one is asked for and missing."""
    pairs = []
    for distance, (name, d) in extractor.more.items():
        if distance not in found.more and distance == DINOV2.distance:
            raise UserError(f"{found.file} has none of {name}, which config.eval.extractor asks for; {BUILD}.")
        if distance in found.more:
            pairs.append((f"features of {distance}", found.more_features.get(distance, ""), name))
            pairs.append((f"number of features of {distance}", len(found.more[distance][0]), d))
    return pairs


def read(file: places.Place, distance: str = INCEPTION.distance) -> Statistics:
    """Read the statistics of a file, whoever wrote it.

    Ours; mu and sigma (or ref_mu and ref_sigma) of pytorch-fid, EDM, JiT, with mu_s and sigma_s ADM's; score_sde's
    pool_3; EDM2's pickles, of which `distance` picks the features. Raises UserError for anything else; nothing is ever
    unpickled.
    """
    arrays = pickled.read(file, distance, MORE, LARGEST) if pickled.is_one(file) else _plain(file)
    where = {"file": str(file), "file_sha256": files.sha256_of(file)}
    if "pool_3" in arrays:
        arrays = _of_features(file, arrays["pool_3"])
    if not {"mu", "sigma"} <= arrays.keys():
        raise UserError(f"{file}: it holds neither mu and sigma nor pool_3, and is no file of statistics; {BUILD}.")
    for end in ("", *MORE.values()):
        _check(file, arrays, end)
    more = {name: _gaussian(arrays, end) for name, end in MORE.items() if f"mu{end}" in arrays}
    plain = {name: array.item() for name, array in arrays.items() if array.ndim == 0}
    shape = {"image_shape": tuple(arrays["image_shape"].tolist())} if "image_shape" in arrays else {}
    said = {"more_features": json.loads(plain.pop("more_features", "{}"))}
    return Statistics(
        *_gaussian(arrays, ""), features=arrays.get("features"), more=more, **plain, **said, **shape, **where
    )


def _plain(file: places.Place) -> dict[str, np.ndarray]:
    named = {f"{name}{end}" for name in ("mu", "sigma") for end in MORE.values()} | {"pool_3", *SPELLINGS}
    wanted = {field.name for field in dataclasses.fields(Statistics)} | named
    try:
        arrays = files.arrays_of(file, wanted, LARGEST)
    except UserError as error:
        raise UserError(f"{error}. Statistics are .npz files of plain arrays, or EDM2's pickles of them.") from error
    twice = [name for name, ours in SPELLINGS.items() if name in arrays and ours in arrays]
    if twice:
        raise UserError(f"{file}: holds both {SPELLINGS[twice[0]]} and {twice[0]}: whose statistics are they?")
    return {SPELLINGS.get(name, name): array for name, array in arrays.items()}


def _gaussian(arrays: Mapping[str, np.ndarray], end: str) -> Gaussian:
    return np.asarray(arrays[f"mu{end}"], np.float64), np.asarray(arrays[f"sigma{end}"], np.float64)


def _of_features(file: places.Place, pool: np.ndarray) -> dict[str, np.ndarray]:
    if pool.ndim != 2 or len(pool) < 2 or pool.dtype.kind != "f" or not np.isfinite(pool).all():
        raise UserError(
            f"{file}: pool_3 is {pool.dtype} of shape {pool.shape}; it must be finite features (n >= 2, d)."
        )
    parts = (Moments.of(pool[start : start + 4096]) for start in range(0, len(pool), 4096))
    mu, sigma = functools.reduce(Moments.merge, parts).gaussian()
    return {"mu": mu, "sigma": sigma, "n": np.asarray(len(pool)), "features": pool}


def _check(file: places.Place, arrays: dict[str, np.ndarray], end: str) -> None:
    """Raise UserError unless shapes of the arrays whose names end so agree, and numbers are finite."""
    mu, sigma = f"mu{end}", f"sigma{end}"
    if mu not in arrays and sigma not in arrays:
        return
    if mu not in arrays or sigma not in arrays:
        raise UserError(f"{file}: holds one of {mu} and {sigma} without the other.")
    shapes = {name: arrays[name].shape for name in (mu, sigma, *(() if end else ("features",))) if name in arrays}
    d = shapes[mu][-1:]
    wanted = {mu: d, sigma: d + d, "features": shapes.get("features", ())[:1] + d}
    for name, shape in shapes.items():
        if not shape or shape != wanted[name] or arrays[name].dtype.kind != "f":
            raise UserError(f"{file}: {name} is {arrays[name].dtype} of shape {shape}, {mu} of {shapes[mu]}.")
        if not np.isfinite(arrays[name]).all():
            raise UserError(f"{file}: {name} holds numbers that are not finite.")
