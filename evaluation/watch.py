"""`--watch`: the milestones of a run that is still training, one by one as they appear."""

import time
from collections.abc import Iterator
from pathlib import Path

from evaluation.weights import checkpoints_of
from score_flow.runs.checkpoint import Checkpoints
from score_flow.runs.preemption import Preemption
from score_flow.runs.processes import agree, is_main
from score_flow.types import Preempted, UserError

INTERVAL = 5.0  # seconds between two looks


def coming(workdir: Path, begin: int, end: int, preemption: Preemption) -> Iterator[tuple[Checkpoints, int]]:
    """Milestones begin..end counted from 1 (begin = 0: the first; end = 0: the one at which training ends).

    Raises Preempted when asked to stop, and UserError when training ended before milestone `end`.
    """
    if 0 < end < begin:
        raise UserError(f"eval.begin_ckpt={begin}, eval.end_ckpt={end}: the first must not come after the last.")
    number = begin or 1
    while True:
        wait_for(number, workdir / "checkpoints", preemption)
        [(checkpoints, step)] = checkpoints_of(workdir, number, number)
        yield checkpoints, step
        trained = step >= checkpoints.meta(step)["config"]["training"]["n_iters"]
        if number == end or (trained and not end):
            return
        if trained:
            raise UserError(f"eval.end_ckpt={end}: training ended with milestone {number}, at step {step}.")
        number += 1


def wait_for(number: int, milestones: Path, preemption: Preemption) -> None:
    """Return, on every process, once the main one sees so many milestones; the others look at no file meanwhile."""
    announced = False
    while not agree(is_main() and len(list(milestones.glob("*.manifest.json"))) >= number):
        if is_main() and not announced:
            print(f"waiting for milestone {number} in {milestones}, with a look every {INTERVAL:g} s", flush=True)
        announced = True
        if preemption.agreed():
            raise Preempted(f"stopped while waiting for milestone {number}; run the same command to go on.")
        time.sleep(INTERVAL)
