"""Plug-ins: the directory is the registry. A component's name is a file of its package that exports `build`."""

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from score_flow.limits import available, convert
from score_flow.types import UserError, check_choice


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


def resolve(package: str, section: Component, where: str, **context: Any) -> Any:
    """The `build` of the file that the section names, called with its arguments.

    `context` offers values that the program knows; a build takes those that it has a parameter for and the section is
    silent about. Raises UserError for an unknown name, argument or type.
    """
    return call(find(package, section, where), section, where, **context)


def find(package: str, section: Component, where: str) -> Callable:
    """The `build` that a section names; raises UserError for an unknown name."""
    kind = package.rpartition(".")[2]
    check_choice(f"{where}.name ({kind})", section.name, available(package))
    return importlib.import_module(f"{package}.{section.name}").build


def parameters_of(build: Callable) -> dict[str, inspect.Parameter]:
    """The arguments that a config may give to a build."""
    found = inspect.signature(build).parameters
    return {name: parameter for name, parameter in found.items() if name not in ("parent", "name")}


def call(build: Callable, section: Component, where: str, **context: Any) -> Any:
    """build(**arguments of the section), which are checked by name, type and limits."""
    parameters = parameters_of(build)
    arguments = {k: v for k, v in context.items() if k in parameters} | dict(checked(build, section, where))
    needed = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty and n not in arguments]
    if needed:
        raise UserError(f"{where} (name = {section.name}) needs {', '.join(needed)}: give --{where}.{needed[0]}=...")
    return build(**arguments)


def checked(build: Callable, section: Component, where: str) -> Iterator[tuple[str, Any]]:
    """(argument, value) of a section as `build` takes them; raises UserError for an unknown name or a wrong type."""
    parameters = parameters_of(build)
    for field, value in section.arguments.items():
        if field not in parameters:
            check_choice(f"an argument of {where} (name = {section.name})", field, ["name", *parameters])
        default = parameters[field].default
        known = default is not inspect.Parameter.empty and default is not None
        yield field, convert(f"{where}.{field}", value, type(default)) if known else value
