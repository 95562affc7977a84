"""An evaluation is a left fold whose state says what is done; a result says all that it depends on."""

import json
import math
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, PyTree

from score_flow.config.components import Component
from score_flow.config.loading import flatten
from score_flow.config.options import SCHEMA
from score_flow.errors import Preempted, UserError
from score_flow.runs import files, places
from score_flow.runs.checkpoint import Checkpoints
from score_flow.runs.preemption import Preemption
from score_flow.runs.processes import agree, decided, is_main
from score_flow.runs.progress import progress

SHARE = 0.05  # of the time of an evaluation may go into saving its state
MOST = 4  # differences that a message lists
ROWS = "rows"  # folder of what rounds leave on disk for the end: with the result written it has done its service

Key = dict[str, Any]  # what a result depends on, by name: nested, plain values that JSON writes
State = dict[str, PyTree]
Arrays = dict[str, np.ndarray]


class Fold(NamedTuple):
    """state' = step(state), until n_rounds(state), the rounds that are still to be done, is 0.

    A state is a tree of numpy arrays of fixed shapes that says itself what is done: killed at any moment, a fold goes
    on in other batches, on other devices. finish turns the last one into the figures of the result, and leave writes
    what lies beside a result that is there, whenever that was made, as far as it is missing.
    key: all that the result depends on; batches, devices and paths are not among it.
    """

    key: Key
    n_rounds: Callable[[State], int]
    init: Callable[[], State]
    step: Callable[[State], State]
    finish: Callable[[State], dict[str, Any]]
    leave: Callable[[], None] = lambda: None


def run(fold: Fold, directory: places.Place, what: str, *, restart: bool = False) -> dict[str, Any]:
    """Read the result of a fold from `directory/result.json`, or compute it from the newest meta-checkpoint on.

    The state is saved after the first round, and then as often as that takes at most SHARE of the time. Raises
    UserError where the folder holds a result or, unless they are to be made anew (restart), states of another key, and
    Preempted after SIGTERM, with the state (after the last round, the result) saved.
    """
    if (found := finished(fold.key, directory)) is not None:
        fold.leave()
        return found
    key = plain(fold.key)
    _set_aside(key, directory, what, restart=restart)
    checkpoints = Checkpoints(directory / "meta", keep=2)
    done = checkpoints.newest_good() or 0
    state = checkpoints.restore(done, {"state": fold.init()})["state"] if done else fold.init()
    saved, cost, stop = -math.inf, 0.0, False  # seconds
    left = fold.n_rounds(state)
    with Preemption() as preemption, progress(done + left, done, "round", what) as bar:
        while left:
            state = fold.step(state)
            done, left = done + 1, fold.n_rounds(state)
            bar.update()
            stop, began = preemption.agreed(), time.monotonic()
            due = agree(is_main() and began - saved >= cost / SHARE)  # one clock decides for all
            if left and (stop or due):
                checkpoints.save(done, {"state": state}, {"n_rounds": done + left, "key": key}, wait=stop)
                saved = time.monotonic()
                cost = saved - began  # with the wait for the save before, if that was not done
            checkpoints.poll()
            if stop and left:
                checkpoints.close()
                raise Preempted(
                    f"{what} stopped and saved after {done} of {done + left} rounds; run the same command to go on."
                )
    result = fold.finish(state)
    checkpoints.close()
    decided(f"result in {directory}", lambda: _write(result | {"key": key}, directory))
    if stop:
        raise Preempted(f"{what} is done, and stopped; run the same command to go on.")
    fold.leave()
    return result


# ---- which rounds


def rounds_left(missing: Bool[np.ndarray, "rows n"], size: int) -> int:
    """Count the rounds of at most `size` numbers of one row that what is missing takes."""
    return int(sum(-(-row.sum() // size) for row in missing.astype(np.int64)))


def next_round(
    missing: Bool[np.ndarray, "rows n"], size: int
) -> tuple[int, Int[np.ndarray, "size"], Bool[np.ndarray, "size"]]:
    """Return (row, numbers, which count): the first `size` that are missing of the first row that misses any.

    Where fewer are left, the last is repeated, which then does not count.
    """
    row = int(missing.any(axis=1).argmax())
    wanted = np.flatnonzero(missing[row])[:size]
    positions = np.arange(size)
    return row, wanted[np.minimum(positions, len(wanted) - 1)], positions < len(wanted)


# ---- what rounds leave on disk


class Rows:
    """Arrays on disk, an .npy file each, whose rows are written in any order and any number of times.

    What is written is on disk before `write` returns, so that a state that is saved later may rely on it. Plain
    writes: a full disk is an OSError, where one under a memory map would be a signal. On a store, where nothing is
    written in place, each `write` leaves an object, and `read` puts them together.
    """

    def __init__(self, directory: places.Place):
        self._directory = directory

    def write(self, arrays: Arrays, leading: tuple[int, ...], rows: Int[np.ndarray, "k"], *, begun: bool) -> None:
        """Put arrays of k rows at their places among the rows, counted along the `leading` axes; main process only.

        begun: whether rows were written before; raises UserError where they are gone.
        """
        if is_main() and places.on_store(self._directory):
            return self._put(arrays, leading, rows, begun=begun)
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
        """Read {name: array} of all that was written; raises UserError where that is gone."""
        found = {}
        if needed and places.on_store(self._directory):
            found = self._together()
        elif needed:
            found = {file.stem: self._open(file) for file in sorted(self._directory.glob("*.npy"))}
        if needed and (not found or any(array is None for array in found.values())):
            raise UserError(
                f"{self._directory} does not hold what this evaluation left there: remove its parent folder."
            )
        return found

    def _put(self, arrays: Arrays, leading: tuple[int, ...], rows: Int[np.ndarray, "k"], *, begun: bool) -> None:
        if not arrays:
            return
        if begun and not self._directory.is_dir():
            raise UserError(f"{self._directory} is gone: remove {self._directory.parent}.")
        if not begun:
            places.remove(self._directory)
        file = self._directory / f"{rows[0]}-{rows[-1]}.npz"
        files.write_arrays(file, rows=rows, leading=np.array(leading), **arrays)

    def _together(self) -> Arrays:
        found: Arrays = {}
        for file in self._directory.glob("*.npz"):
            part = files.arrays_of(file)
            rows, leading = part.pop("rows"), tuple(part.pop("leading"))
            for name, array in part.items():
                empty = np.zeros((*leading, *array.shape[1:]), array.dtype)
                found.setdefault(name, empty).reshape(-1, *array.shape[1:])[rows] = array
        return found

    def _file(self, name: str) -> places.Place:
        return self._directory / f"{name}.npy"

    @staticmethod
    def _open(file: places.Place) -> np.memmap | None:
        try:
            return np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):
            return None


# ---- keys


def finished(key: Key, directory: places.Place) -> dict[str, Any] | None:
    """Read the result that is there, None without one of this key's making; nothing is written.

    Raises UserError, with the part that differs, where a result or a state has another key. What was written without a
    key, by older programs, or only half, is none.
    """
    result = decided(f"result in {directory}", lambda: files.json_at(directory / "result.json"))
    if result is None or "key" not in result:
        return None
    refuse_other_key(plain(key), result.pop("key"), directory=directory, what="a result")
    return result


def refuse_other_state(key: Key, directory: places.Place) -> None:
    """Raise UserError where the newest state of a fold is of another key; nothing is written."""
    if saved := state_key(directory):
        refuse_other_key(plain(key), saved, directory=directory, what="the begun state of a result")


def refuse_other_neighbours(key: Key, folder: places.Place) -> None:
    """Raise UserError where the results in a folder are not of one making: what two keys both name must be equal."""
    ours = flatten(plain(key))

    def compare() -> None:
        for file in sorted(folder.glob("*/result.json")):
            theirs = flatten((files.json_at(file) or {}).get("key", {}))
            both = (ours.keys() & theirs.keys()) - {"job"}
            common = ({name: tree[name] for name in ours if name in both} for tree in (ours, theirs))
            refuse_other_key(*common, directory=file.parent, what="a result")

    decided(f"results in {folder}", compare)


def agreeing(key: Key, saved: Key) -> bool:
    """Say whether what two keys both name is equal, but for the job."""
    ours, theirs = flatten(plain(key)), flatten(saved)
    return all(ours[name] == theirs[name] for name in (ours.keys() & theirs.keys()) - {"job"})


def refuse_other_key(key: Key, saved: Key, *, directory: places.Place, what: str) -> None:
    """Raise UserError, with both values of every part that differs."""
    if changed := differing(key, saved):
        more = [f"and {len(changed) - MOST} more"] if len(changed) > MOST else []
        changed = changed[:MOST] + more
        kind = "data" if any(" images." in name for name in changed) else "settings"
        raise UserError(f"{directory} holds {what} of other {kind} ({'; '.join(changed)}): give another --eval_folder.")


def differing(key: Key, saved: Key) -> list[str]:
    """Say what differs between a key and a saved one, for which settings younger than it had their present defaults."""
    new, old = flatten(key), flatten(saved)
    young = {name: field.default for name, field in SCHEMA.items() if name in new.keys() - old.keys()}
    # A plug-in is in a key by its parts: what has the name of one ("dequantizer") is something else.
    old |= {name: plain(value) for name, value in young.items() if not isinstance(value, Component)}
    return [
        f"{name} is {old.get(name, 'absent')!r} there and {new.get(name, 'absent')!r} here"
        for name in new | old
        if old.get(name, "absent") != new.get(name, "absent")
    ]


def state_key(directory: places.Place) -> Key | None:
    """Read the key of the newest state of a fold; None without a state, {} of one that has none."""
    states = Checkpoints(directory / "meta")
    try:
        return states.meta(steps[-1]).get("key", {}) if (steps := states.steps()) else None
    except (OSError, ValueError):  # damaged: the one before it decides, when it is restored
        return None
    finally:
        states.close()


def plain(tree: Any) -> Any:
    """Return a tree as JSON reads it back."""
    return json.loads(files.json_of(tree))


def write_arrays(file: places.Place, **arrays: np.ndarray) -> None:
    """Write an .npz file so that it is there whole or not at all (by the main process)."""
    if is_main():
        files.write_arrays(file, **arrays)


def _set_aside(key: Key, directory: places.Place, what: str, *, restart: bool) -> None:
    """Make room for a fold: a result without a key is kept under another name, its states are removed, both said."""
    saved = state_key(directory)
    if saved and not restart:
        refuse_other_key(key, saved, directory=directory, what="the begun state of a result")

    def make_room() -> None:
        places.make_folder(directory)
        if (old := directory / "result.json").exists():
            number = next(
                i for i in range(len(list(directory.iterdir()))) if not (directory / f"result.e{i}.json").exists()
            )
            places.move(old, kept := directory / f"result.e{number}.json")
            print(f"{what}: the result there was not written whole, or by a program that noted no data and settings "
                  f"with it: it is made anew, the old one kept as {kept}", flush=True)  # fmt: skip
        if saved is not None and differing(key, saved):
            print(f"{what}: the state that was begun is of {'other settings' if saved else 'an older program'}: "
                  "it starts again.", flush=True)  # fmt: skip
            places.remove(directory / "meta")
            places.remove(directory / ROWS)

    decided(f"room in {directory}", make_room)


def _write(result: dict[str, Any], directory: places.Place) -> None:
    files.write_json(directory / "result.json", result)
    places.remove(directory / ROWS)
