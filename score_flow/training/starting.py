"""What a new run begins with: parameters of its own draw, or those of another run or of a published file."""

from collections.abc import Callable, Set
from functools import partial
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from score_flow.config.options import Config
from score_flow.errors import UserError
from score_flow.experiment import Experiment
from score_flow.model import OWN, PROJECTOR
from score_flow.runs.checkpoint import differing
from score_flow.runs.places import Place
from score_flow.runs.processes import is_main
from score_flow.training.history import History, began
from score_flow.training.steps import TrainState, init_state
from score_flow.types import Params

SHOWN = 6  # mismatches that an error spells out


class Start(NamedTuple):
    """Weights that a new run begins with; facts: what they are, for the run's history."""

    params: Params
    facts: dict[str, Any]


# From the parameters of a run, as shapes with layouts, to weights of them; raises UserError for those that do not fit.
Beginning = Callable[[PyTree], Start]


def fitted(weights: PyTree, shapes: PyTree, of_classes: Set[str], where: str) -> tuple[PyTree, list[str]]:
    """(the weights that the parameters of some shapes take over, the names of those that are drawn anew).

    of_classes: the names of parameters whose shapes are those of the classes: where they differ they are drawn anew,
    which a line says of each. So is a projector (losses/alignment.py); one that is not needed is left out. Raises
    UserError for any other name or shape that differs.
    """
    there, here = ({"/".join(path): leaf for path, leaf in flatten_dict(tree).items()} for tree in (weights, shapes))
    projects = lambda name: name.startswith(f"{OWN}/{PROJECTOR}/")  # noqa: E731
    there = {name: leaf for name, leaf in there.items() if name in here or not projects(name)}
    differ = differing(there, here)
    drawn = {n: said for n, said in differ.items() if n in here and (n in of_classes or projects(n))}
    if faults := [said for name, said in differ.items() if name not in drawn]:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise UserError(f"{where} is of another network: {'; '.join(faults[:SHOWN])}{more}.")
    for said in drawn.values() if is_main() else ():
        print(f"{where}: {said}: drawn anew", flush=True)
    return unflatten_dict({tuple(n.split("/")): leaf for n, leaf in there.items() if n not in drawn}), list(drawn)


def started(
    beginning: Beginning | None, run: Experiment, n_ema: int, draw: Callable[[], TrainState], wanted: TrainState
) -> Callable[[], tuple[TrainState, History]] | None:
    """Return what makes the state and the history of a run that begins with other weights; None where it does not.

    draw: makes the state of a run that begins with its own; wanted: its shapes, with their layouts.
    """
    if beginning is None:
        return None
    layouts = jax.tree.map(lambda leaf: leaf.sharding, wanted)
    init = lambda params: init_state(params, run.loss, run.optimiser, n_ema=n_ema)  # noqa: E731
    return partial(begun, beginning, wanted.params, lambda: draw().params, jax.jit(init, out_shardings=layouts))


def begun(
    beginning: Beginning, wanted: PyTree, draw: Callable[[], Params], init: Callable[[Params], TrainState]
) -> tuple[TrainState, History]:
    """Make the state at step 0 of a run that begins with other weights, and its history.

    wanted: the shapes of the parameters, with their layouts; draw: makes the parameters of a run of its own; init: the
    state of some parameters, of which averages and optimiser begin anew.
    """
    start, shapes = beginning(wanted), flatten_dict(wanted)
    given = flatten_dict(start.params)
    whole = flatten_dict(draw()) if set(shapes) - set(given) else {}
    params = {
        path: jax.device_put(given[path], leaf.sharding) if path in given else whole[path]
        for path, leaf in shapes.items()
    }
    if is_main():
        print(f"begins with {began(start.facts)}", flush=True)
    return init(unflatten_dict(params)), {"began": start.facts}


def refuse_begun(workdir: Place, config: Config, history: History) -> None:
    """Raise UserError where a run that has begun otherwise is asked to begin with other weights."""
    asked, facts = config.training.init, history.get("began", {})
    if asked and asked != facts.get("asked"):
        with_what = began(facts) if facts else "weights of its own"
        raise UserError(
            f"config.training.init is {asked!r}, but the run in {workdir} has begun, with {with_what}, and goes on: "
            "leave it out, or use another --workdir."
        )
