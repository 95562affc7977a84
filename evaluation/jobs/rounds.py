"""The two folds of which almost every job is one: over the images of a split, and over samples by their number.

Their states say which images, or samples, are done; a round takes the first that are not. So what a round is may change
on the way: an evaluation that was killed goes on with another eval.batch_size and on other devices.
"""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Int

from evaluation.context import Context
from evaluation.drawing import drawer, refuse_failed
from evaluation.fold import ROWS, Fold, State, next_round, rounds_left
from evaluation.metrics.extractors.base import Extractor
from sampling.base import Sampler
from score_flow.runs.processes import is_main
from score_flow.runs.sharding import place, to_host
from score_flow.types import NonFinite, UserError

Arrays = dict[str, np.ndarray]
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
    """A fold that computes figures of every image of the split, each `repeats` times, and finishes them all.

    A seed is one number for an image and a pass: what is random must be folded from it. `arguments` are trees of
    arrays that the compiled program takes. `summarise` says, on the host, what is kept of a round's k images:
    ({name: (k, ...)}, {name: what is only added up}). finish gets {name: (repeats, n, ...)} and the sums.
    Raises NonFinite, which names the images and ends in `advice`, where one did not arrive or a figure is not finite.
    """
    run, source, size, job = context.run, context.source, context.batch_size, context.job
    n, compiled = len(source), jax.jit(compute)

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
        repeat, indices, mask = next_round(~state["done"], size)
        seeds = place(run.mesh, (repeat * n + indices).astype(np.uint32))
        arrays, ok = to_host(compiled(context.params, context.examples(indices), seeds, *arguments))
        indices, arrays = indices[mask], {name: array[mask] for name, array in arrays.items()}
        _refuse(job, indices, arrays, None if ok is None else ok[mask], advice)
        images, sums = summarise(arrays)
        state = {name: value.copy() for name, value in state.items()}
        for name, array in ({"done": True} | images).items():
            state[name][repeat, indices] = array
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
    """What becomes of the arrays of samples beside their being kept; numbers tells them apart, each comes once."""

    arrays: tuple[str, ...]  # that leave the device for it
    init: Callable[[], State]
    add: Callable[[State, Int[np.ndarray, "k"], Arrays], State]


def drawn(
    context: Context,
    finish: Callable[[State, Arrays], Figures],
    *,
    keep: tuple[str, ...] | None = None,
    each: Each = Each((), dict, lambda state, indices, arrays: {}),  # noqa: B008 - a constant
    extractor: Extractor | None = None,
    samplers: Sequence[Callable[[], Sampler]] = (),
) -> Fold:
    """A fold that draws context.n_samples samples, each made once, by the context's sampler or by several in turn.

    keep: which of their arrays are kept on disk by number (None: all); finish, which the main process alone does, gets
    the state and these, {name: (samplers, n, ...)}. state["calls"] are the network calls of each sample.
    Raises NonFinite where a sample did not arrive.
    """
    n, size, store = context.n_samples, context.batch_size, Rows(context.directory / ROWS)
    makers, leave = tuple(samplers) or (lambda: context.sampler,), () if keep is None else (*keep, *each.arrays)
    # Only the sampler at work is kept compiled.
    draw = functools.lru_cache(1)(lambda row: drawer(context.run, makers[row](), keep=leave))

    def init() -> State:
        shape = (len(makers), n)
        return {"done": np.zeros(shape, bool), "calls": np.zeros(shape, np.int64)} | each.init()

    def step(state: State) -> State:
        row, indices, mask = next_round(~state["done"], size)
        arrays, calls, ok = draw(row)(context.params, context.guide, context.control, indices, extractor)
        indices, calls = indices[mask], calls[mask]
        refuse_failed(indices, ok[mask])
        arrays = {name: array[mask] for name, array in arrays.items()}
        kept = {name: array for name, array in arrays.items() if keep is None or name in keep}
        store.write(kept, (len(makers), n), row * n + indices, begun=bool(state["done"].any()))
        done, by_sample = state["done"].copy(), state["calls"].copy()
        done[row, indices], by_sample[row, indices] = True, calls
        return state | each.add(state, indices, arrays) | {"done": done, "calls": by_sample}

    def end(state: State) -> Figures:
        return finish(state, store.read(needed=keep != ())) if is_main() else {}

    return Fold(context.key, lambda state: rounds_left(~state["done"], size), init, step, end)


class Rows:
    """Arrays on disk, an .npy file each, whose rows are written in any order and any number of times.

    What is written is on disk before `write` returns, so that a state that is saved later may rely on it. Plain
    writes: a full disk is an OSError, where one under a memory map would be a signal.
    """

    def __init__(self, directory: Path):
        self._directory = directory

    def write(self, arrays: Arrays, leading: tuple[int, ...], rows: Int[np.ndarray, "k"], begun: bool) -> None:
        """Put arrays of k rows at their places among the rows, counted along the `leading` axes; main process only.

        begun: whether rows were written before; raises UserError where they are gone.
        """
        for name, array in arrays.items() if is_main() else ():
            file, shape = self._file(name), (*leading, *array.shape[1:])
            found = self._open(file)
            if found is None or (found.shape, found.dtype) != (shape, array.dtype):
                if begun:
                    raise UserError(f"{file} is not what this evaluation left there: remove {self._directory.parent}.")
                self._directory.mkdir(parents=True, exist_ok=True)
                found = np.lib.format.open_memmap(file, "w+", array.dtype, shape)
            size, array = array.dtype.itemsize * array[0].size, np.ascontiguousarray(array)
            runs = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1)  # of consecutive rows
            with open(file, "r+b") as stream:
                for run in runs:
                    stream.seek(found.offset + int(rows[run[0]]) * size)
                    stream.write(array[run].tobytes())
                stream.flush()
                os.fsync(stream.fileno())

    def read(self, needed: bool = True) -> Arrays:
        """{name: array} of all that was written; raises UserError where that is gone."""
        found = {file.stem: self._open(file) for file in sorted(self._directory.glob("*.npy"))} if needed else {}
        if needed and (not found or any(array is None for array in found.values())):
            raise UserError(
                f"{self._directory} does not hold what this evaluation left there: remove its parent folder."
            )
        return found

    def _file(self, name: str) -> Path:
        return self._directory / f"{name}.npy"

    @staticmethod
    def _open(file: Path) -> np.memmap | None:
        try:
            return np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):
            return None
