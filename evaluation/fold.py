"""An evaluation is a left fold over numbered rounds; its meta-checkpoint is (round, state)."""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from score_flow.checkpoint import Checkpoints
from score_flow.record import progress
from score_flow.sharding import agree, barrier, is_main
from score_flow.training import Preemption
from score_flow.types import Preempted

SHARE = 0.05  # of the time of an evaluation may go into saving its state


class Fold(NamedTuple):
    """state_{r+1} = step(state_r, r): data and randomness of a round depend on its number alone.

    A state is a tree of numpy arrays of fixed shapes; finish turns the last one into the figures of the result.
    """

    n_rounds: int
    init: Callable[[], PyTree]
    step: Callable[[PyTree, int], PyTree]
    finish: Callable[[PyTree], dict[str, Any]]


def run(fold: Fold, directory: Path, what: str) -> dict[str, Any]:
    """The result of a fold, from `directory/result.json` if it is done, else from the newest meta-checkpoint on.

    The state is saved after the first round, and then as often as that takes at most SHARE of the time. Raises
    Preempted after SIGTERM, with the state (after the last round, the result) saved.
    """
    result_file = directory / "result.json"
    if result_file.exists():
        return json.loads(result_file.read_text())
    checkpoints = Checkpoints(directory / "meta", keep=2)
    start = checkpoints.newest_good() or 0
    state, stop = checkpoints.restore(start, {"state": fold.init()})["state"] if start else fold.init(), False
    saved, cost = -math.inf, 0.0  # seconds
    with Preemption() as preemption, progress(fold.n_rounds, start, "round", what) as bar:
        for round_number in range(start, fold.n_rounds):
            state = fold.step(state, round_number)
            done = round_number + 1
            bar.update()
            stop, began = preemption.agreed(), time.monotonic()
            due = agree(is_main() and began - saved >= cost / SHARE)  # one clock decides for all
            if done < fold.n_rounds and (stop or due):
                checkpoints.save(done, {"state": state}, {"n_rounds": fold.n_rounds}, wait=stop)
                saved = time.monotonic()
                cost = saved - began  # with the wait for the save before, if that was not done
            checkpoints.poll()
            if stop and done < fold.n_rounds:
                checkpoints.close()
                raise Preempted(
                    f"{what} stopped and saved after {done} of {fold.n_rounds} rounds; run the same command to go on."
                )
    result = fold.finish(state)
    checkpoints.close()
    if is_main():
        write_json(result_file, result)
    barrier(f"finish {directory}")
    if stop:
        raise Preempted(f"{what} is done, and stopped; run the same command to go on.")
    return result


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file so that it is there whole or not at all."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1, default=_plain) + "\n")
    os.replace(temporary, file)


def write_arrays(file: Path, **arrays: np.ndarray) -> None:
    """Write an .npz file so that it is there whole or not at all (by the main process)."""
    if is_main():
        temporary = file.with_suffix(".tmp.npz")
        np.savez_compressed(temporary, **arrays)
        os.replace(temporary, file)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value.tolist()
