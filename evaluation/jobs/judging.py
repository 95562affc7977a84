"""How images compare with a reference in the features of an extractor: distances, scores, precision and recall.

Only of Inception's features is the Frechet distance called FID, and the score the Inception score.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from evaluation.context import Context
from evaluation.fold import Arrays, State
from evaluation.jobs.base import Opened
from evaluation.jobs.rounds import Draw, Each
from evaluation.metrics.collector import Collector
from evaluation.metrics.extractors.base import NAMES, Extractor, Names
from evaluation.metrics.frechet import ClassSums, Moments, frechet_distance, split_of
from evaluation.metrics.kernel_distance import block_distance, kernel_distance, subset_distances
from evaluation.metrics.manifold import precision_recall
from evaluation.metrics.statistics import Statistics, open_statistics
from score_flow.config.options import EvalOptions
from score_flow.errors import UserError
from score_flow.experiment import Experiment
from score_flow.runs.places import Place
from score_flow.runs.sharding import place, to_host

Figures = dict[str, Any]
READS = ("extractor", "stats", "fid_dataset", "kept_features")  # of config.eval
SPLITS = 10  # of the images, for the published form of the Inception score
BLOCK = 1024  # features in each block of TF-GAN's KID, which score_sde reports
SUBSET = 1000  # features in each subset of torch-fidelity's KID
NEIGHBOURS = 3  # of the manifolds of precision and recall


def open_reference(run: Experiment, options: EvalOptions, workdir: Place, n: int, what: str) -> Opened:
    """Open what n images, which a setting says, are compared with, and by what features.

    Raises UserError, before any work is done, where weights or statistics are missing or of something else.
    """
    if n < 2:
        raise UserError(f"{what} is {n}; a Fréchet distance needs at least 2.")
    reference, extractor = open_statistics(run, options, workdir)
    of = {"reference": reference.file_sha256, "features": extractor.name}
    more = {name: said for name, (said, _) in extractor.more.items() if name in reference.more}
    return Opened((reference, extractor), of | ({"more features": more} if more else {}))


class Judge(NamedTuple):
    """Adds up the features of n numbered images, and compares them with a reference.

    Float64 moments of all features, some features themselves, class probabilities: a state of fixed shapes. `more`:
    the features of further distances, sFID and those beside, as far as the reference has them.
    """

    reference: Statistics
    extractor: Extractor
    collector: Collector
    part: Int[np.ndarray, "n"]  # of the splits that the score is computed on, that each image is in
    classes: ClassSums  # empty
    more: dict[str, int]  # distance: dimension of its features

    @classmethod
    def of(cls, context: Context, opened: tuple[Statistics, Extractor], n: int) -> "Judge":
        """Make that of n images."""
        (reference, extractor), splits = opened, min(n, SPLITS)
        classes = ClassSums.empty(splits, n_logits(extractor, context.run.pixel_shape))
        collector = Collector(n, extractor.n_features, context.options.kept_features)
        more = {name: d for name, (_, d) in extractor.more.items() if name in reference.more}
        return cls(reference, extractor, collector, split_of(n, splits), classes, more)

    @property
    def each(self) -> Each:
        """What becomes of every image."""
        return Each(("pool", "logits", *self.more), self._init, self._add)

    def _init(self) -> State:
        more = {"more": {name: Moments.empty(d) for name, d in self.more.items()}} if self.more else {}
        return self.collector.init() | {"classes": self.classes} | more

    def _add(self, state: State, indices: Int[np.ndarray, "k"], arrays: Arrays) -> State:
        classes = state["classes"]
        if "logits" in arrays:
            classes = classes.add(arrays["logits"], self.part[indices])
        more = {name: state["more"][name].merge(Moments.of(arrays[name])) for name in self.more}
        of = {"classes": classes} | ({"more": more} if more else {})
        return self.collector.add(state, indices, arrays["pool"]) | of

    def figures(self, state: State) -> Figures:
        """Compute all figures, under the names that their features give them."""
        return figures(self.collector.gaussian(state), state, self.reference, names=self.extractor.names)

    def about(self) -> Figures:
        """Say what was compared with what, by what."""
        reference, extractor = self.reference, self.extractor
        return {
            "features": extractor.name,
            "n_features": extractor.n_features,
            **{f"features_{name}": said for name, (said, _) in extractor.more.items() if name in self.more},
            "reference": reference.file,
            "reference_sha256": reference.file_sha256,
            "n_reference": reference.n,
            "split": reference.name,
        }


def reading(
    context: Context, extractor: Extractor, read: Callable[[Int[np.ndarray, "b"]], Arrays], leave: tuple[str, ...]
) -> Draw:
    """Make what takes images, pixel levels {"image": (b, h, w, c), ...}, from where they are in place of drawing them.

    `calls` among their arrays are the network calls of each.
    """
    compiled = jax.jit(lambda extractor, images: extractor.features(images).arrays())

    def draw(indices):
        arrays = read(indices)
        arrays |= to_host(compiled(extractor, place(context.run.mesh, arrays["image"])))
        calls = arrays.pop("calls", np.zeros(len(indices), np.int64))
        kept = {name: array for name, array in arrays.items() if not leave or name in leave}
        return kept, calls, np.ones(len(indices), bool)

    return draw


def n_logits(extractor: Extractor, image_shape: tuple[int, ...]) -> int:
    """Count the classes that the extractor's logits tell apart; 1 where it has none, of which no image is counted."""
    logits = jax.eval_shape(extractor.features, jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)).logits
    return 1 if logits is None else logits.shape[1]


def figures(gaussian: tuple[np.ndarray, np.ndarray], state: State, reference: Statistics, *, names: Names) -> Figures:
    """Compute the figures of all samples against a reference; without its features, those of its Gaussians alone."""
    found = {names.distance: frechet_distance(*gaussian, reference.mu, reference.sigma)}
    for distance, moments in state.get("more", {}).items():
        found[distance] = frechet_distance(*moments.gaussian(), *reference.more[distance])
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


def distance_of(result: Figures) -> tuple[str, str] | None:
    """Return (the name of a result's distance, what people call it): FID of Inception's features alone."""
    return next(iter(distances_of(result)), None)


def distances_of(result: Figures) -> list[tuple[str, str]]:
    """List (name, what people call it) of every distance of a result, that of its extractor first."""
    said = {names.distance: names.said for names in NAMES} | {"sfid": "sFID"}
    return [(name, said[name]) for name in result if name in said]


def spread(of_seeds: dict[int, Figures]) -> Figures:
    """Put the figures of several seeds together: of each its mean, its deviation over seeds, all by seed.

    The published protocol, the least distance of three, is read off `by_seed`.
    """
    first, *_ = of_seeds.values()
    found: Figures = {}
    for name, value in first.items():
        values = [figures[name] for figures in of_seeds.values()]
        if not isinstance(value, float):
            found[name] = value
        elif not name.endswith(("standard_error", "deviation")):  # within a seed: beside it, in by_seed
            found |= {name: float(np.mean(values)), f"{name}_std": float(np.std(values, ddof=1))}
    return found | {"n_seeds": len(of_seeds), "by_seed": [{"seed": seed} | f for seed, f in of_seeds.items()]}
