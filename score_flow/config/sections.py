"""What the sections of a config are made of: fields with a default, a meaning and limits."""

import dataclasses
import json
from typing import Any

from score_flow.config.components import Component, Registries
from score_flow.config.limits import Limits

WIDEST_EMA = 12**-0.5  # the relative width of the plain mean
SPLITS = ("train", "test")


def option(default: Any, doc: str, **limits: Any) -> Any:
    """A field of a section; `limits` as of `Limits`."""
    return dataclasses.field(default=default, metadata={"doc": doc, "limits": Limits(**limits)})


def plug_in(among: Registries, name: str, doc: str, **arguments: Any) -> Any:
    """A field that names a file of a package, or an entry of a table, and gives the arguments of its `build`."""
    default = Component(name, arguments)
    return dataclasses.field(default=default, metadata={"doc": doc, "limits": Limits(among=among)})


class Section:
    """What sections share."""

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dicts, as JSON holds them but for tuples."""
        return {
            f.name: value.to_dict() if isinstance(value := getattr(self, f.name), Section | Component) else value
            for f in dataclasses.fields(self)
        }

    def to_json(self, indent: int | None = None) -> str:
        """The same, as text."""
        return json.dumps(self.to_dict(), indent=indent)
