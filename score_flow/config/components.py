"""Plug-ins: the directory is the registry. A component's name is a file of its package that exports `build`.

What a config may give to a `build` says its signature: names, types, defaults, and the limits annotated on them.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from score_flow.config import signatures
from score_flow.config.hints import (
    Entry,
    Given,
    accept,
    arguments_of,
    described,
    hint_of,
    kind_of,
    members,
    note_of,
    parameters_of,
    plug_ins_of,
    with_plug_ins,
)
from score_flow.config.registries import Registry
from score_flow.errors import UserError, check_choice, nearest

Registries = Registry | tuple[Registry, ...]  # where the builds of a section are


@dataclasses.dataclass(frozen=True)
class Component:
    """A plug-in's name and the arguments of its `build` that a config gives."""

    name: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.name, tuple(sorted(self.arguments))))

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> "Component":
        """The component of {"name": ..., argument: value, ...}."""
        return cls(section["name"], {k: v for k, v in section.items() if k != "name"})

    def to_dict(self) -> dict[str, Any]:
        """{"name": ..., argument: value, ...}, as a config writes it."""
        return {"name": self.name, **self.arguments}

    def with_arguments(self, **arguments: Any) -> "Component":
        """The same plug-in with more or other arguments."""
        return Component(self.name, {**self.arguments, **arguments})


def resolve(registry: Registries, section: Component, where: str, **context: Any) -> Any:
    """The `build` that the section names, called with its arguments.

    `context` offers values that the program knows; a build takes those that it has a parameter for. Raises UserError
    for an unknown name or argument, a wrong type, a value outside its limits, and an argument that the context gives.
    """
    return call(find(registry, section, where), section, where, **context)


def check(registry: Registries, section: Component, where: str) -> Component:
    """The section, its arguments as the types of its `build`; nothing is built. Raises UserError as `resolve` does."""
    return Component(section.name, dict(checked(signed(registry, section, where), section, where)))


def with_defaults(registry: Registries, section: Component, where: str) -> Component:
    """The section with every argument that its `build` has, given or by default."""
    parameters = parameters_of(signed(registry, section, where))
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    return Component(section.name, defaults | dict(section.arguments))


def signed(registry: Registries, section: Component, where: str) -> Callable:
    """What has the signature that `find` returns, by its file alone; imported only where that does not do."""
    try:
        return find(registry, section, where, signatures.entry)
    except signatures.Unread:
        return find(registry, section, where)


def find(registry: Registries, section: Component, where: str, entry: Entry = Registry.entry) -> Callable:
    """The `build` that a section names, with what the plug-ins take that its arguments name in turn.

    Raises UserError for an unknown name.
    """
    entries = _entries(registry)
    named = next((each for each in entries if "." in section.name or section.name in each.names()), None)
    if named is None:
        check_choice(f"{where}.name", section.name, [name for each in entries for name in each.names()])
    return with_plug_ins(entry(named, section.name, f"{where}.name"), section.arguments, where, entry)


def _entries(registry: Registries) -> tuple[Registry, ...]:
    return (registry,) if isinstance(registry, Registry) else registry


def call(build: Callable, section: Component, where: str, **context: Any) -> Any:
    """build(**arguments of the section, what it takes of the context), the former checked."""
    parameters = parameters_of(build)
    offered, arguments = {k: v for k, v in context.items() if k in parameters}, dict(checked(build, section, where))
    for name in sorted(offered.keys() & arguments.keys()):
        Given("what the rest of the config says").refuse(f"{where}.{name}")
    arguments |= offered
    needed = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty and n not in arguments]
    if needed:
        raise UserError(f"{where} (name = {section.name}) needs {', '.join(needed)}: give --{where}.{needed[0]}=...")
    try:
        return build(**arguments)
    except UserError as error:  # of what a plug-in checks itself, the section may not be named
        known = str(error).startswith("config.")
        raise error if known else UserError(f"{where} (name = {section.name}): {error}") from error


def checked(build: Callable, section: Component, where: str) -> Iterator[tuple[str, Any]]:
    """(argument, value) of a section as `build` takes them."""
    parameters, known = parameters_of(build), arguments_of(build)
    for field, value in section.arguments.items():
        if field not in parameters:
            keys = sorted(["name", *known])
            here = f"{where} (name = {section.name}); keys: {', '.join(keys)}"
            raise UserError(f"unknown key {field!r} in {here}.{nearest(field, keys)}")
        if field not in known:
            note_of(parameters[field].annotation, Given).refuse(f"{where}.{field}")
        yield field, accept(f"{where}.{field}", value, hint_of(parameters[field]))


def kinds(registry: Registries, section: Component, argument: str, where: str) -> set[type]:
    """The types that an argument may have, none where it does not exist; raises UserError for an unknown plug-in."""
    parameter = arguments_of(signed(registry, section, where)).get(argument)
    return {kind_of(member) for member in members(hint_of(parameter))} if parameter else set()


def explain(registry: Registries) -> str:
    """For each plug-in of a registry what it is, and a line for each argument: type, limits, default."""
    return "\n".join(_about(entry, name) for entry in _entries(registry) for name in entry.names())


def _about(registry: Registry, name: str) -> str:
    """What is said of one plug-in: by its file alone, or, where that does not do, by its import."""
    try:
        return _described(name, signatures.entry(registry, name, name), signatures.entry)
    except signatures.Unread:
        return _described(name, registry.entry(name, name), Registry.entry)


def _described(name: str, build: Callable, entry: Entry) -> str:
    about = " ".join((inspect.getdoc(build) or "").split("\n\n")[0].split())
    own = arguments_of(build)
    lines = [f"{name}: {about}", *(_explained(*each) for each in own.items())]
    for argument, registries in plug_ins_of(build).items():
        for plug_in in [plug_in for each in registries for plug_in in each.names()]:
            entire = arguments_of(with_plug_ins(build, {argument: plug_in}, name, entry)).items()
            lines += [f"{_explained(*each)} with {argument} = {plug_in}" for each in entire if each[0] not in own]
    return "\n".join(lines)


def _explained(argument: str, parameter: inspect.Parameter) -> str:
    default = "needed" if parameter.default is inspect.Parameter.empty else repr(parameter.default)
    return f"  {argument:22} {described(hint_of(parameter))}  [{default}]"
