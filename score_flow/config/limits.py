"""What a setting may be: its type, its range, its choices; for the fields of a config and the arguments of plug-ins."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from score_flow.config.registries import Registry
from score_flow.errors import UserError, check_choice


@dataclasses.dataclass(frozen=True, repr=False)
class Limits:
    """The range of a number, or of each number of a tuple, and the choices of a text.

    Attributes:
        least, above: the smallest number allowed, or the one that all must exceed.
        most, below: the largest number allowed, or the one that none may reach.
        among: names, or the registries that hold them; a name with a dot is of another package.
        aliases: (other name, name) of what people write too.
        note: what to say to whoever gives another name.
        infinite: whether a number may be infinite.
        each: the type of a tuple's items.
        also: another type that it may have: int beside bool.
        lengths: how many items it may have, any number if empty; `fewest`: at least so many.
    """

    least: float | int | None = None
    above: float | int | None = None
    most: float | int | None = None
    below: float | int | None = None
    among: tuple[str | int | Registry, ...] | Registry = ()
    aliases: tuple[tuple[str, str], ...] = ()
    note: str = ""
    infinite: bool = False
    each: type | None = None
    also: type | None = None
    lengths: tuple[int, ...] = ()
    fewest: int = 0

    def __repr__(self) -> str:
        """Only what limits, as signatures are shown to people."""
        given = {f.name: v for f in dataclasses.fields(self) if (v := getattr(self, f.name)) != f.default}
        return f"Limits({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    def choices(self) -> tuple[str | int, ...]:
        """The names allowed; none where any is."""
        return tuple(n for entry in self._among for n in (entry.names() if isinstance(entry, Registry) else (entry,)))

    @property
    def _among(self) -> tuple[str | int | Registry, ...]:
        return (self.among,) if isinstance(self.among, Registry) else self.among

    @property
    def registries(self) -> tuple[Registry, ...]:
        """Those among which a text names a plug-in."""
        return tuple(entry for entry in self._among if isinstance(entry, Registry))

    def _foreign(self, item: Any) -> bool:
        """Whether a text names a plug-in of another package."""
        return isinstance(item, str) and "." in item and bool(self.registries)

    def said(self) -> str:
        """What is allowed, for a person: "at least 1, below 10"."""
        bounds = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        parts = [f"{word} {bound}" for word, bound in bounds.items() if bound is not None]
        parts += [" or ".join(map(str, self.lengths)) + " items"] if self.lengths else []
        return ", ".join(parts + ([f"{self.fewest} or more items"] if self.fewest else []))

    def refuse(self, where: str, value: Any) -> None:
        """Raise UserError, naming `where`, unless the value is allowed; every number must be finite."""
        if isinstance(value, tuple):
            if len(value) < self.fewest or (self.lengths and len(value) not in self.lengths):
                raise UserError(f"{where} is {shown(value)}; it must have {self.said()}.")
            for item in value:
                self._refuse_one(where, item, value)
        else:
            self._refuse_one(where, value, value)

    def _refuse_one(self, where: str, item: Any, whole: Any) -> None:
        if self.among and not self._foreign(item):
            try:
                check_choice(where, item, self.choices())
            except UserError as error:
                raise UserError(f"{error} {self.note}".rstrip()) from None
        if isinstance(item, bool) or not isinstance(item, int | float):
            return
        if math.isnan(item) or (math.isinf(item) and not self.infinite):
            raise UserError(f"{where} is {shown(whole)}; it must be finite.")
        inside = (
            (self.least is None or item >= self.least)
            and (self.above is None or item > self.above)
            and (self.most is None or item <= self.most)
            and (self.below is None or item < self.below)
        )
        if not inside:
            raise UserError(f"{where} is {shown(whole)}; it must be {self.said()}.")


ANY = Limits()
# Of arithmetic. float16 is missing: its gradients underflow unless the loss is scaled, which nothing here does.
DTYPES = {
    "among": ("bfloat16", "float32", "float64"),
    "aliases": (("bf16", "bfloat16"), ("fp32", "float32"), ("f32", "float32"), ("fp64", "float64")),
    "note": "There is no loss scaling, which half precision (fp16) would need.",
}


def convert(where: str, value: Any, kind: type, limits: Limits = ANY) -> Any:
    """The value as a `kind`, where nothing is lost by it, within its limits; raises UserError otherwise."""
    kinds = [kind, limits.also] if limits.also else [kind]
    if int in kinds and float not in kinds:
        value = _whole(value)
    kind = type(value) if type(value) in kinds else kind
    if kind is tuple:
        value = tuple(_item(where, item, limits.each, value) for item in _items(where, value))
    elif kind is str and isinstance(value, int | float | tuple | list) and not isinstance(value, bool):
        value = str(value)
    elif kind is str and isinstance(value, str):
        value = dict(limits.aliases).get(value, value)
    elif kind is float:
        value = _float(where, value)
    if type(value) is not kind and not (kind is str and isinstance(value, str)):
        raise UserError(f"{where} must be of type {' or '.join(k.__name__ for k in kinds)}, got {shown(value)}.")
    limits.refuse(where, value)
    return value


def _items(where: str, value: Any) -> tuple:
    if isinstance(value, Mapping | set) or value is None:
        raise UserError(f"{where} must be of type tuple, got {shown(value)}.")
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _item(where: str, item: Any, kind: type | None, whole: Any) -> Any:
    item = _float(where, item) if kind is float else _whole(item) if kind is int else item
    if kind is not None and type(item) is not kind:
        raise UserError(f"{where} must hold items of type {kind.__name__}, got {shown(whole)}.")
    return item


def _float(where: str, value: Any) -> Any:
    """An integer, or a float of another library, as a float; anything else as it is."""
    if type(value) is not int and not isinstance(value, float):
        return value
    try:
        return float(value)
    except OverflowError as error:
        raise UserError(f"{where} is {str(value)[:20]}...; it must be finite.") from error


def _whole(value: Any) -> Any:
    """A float that is an integer, as 1e5 is, as an integer; anything else as it is."""
    return int(value) if type(value) is float and value.is_integer() and abs(value) <= 2**53 else value


def shown(value: Any) -> str:
    """A value in a message: of one line, and not long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:80]}..."


def check_times(where: str, first: float, last: float, names: tuple[str, str] = ("t_min", "t_max")) -> None:
    """Raise UserError unless 0 <= first < last <= 1: what every range of times is, `where` a section of the config."""
    for name, time in zip(names, (first, last), strict=True):
        if not 0 <= time <= 1:
            raise UserError(f"{where}.{name} is {time}; it must be at least 0, at most 1.")
    if first >= last:
        raise UserError(f"{where}.{names[0]} is {first}; it must be below {where}.{names[1]}, which is {last}.")
