"""Which settings a run goes on with: those of its state, others that a person accepts, and what no state survives."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from score_flow.config import components
from score_flow.config.components import Component
from score_flow.config.loading import changes, values_of, within
from score_flow.config.options import SCHEMA, Config
from score_flow.data.compare import refuse_other_data, same_place
from score_flow.errors import UserError, nearest
from score_flow.runs.places import Place

# What a state goes on with, unless a person accepts another value.
FIXED = (
    "path", "network", "model", "data", "optim.optimizer", "training.batch_size", "training.time_sampler",
    "training.teacher", "training.contrast", "seed",
)  # fmt: skip
# What the numbers of a network mean: under another value its weights are those of something else.
MEANING = (
    "path", "model.prediction", "model.time", "model.time_scale", "model.time_shift", "model.input", "model.data_std",
    "model.consistency", "data.centered", "data.inset", "training.contrast",
)  # fmt: skip
ONE_STATE = {"Adam", "AdamW"}  # optimisers that go on with each other's moments
# All that training looks at, and what of it changes neither losses nor weights.
TRAINED = ("seed", "path", "network", "model", "data", "training", "optim")
HARMLESS = tuple(
    f"training.{name}"
    for name in (
        "n_jitted_steps", "log_freq", "eval_freq", "snapshot_freq", "snapshot_freq_for_preemption", "save_minutes",
        "snapshot_sampling", "fsdp", "init", "accept", "logger",
    )
)  # fmt: skip


class Change(NamedTuple):
    """A setting that is another from a step on."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"


def settled(config: Config) -> Config:
    """Return a config as it is kept: what a command accepts is of that command alone."""
    return dataclasses.replace(config, training=dataclasses.replace(config.training, accept=()))


def as_saved(config: Config) -> dict[str, Any]:
    """Return a config as it is kept, as JSON reads it."""
    return json.loads(settled(config).to_json())


def accepted(config: Config, sections: tuple[str, ...] = FIXED) -> tuple[str, ...]:
    """Return the whole names of config.training.accept; raises UserError for one that is no setting of training."""
    known = set(_settings(config, (*TRAINED, *sections)))
    return tuple(_whole(name, known) for name in config.training.accept)


def _settings(config: Config, sections: tuple[str, ...]) -> Iterator[str]:
    """Yield the dotted names of some sections, of what is in them, and of the arguments of plug-ins."""
    yield from sections
    for key, value in values_of(config).items():
        if not within(key, sections):
            continue
        yield key
        if isinstance(value, Component):
            entire = components.with_defaults(SCHEMA[key].metadata["limits"].among, value, f"config.{key}")
            yield from (f"{key}.{name}" for name in entire.to_dict())


def _whole(name: str, known: set[str]) -> str:
    """Return the dotted name of a setting by that or by its last word."""
    said, name = f"config.training.accept names {name!r}", name.strip().removeprefix("config.")
    if name == "devices":  # of which results do not depend
        return "training.fsdp"
    ends = [name] if name in known else sorted(key for key in known if key.endswith(f".{name}"))
    if len(ends) > 1:
        raise UserError(f"{said}, which is {' and '.join(ends)}: give one of them.")
    if not ends:
        words = sorted(known | {key.rpartition(".")[2] for key in known})
        fixed = ", ".join(key for key in FIXED if not within(key, MEANING))
        raise UserError(f"{said}, which is no setting of training; accepted are {fixed}.{nearest(name, words)}")
    return ends[0]


def going_on(
    meta: dict[str, Any],
    config: Config,
    facts: dict[str, Any] | None,
    *,
    sections: tuple[str, ...] = FIXED,
    where: Place,
    unfit: Callable[[], str | None] = lambda: None,
) -> list[Change]:
    """Return what is otherwise than when a state was saved; raises UserError for what was not, or cannot be, accepted.

    meta: of the state; facts: of the data; sections: what must not change unless it is accepted. unfit: says in which
    array the state does not fit this config. Of the data the content decides, and not where they lie.
    """
    accept, now, saved = accepted(config, sections), as_saved(config), meta.get("config")
    if saved is None:
        raise UserError(f"{where} does not say with which config it was made: use another --workdir.")
    found = []
    if facts:
        found = _other_data(meta.get("data"), facts, accept, where)
        saved = same_place(saved, now, known="data" in meta)
    differ = [Change(*change) for change in changes(saved, now, (*TRAINED, *sections))]
    judged = [change for change in differ if within(change.key, sections)]
    never = [why for change in judged if (why := _why_never(change))]
    refused = [change for change in judged if not within(change.key, accept)]
    problem = unfit() if judged else None
    if never or refused or problem:
        shown = "; ".join(map(str, judged))
        raise UserError(f"{where} was made with another config ({shown}): {_way_out(never, refused, problem, where)}")
    return found + [change for change in differ if not within(change.key, HARMLESS)]


def _why_never(change: Change) -> str | None:
    """Return why a state cannot go on with a change, None where it can."""
    if within(change.key, MEANING):
        return f"{change.key} says what the weights mean"
    if change.key == "optim.optimizer" and not {change.old, change.new} <= ONE_STATE:
        return f"the moments of {change.old} are none of {change.new}"
    return None


def _way_out(never: list[str], refused: list[Change], problem: str | None, where: Place) -> str:
    """Say how to go on."""
    back = "change it back or use another --workdir"
    if never or problem:
        why = problem or never[0]
        new = f" (a new run can begin with it: --config.training.init={where.parent})"
        return f"{back}; it cannot be accepted, as {why}{'' if problem else new}."
    names = ", ".join(repr(short(change.key)) for change in refused)
    return f"{back}, or go on with it on purpose by --config.training.accept=({names},)."


def _other_data(
    saved: dict[str, Any] | None, facts: dict[str, Any], accept: tuple[str, ...], where: Place
) -> list[Change]:
    """Return that the data are others, where that is accepted."""
    try:
        refuse_other_data(saved, facts, str(where))
    except UserError as error:
        if not any(within("data.source", [key]) or within(key, ["data.source"]) for key in accept):
            raise UserError(f"{error}, or go on with it on purpose by --config.training.accept=('data',)") from error
        old, new = (f"{of['name']} ({of['n']} images, {of['first']})" if of else "unknown" for of in (saved, facts))
        return [Change("data.source", old, new)]
    return []


def short(key: str) -> str:
    """Return the least name by which a setting may be accepted."""
    last = key.rpartition(".")[2]
    alike = [other for other in SCHEMA if within(other, TRAINED) and other.rpartition(".")[2] == last]
    return last if alike == [key] and last not in TRAINED else key
