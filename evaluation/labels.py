"""Which classes samples are of: some in turn, or drawn; by the number of a sample alone, whatever the batch."""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, Integer, UInt32

from sampling.base import Stream, example_keys
from score_flow.config.options import EvalOptions
from score_flow.errors import UserError, nearest
from score_flow.experiment import Experiment
from score_flow.tree import static

WHERE, ORDER = "config.eval.labels", "config.eval.label_order"
NAMED = 10  # classes that a result names


@flax.struct.dataclass
class Labels:
    """The label of each sample by its number: one of `of`, in turn, or drawn where there are bounds.

    A tree: hand it to a compiled function as an argument. bounds: of 2**32 equal parts, those at which the next label
    begins; whole numbers, so that every machine draws the same.
    """

    of: Int32[Array, "k"]
    bounds: UInt32[Array, "bounds"] | None = None
    seed: int = static(default=0)
    said: str = static(default="")  # in words

    def __call__(self, indices: Integer[Array, "b"]) -> Int32[Array, "b"]:
        """Return the labels of samples by global index; free to call inside jit."""
        if self.bounds is None:
            return self.of[indices % len(self.of)]
        keys = example_keys(self.seed, indices, Stream.LABELS)
        return self.of[jnp.searchsorted(self.bounds, jax.vmap(jax.random.bits)(keys), side="right")]


def numbers_of(run: Experiment, labels: tuple) -> tuple[int, ...]:
    """Return the numbers of classes that are given by number or name; raises UserError for what is neither."""
    for other in [label for label in labels if isinstance(label, bool) or not isinstance(label, int | str)]:
        raise UserError(f"{WHERE} has {other!r}; allowed: whole numbers, and names of classes.")
    words = [label for label in labels if isinstance(label, str)]
    names = run.class_names if words else ()
    for word in words:
        if word not in names:
            known = f"names: {', '.join(names[:NAMED])}{', ...' * (len(names) > NAMED)}" if names else "it names none"
            hint = nearest(word, names) if names else f" Give numbers; to draw them: {ORDER}=uniform."
            raise UserError(f"{WHERE} has {word!r}, which is no class of the data set ({known}).{hint}")
    return tuple(names.index(label) if isinstance(label, str) else label for label in labels)


def labels_of(run: Experiment, options: EvalOptions, classes: int, *, given: bool = False) -> Labels | None:
    """Build what config.eval says of the labels of samples; None for all classes of the model in turn.

    classes: of the model, or of the classifier that guides it; given: the samples of a base model have labels.
    Raises UserError for labels that it has not, or where nobody knows how often each class occurs.
    """
    order = options.label_order
    if not options.labels and order == "in_turn":
        return None
    where = f"{WHERE} is {options.labels}" if options.labels else f"{ORDER} is {order}"
    if not classes or given:
        why = "the images of config.eval.low_res have labels of their own" if given else "the model has no classes"
        raise UserError(f"{where}, but {why}.")
    numbers = numbers_of(run, options.labels) or tuple(range(classes))
    if not all(0 <= number < classes for number in numbers):
        raise UserError(f"{where}; allowed: numbers from 0 to {classes - 1}, or names of classes.")
    of, some = jnp.asarray(numbers, jnp.int32), _said(options.labels, numbers)
    if order == "in_turn":
        return Labels(of, said=f"in turn, of {some}")
    counts = [1] * len(numbers) if order == "uniform" else _counts(run, numbers)
    said = {"uniform": "drawn uniformly", "frequencies": "drawn as often as in the training images"}[order]
    return Labels(of, jnp.asarray(bounds_of(counts)), run.seed, f"{said}, of {some}" if some else said)


def bounds_of(counts: Sequence[int]) -> UInt32[np.ndarray, "bounds"]:
    """Return where, of 2**32 equal parts, the part of each but the first begins, in proportion to the counts."""
    total, below, bounds = sum(counts), 0, []
    for count in counts[:-1]:
        below += int(count)
        bounds.append(min((below << 32) // total, 2**32 - 1))
    return np.array(bounds, np.uint32)


def _counts(run: Experiment, numbers: tuple[int, ...]) -> list[int]:
    found = run.class_counts
    if found is None:
        raise UserError(f"{ORDER} is frequencies, but the data set does not say how often each class occurs.")
    counts = [int(found[number]) for number in numbers]
    if not sum(counts):
        raise UserError(f"{ORDER} is frequencies, but no training image has a label of {numbers}.")
    return counts


def _said(labels: tuple, numbers: tuple[int, ...]) -> str:
    """Name the classes that were asked for."""
    words = [f"{n} ({label})" if isinstance(label, str) else str(n) for label, n in zip(labels, numbers, strict=False)]
    return ", ".join(words[:NAMED]) + (f" and {len(words) - NAMED} more" if len(words) > NAMED else "")
