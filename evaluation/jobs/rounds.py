"""The two folds of which almost every job is one: over the images of a split, and over samples by their number.

Their states say which images, or samples, are done; a round takes the first that are not. So what a round is may change
on the way: an evaluation that was killed goes on with another eval.batch_size and on other devices.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Int

from evaluation.context import Context, Guidance
from evaluation.drawing import drawer, refuse_failed
from evaluation.fold import ROWS, Arrays, Fold, Rows, State, next_round, rounds_left
from evaluation.metrics.extractors.base import Extractor
from sampling.base import Sampler
from score_flow.errors import NonFinite
from score_flow.runs.processes import is_main
from score_flow.runs.sharding import place, to_host

Figures = dict[str, Any]

# (parameters, batch, seeds, *arguments) -> figures of each image {name: (b, ...)}, and which images arrived (None: all)
Compute = Callable[..., tuple[dict[str, Array], Bool[Array, "b"] | None]]


def per_image(
    context: Context,
    compute: Compute,
    finish: Callable[[Arrays], Figures],
    *,
    repeats: int = 1,
    arguments: tuple[Any, ...] = (),
    summarise: Callable[[Arrays], tuple[Arrays, Arrays]] = lambda arrays: (arrays, {}),
    advice: str = "",
) -> Fold:
    """Make a fold that computes figures of every image of the split, each `repeats` times, and finishes them all.

    Of the images that are looked at, config.eval.num_images or all n.
    A seed is one number for an image and a pass: what is random must be folded from it. `arguments` are trees of
    arrays that the compiled program takes. `summarise` says, on the host, what is kept of a round's k images:
    ({name: (k, ...)}, {name: what is only added up}). finish gets {name: (repeats, n, ...)} and the sums.
    Raises NonFinite, which names the images and ends in `advice`, where one did not arrive or a figure is not finite.
    """
    run, source, size, job = context.run, context.source, context.batch_size, context.job
    numbers, compiled = context.images, jax.jit(compute)
    n, every = len(numbers), len(source)

    def init() -> State:
        batch = {
            k: jax.ShapeDtypeStruct((size, *v.shape[1:]), v.dtype) for k, v in source.read(np.zeros(1, int)).items()
        }
        seeds = jax.ShapeDtypeStruct((size,), np.uint32)
        shapes, _ = jax.eval_shape(compiled, context.params, batch, seeds, *arguments)
        images, sums = summarise({name: np.zeros((1, *s.shape[1:]), s.dtype) for name, s in shapes.items()})
        state = {name: np.full((repeats, n, *np.shape(array)[1:]), np.nan) for name, array in images.items()}
        return {"done": np.zeros((repeats, n), bool)} | state | {name: np.zeros_like(x) for name, x in sums.items()}

    def step(state: State) -> State:
        repeat, rows, mask = next_round(~state["done"], size)
        indices = numbers[rows]  # by which an image has the same noise, whichever others are looked at
        seeds = place(run.mesh, (repeat * every + indices).astype(np.uint32))
        arrays, ok = to_host(compiled(context.params, context.examples(indices), seeds, *arguments))
        rows, arrays = rows[mask], {name: array[mask] for name, array in arrays.items()}
        _refuse(job, indices[mask], arrays, None if ok is None else ok[mask], advice)
        images, sums = summarise(arrays)
        state = {name: value.copy() for name, value in state.items()}
        for name, array in ({"done": True} | images).items():
            state[name][repeat, rows] = array
        return state | {name: state[name] + added for name, added in sums.items()}

    def end(state: State) -> Figures:
        return finish({name: value for name, value in state.items() if name != "done"})

    return Fold(context.key, lambda state: rounds_left(~state["done"], size), init, step, end)


def _refuse(
    job: str, indices: Int[np.ndarray, "k"], arrays: Arrays, ok: Bool[np.ndarray, "k"] | None, advice: str
) -> None:
    fine = np.ones(len(indices), bool) if ok is None else ok
    for array in arrays.values():
        fine = fine & np.isfinite(array).reshape(len(indices), -1).all(axis=1)
    if not fine.all():
        bad = indices[~fine]
        more = f" and {len(bad) - 8} more" if len(bad) > 8 else ""
        raise NonFinite(
            f"{job}: images {bad[:8].tolist()}{more} did not arrive, or their figures are not finite{advice}."
        )


class Each(NamedTuple):
    """What becomes of the arrays of samples beside their being kept; numbers tells them apart, each comes once a row.

    A row has a state of its own: that which `init` makes, or of several rows state["row 0"], state["row 1"], ...
    """

    arrays: tuple[str, ...]  # that leave the device for it
    init: Callable[[], State]
    add: Callable[[State, Int[np.ndarray, "k"], Arrays], State]


# numbers of samples -> their arrays, the network calls of each, which arrived
Draw = Callable[[Int[np.ndarray, "b"]], tuple[Arrays, Int[np.ndarray, "b"], Bool[np.ndarray, "b"]]]
Row = Callable[[tuple[str, ...]], Draw]  # of the arrays that are wanted (none: all); compiled when its turn comes


def drawing(
    context: Context,
    leave: tuple[str, ...],
    *,
    sampler: Callable[[], Sampler] | None = None,
    guide: Guidance | None = None,
    seed: int | None = None,
    extractor: Extractor | None = None,
) -> Draw:
    """Make what draws the context's samples, with another sampler, guidance or seed where one is given."""
    run, guide = context.run, guide or context.guide
    if seed is not None:
        run, labels = dataclasses.replace(run, seed=seed), guide.labels
        guide = guide.replace(labels=labels and labels.replace(seed=seed))
    draw = drawer(run, sampler() if sampler else context.sampler, keep=leave)
    return lambda indices: draw(context.params, guide, context.control, indices, extractor)


def drawn(
    context: Context,
    finish: Callable[[State, Arrays], Figures],
    *,
    keep: tuple[str, ...] | None = None,
    each: Each = Each((), dict, lambda state, indices, arrays: {}),  # noqa: B008 - a constant
    rows: Sequence[Row] = (),
    n: int = 0,
) -> Fold:
    """Make a fold over n samples (context.n_samples), each made once, of the context or of several rows in turn.

    keep: which of their arrays are kept on disk by number (None: all); finish, which the main process alone does, gets
    the state and these, {name: (rows, n, ...)}. state["calls"] are the network calls of each sample.
    Raises NonFinite where a sample did not arrive.
    """
    n, size, store = n or context.n_samples, context.batch_size, Rows(context.directory / ROWS)
    makers, leave = tuple(rows) or (functools.partial(drawing, context),), () if keep is None else (*keep, *each.arrays)
    # Only what is at work is kept compiled.
    draw = functools.lru_cache(1)(lambda row: makers[row](leave))
    several = len(makers) > 1

    def init() -> State:
        shape = (len(makers), n)
        own = {f"row {row}": each.init() for row in range(len(makers))} if several else each.init()
        return {"done": np.zeros(shape, bool), "calls": np.zeros(shape, np.int64)} | own

    def step(state: State) -> State:
        row, indices, mask = next_round(~state["done"], size)
        arrays, calls, ok = draw(row)(indices)
        indices, calls = indices[mask], calls[mask]
        refuse_failed(indices, ok[mask])
        arrays = {name: array[mask] for name, array in arrays.items()}
        kept = {name: array for name, array in arrays.items() if keep is None or name in keep}
        store.write(kept, (len(makers), n), row * n + indices, begun=bool(state["done"].any()))
        done, by_sample = state["done"].copy(), state["calls"].copy()
        done[row, indices], by_sample[row, indices] = True, calls
        own = of_row(state, row)
        own = own | each.add(own, indices, arrays)
        return state | ({f"row {row}": own} if several else own) | {"done": done, "calls": by_sample}

    def end(state: State) -> Figures:
        return finish(state, store.read(needed=keep != ())) if is_main() else {}

    return Fold(context.key, lambda state: rounds_left(~state["done"], size), init, step, end)


def of_row(state: State, row: int) -> State:
    """Return what `Each` added up of the samples of a row."""
    return state.get(f"row {row}", state)
