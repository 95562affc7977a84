"""A data set written anew, round by round: what is done stays, an interruption costs a round."""

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from evaluation import fold as folds
from score_flow import FIGURES
from score_flow.errors import UserError
from score_flow.runs import files
from score_flow.runs.places import Place, on_store
from score_flow.runs.processes import barrier, decided, is_main

Make = Callable[[Int[np.ndarray, "b"]], folds.Arrays]  # the rows of some numbers, one each


def refuse_store(workdir: Place, mode: str) -> None:
    """Raise UserError for a folder in which rows cannot be written in place."""
    if on_store(workdir):
        raise UserError(f"--mode={mode} writes its files in place: give a --workdir of a disk, got {workdir}.")


def is_made(facts: dict[str, Any], target: Place, name: str, keys: tuple[str, ...], what: str) -> bool:
    """Say whether a folder is done, by its file of facts; raises UserError where it is done of something else."""
    found = decided(f"facts of {target}", lambda: files.json_at(target / name))
    found = found and {"features": None, "centered": True} | found  # as in older folders, which do not say so
    for key in keys if found else ():
        if key in found and found[key] != facts[key]:
            raise UserError(
                f"{target} holds {what} ({key} is {found[key]} there and {facts[key]} here): give another --workdir."
            )
    return found is not None


def convert(
    facts: dict[str, Any],
    target: Place,
    name: str,
    keys: tuple[str, ...],
    *,
    size: int,
    make: Make,
    what: str,
    hashed: bool = False,
) -> None:
    """Write the arrays of rows 0 .. n - 1, as `make` gives them, to target/*.npy, and then the facts.

    facts: with `n`; keys: those by which work that was begun is known to be of the same; size: rows of a round;
    hashed: the facts name the SHA-256 of the arrays.
    """
    directory, rows, n = target / "rounds", folds.Rows(target), facts["n"]
    if is_main() and not directory.exists():  # not begun, or by an older program
        shutil.rmtree(target, ignore_errors=True)
    barrier(f"{what} {target}")

    def step(state):
        _, indices, mask = folds.next_round(~state["done"], size)
        arrays = {name: array[mask] for name, array in make(indices).items()}
        rows.write(arrays, (n,), indices[mask], begun=bool(state["done"].any()))
        done = state["done"].copy()
        done[0, indices[mask]] = True
        return {"done": done}

    def finish(state):
        if is_main():
            sums = {file.name: files.sha256_of(file) for file in sorted(target.glob("*.npy"))} if hashed else {}
            files.write_json(target / name, facts | ({"sha256": sums} if hashed else {}))
        return facts

    key = {name: facts[name] for name in keys} | {"version": FIGURES}
    begin: Callable[[], dict[str, Bool[np.ndarray, "1 n"]]] = lambda: {"done": np.zeros((1, n), bool)}  # noqa: E731
    fold = folds.Fold(key, lambda state: folds.rounds_left(~state["done"], size), begin, step, finish)
    folds.run(fold, directory, f"{what} ({target.name})", restart=True)
    if is_main():
        shutil.rmtree(directory)
    barrier(f"{what} {target} done")
