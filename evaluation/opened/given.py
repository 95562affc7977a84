"""What a caller from Python gives: arrays, checked in one line and computed with in equal batches."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int32, PyTree, UInt8

from sampling.base import Sampler
from score_flow.errors import NonFinite, UserError
from score_flow.runs.sharding import multiple, place, to_host

Levels = UInt8[np.ndarray, "n h w c"]
AnyArray = np.ndarray | jax.Array | Sequence[Any]  # what it must hold, the functions below say in words
Labels = int | np.integer | Sequence[int] | np.ndarray | jax.Array  # one for all, or one each


def levels_of(images: Any, shape: tuple[int, int, int], levels: int) -> Levels:
    """The images of a model, uint8 levels 0 .. levels - 1; raises UserError for anything else."""
    found, wanted = np.asarray(images), f"uint8 (n, {', '.join(map(str, shape))}), levels 0 to {levels - 1}"
    if found.dtype != np.uint8 or found.ndim != 4 or found.shape[1:] != shape or not len(found):
        raise UserError(f"images are {found.dtype} {found.shape}; give {wanted}.")
    if found.max() >= levels:
        raise UserError(f"images have levels up to {found.max()}; give {wanted}.")
    return found


def floats_of(what: str, x: Any, shape: tuple[int, int, int]) -> Float[np.ndarray, "n h w c"]:
    """Finite numbers of a batch of x; raises UserError for anything else."""
    found = np.asarray(x)
    if not np.issubdtype(found.dtype, np.floating) or found.shape[1:] != shape or not len(found):
        raise UserError(f"{what} is {found.dtype} {found.shape}; give floats (n, {', '.join(map(str, shape))}).")
    if not np.isfinite(found).all():
        raise UserError(f"{what} holds numbers that are not finite.")
    return found


def labels_of(labels: Labels | None, n: int | None, *, classes: int, null: bool) -> Int32[np.ndarray, "n"] | None:
    """A label for each of n examples (None: for any number, in turn); None for a model without classes.

    null: the model knows the label after its classes, which stands for none. Raises UserError where they do not fit.
    """
    if not classes:
        if labels is not None:
            raise UserError("labels are given, but the model knows no classes (model.class_conditional).")
        return None
    most = classes if null else classes - 1
    allowed = f"0 to {most}{f' ({classes}: no class)' if null else ''}, one for all or one each"
    if labels is None:
        raise UserError(f"the model has {classes} classes: give labels, {allowed}.")
    found = np.atleast_1d(np.asarray(labels))
    if found.dtype.kind not in "iu" or found.ndim != 1 or not len(found) or found.min() < 0 or found.max() > most:
        raise UserError(f"labels are {' '.join(str(labels).split())[:80]}; give {allowed}.")
    if n is not None and len(found) not in (1, n):
        raise UserError(f"there are {len(found)} labels for {n} images; give {allowed}.")
    return np.resize(found, n or len(found)).astype(np.int32)


def count_of(n: Any, what: str = "n") -> int:
    """A number of images; raises UserError unless it is a positive integer."""
    if not isinstance(n, int | np.integer) or isinstance(n, bool) or n < 1:
        raise UserError(f"{what} is {n!r}; give a whole number, at least 1.")
    return int(n)


def sampler_of(sampler: Any) -> Sampler | None:
    """A sampler, None for the configured one; raises UserError for its name, or for a plug-in that was not called."""
    if isinstance(sampler, ModuleType) or not (sampler is None or callable(sampler)):
        raise UserError(f"sampler is {str(sampler)[:60]}; give one that is made, such as sf.samplers.heun(n_steps=18).")
    return sampler


def by_batches(mesh: Mesh, size: int, compute: Callable[..., PyTree], *given: PyTree) -> PyTree:
    """Compute on batches of n examples, all of one size, on every device; the results on the host.

    The last batch is filled up with the last example. given: trees of arrays whose first axis is n.
    """
    n = len(jax.tree.leaves(given)[0])
    size, parts = multiple(mesh, min(size, n)), []
    for first in range(0, n, size):
        rows = np.minimum(first + np.arange(size), n - 1)
        parts.append(to_host(compute(*jax.tree.map(lambda leaf, rows=rows: place(mesh, leaf[rows]), given))))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:n], *parts)


def refuse_unsolved(what: str, ok: Bool[np.ndarray, "n"]) -> None:
    """Raise NonFinite, with the first images, where a solver did not arrive."""
    if not ok.all():
        bad = np.flatnonzero(~ok)
        more = f" and {len(bad) - 8} more" if len(bad) > 8 else ""
        raise NonFinite(
            f"{what}: images {bad[:8].tolist()}{more} did not arrive: loosen the solver's tolerances, or raise its "
            "max_steps."
        )
