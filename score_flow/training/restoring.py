"""A saved state as that of a run whose averages, optimiser or time sampler were changed on purpose."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from score_flow.config.options import ModelOptions
from score_flow.errors import UserError
from score_flow.runs.checkpoint import Checkpoints, differing, named, placed, target
from score_flow.runs.processes import is_main
from score_flow.training.steps import TrainState

Begin = Callable[[], TrainState]


def items(state: TrainState) -> dict[str, PyTree]:
    """Return the state as separately restorable items."""
    rest = {"opt_state": state.opt_state, "time_state": state.time_state, "step": state.step}
    return {"params": state.params, "ema": list(state.ema), "train": rest}


def restored(
    checkpoints: Checkpoints, step: int, begin: Begin, shapes: TrainState, shardings: TrainState, model: ModelOptions
) -> TrainState:
    """Load the state at a step, its averages by their rates and its optimiser by its moments, as far as they are there.

    begin: makes what it has not. Imported weights come without an optimiser: theirs is a fresh one. Raises UserError
    where the state has not what this config needs.
    """
    wanted, meta = items(target(shapes, shardings)), checkpoints.meta(step)
    imported = "imported" in meta
    old, new = averages_of(meta.get("config", {}).get("model", {})), averages_of(model.to_dict())
    wanted["ema"] = wanted["ema"][:1] * (len(old) or len(new))
    own = named(wanted["train"])
    alike = not imported and not differing(named(checkpoints.layout(step, "train")), own)
    found = checkpoints.restore(step, {name: wanted[name] for name in ("params", "ema", "train")[: 2 + alike]})
    params, ema = found["params"], tuple(found["ema"])
    if old and old != new:
        ema = _averages(dict(reversed(list(zip(old, ema, strict=True)))), new, params, step)
    if imported:
        return begin().replace(step=jnp.asarray(step, jnp.int32), params=params, ema=ema)
    rest = found["train"] if alike else _rest(checkpoints, step, begin, wanted["train"])
    return TrainState(params=params, ema=ema, **rest)


def averages_of(model: Mapping[str, Any]) -> list[str]:
    """Name the averages that config.model keeps, in their order."""
    rates = [f"EMA {rate}" for rate in model.get("ema_rate", ())]
    return rates + [f"EMA power {std}" for std in model.get("ema_std", ())]


def _averages(saved: dict[str, PyTree], names: list[str], params: PyTree, step: int) -> tuple[PyTree, ...]:
    """Return the averages of some names: those that are there, others from the parameters on.

    Raises UserError for a new one by powers of the step, which is of all steps.
    """
    new = [name for name in names if name not in saved]
    late = [name for name in new if "power" in name]
    if late:
        raise UserError(
            f"config.model.ema_std: {', '.join(late)} is an average of all steps, and cannot begin at step {step}: "
            "leave it out, or begin a new run."
        )
    if is_main():
        kept = ", ".join(name for name in names if name in saved) or "none"
        gone = ", ".join(name for name in saved if name not in names) or "none"
        begun = ", ".join(new) or "none"
        print(f"averages: kept {kept}; from the parameters of step {step} on {begun}; dropped {gone}", flush=True)
    copied = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))  # a state is donated: none of its arrays stands twice
    used: set[str] = set()
    found = []
    for name in names:
        tree = saved.get(name, params)
        found.append(copied(tree) if name not in saved or name in used else tree)
        used.add(name)
    return tuple(found)


def _rest(checkpoints: Checkpoints, step: int, begin: Begin, wanted: PyTree) -> dict[str, PyTree]:
    """Load the optimiser's state and the time sampler's, where either is laid out otherwise than it was saved.

    Moments are found by their names. Every count is that of the updates so far. Another time sampler begins anew.
    """
    layout, here = checkpoints.layout(step, "train"), named(wanted)
    saved = named(layout)
    source = {name: _source(name, here, saved) for name in here}
    times = {name for name in here if name.startswith("time_state")}
    again = times if any(source[name] is None for name in times) else set()
    lost = {name for name in here if source[name] is None} - again
    left = {name for name in saved if not name.startswith("time_state")} - set(source.values())
    left = {name for name in left if not name.endswith("count")}
    if lost or left:
        what = "; ".join(
            f"{said} {min(names)}{f' and {len(names) - 1} more' if len(names) > 1 else ''}"
            for said, names in (("this config needs", lost), ("the state has", left))
            if names
        )
        raise UserError(
            f"checkpoint {checkpoints.directory / str(step)} is of another optimiser ({what}): change config.optim "
            f"back, or begin a new run with its weights: --config.training.init={checkpoints.directory.parent}"
        )
    at = {source[name]: leaf.sharding for name, leaf in here.items() if source[name]}
    mesh = next(iter(here.values())).sharding.mesh
    found = named(checkpoints.restore(step, {"train": placed(layout, at, mesh)})["train"])
    anew = named(items(begin())["train"]) if again else {}
    if again and is_main():
        print(f"the time sampler is another: it begins anew at step {step}", flush=True)
    leaves = [jnp.copy(anew[name] if name in again else found[source[name]]) for name in here]
    return jax.tree.unflatten(jax.tree.structure(wanted), leaves)


def _source(name: str, here: Mapping[str, Any], saved: Mapping[str, Any]) -> str | None:
    """Return the name of the saved array that becomes one of this state: that of its name without numbers, or None."""
    shape = tuple(here[name].shape)
    if name in saved and tuple(saved[name].shape) == shape:
        return name
    if name.startswith("opt_state") and name.endswith("count"):
        return next((other for other in saved if other.startswith("opt_state") and other.endswith("count")), None)
    alike = [o for o in saved if _unnumbered(o) == _unnumbered(name) and tuple(saved[o].shape) == shape]
    return alike[0] if len(alike) == 1 and not name.startswith("time_state") else None


def _unnumbered(name: str) -> str:
    """Return a name without the places in a chain of transformations: opt_state.2.mu.bias is opt_state.mu.bias."""
    first, *parts = name.split(".")
    while parts and parts[0].isdigit():
        parts = parts[1:]
    return ".".join([first, *parts])
