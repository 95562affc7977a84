"""What the signature of a `build` says of its arguments: types, limits on them, and what the program gives."""

import ast
import collections.abc
import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from score_flow.config.limits import ANY, DTYPES, Limits, convert, shown
from score_flow.config.registries import Registry
from score_flow.errors import UserError

Entry = Callable[[Registry, str, str], Callable]  # how a plug-in is had: Registry.entry, or signatures.entry
PLAIN = (int, float, bool, str, tuple)  # the types that a config can write

# What parameters of a plug-in's `build` are annotated with; Annotated[int, Limits(...)] says more.
Count = Annotated[int, Limits(least=1, most=10**7)]
Whole = Annotated[int, Limits(least=0, most=10**7)]
Positive = Annotated[float, Limits(above=0)]
NotNegative = Annotated[float, Limits(least=0)]
Share = Annotated[float, Limits(least=0, most=1)]
ValueRange = Annotated[tuple[int | float, ...], Limits(lengths=(0, 2))]  # (lowest, highest) of real-valued data
UnitTime = Annotated[float, Limits(least=0, most=1)]
Dtype = Annotated[str, Limits(**DTYPES)]


@dataclasses.dataclass(frozen=True)
class Given:
    """The annotation of a parameter that the program gives, not a config; `by` says what decides it."""

    by: str

    def refuse(self, where: str) -> None:
        """Raise UserError: a config names it."""
        raise UserError(f"{where} cannot be given: it is {self.by}.")


def refuse_empty_range(where: str, values: ValueRange) -> None:
    """Raise UserError unless a range is none, or has a lowest value below the highest."""
    if values and not values[0] < values[1]:
        raise UserError(f"{where}: got {values}; allowed: (lowest, highest), the first below the second")


def note_of(hint: Any, kind: type) -> Any:
    """The first annotation of a kind, Limits or Given, on a type hint; None without one."""
    return next((note for note in getattr(hint, "__metadata__", ()) if isinstance(note, kind)), None)


def members(hint: Any) -> tuple[Any, ...]:
    """The hints of which a value fits one: those of a union, or the hint alone; each with its limits."""
    notes = getattr(hint, "__metadata__", ())
    plain = hint.__origin__ if notes else hint
    if get_origin(plain) not in (Union, types.UnionType):
        return (hint,)
    return tuple(Annotated[(member, *notes)] if notes else member for member in get_args(plain))


def kind_of(hint: Any) -> Any:
    """The plain type of a hint that is no union: tuple of tuple[int, ...], str of Annotated[str, ...] and Literal."""
    hint = hint.__origin__ if hasattr(hint, "__metadata__") else hint
    return type(get_args(hint)[0]) if get_origin(hint) is Literal else get_origin(hint) or hint


def limits_of(hint: Any) -> Limits:
    """The limits on a hint that is no union, with what its type says of a tuple's items."""
    if get_origin(hint) is Literal:
        return Limits(among=get_args(hint))
    limits, plain = note_of(hint, Limits), hint.__origin__ if hasattr(hint, "__metadata__") else hint
    if kind_of(hint) is not tuple or not (items := get_args(plain)):
        return limits or ANY
    limits = limits or note_of(items[0], Limits) or ANY
    each = next(kind_of(member) for member in reversed(members(items[0])))  # int | float: float
    return dataclasses.replace(limits, each=each, lengths=limits.lengths if ... in items else (len(items),))


def accept(where: str, value: Any, hint: Any) -> Any:
    """The value as a type hint says, within the limits that are annotated on it; raises UserError otherwise."""
    found = {kind_of(member): member for member in members(hint)}
    if isinstance(value, str) and tuple in found and value.startswith(("(", "[")):
        value = _literal(value)
    kinds = [kind for kind in found if kind in PLAIN]
    if not kinds or (value is None and type(None) in found) or (callable(value) and collections.abc.Callable in found):
        return value
    fitting = [kind for kind in kinds if _fits(value, kind)] or (kinds if len(found) == 1 else [])
    if not fitting and int in kinds and type(value) is float:  # 1e5, or a refusal
        fitting = [int]
    if not fitting:
        names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in found)
        raise UserError(f"{where} must be of type {names}, got {shown(value)}.")
    return convert(where, value, fitting[0], limits_of(found[fitting[0]]))


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def _fits(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is tuple:
        return isinstance(value, list | tuple)
    return isinstance(value, kind) and (kind is bool) == isinstance(value, bool)


def described(hint: Any) -> str:
    """A type hint and its limits, for a person: "int, at least 1"."""
    texts = []
    for member in members(hint):
        kind, limits = kind_of(member), limits_of(member)
        if kind is collections.abc.Callable:
            continue
        name = "None" if kind is type(None) else getattr(kind, "__name__", str(kind))
        items = f" of {limits.each.__name__}" if limits.each else ""
        allowed = ", ".join(str(name) or repr(name) for name in limits.choices()) or limits.said()
        texts.append(f"{name}{items}" + (f": {allowed}" if allowed else ""))
    return " or ".join(texts)


@functools.lru_cache(maxsize=256)
def parameters_of(build: Callable) -> dict[str, inspect.Parameter]:
    """The parameters of a build that have names, without those that flax adds to every module."""
    found = inspect.signature(build, eval_str=True).parameters
    named = {name: parameter for name, parameter in found.items() if parameter.kind is not parameter.VAR_KEYWORD}
    return {name: parameter for name, parameter in named.items() if name not in ("parent", "name")}


def hint_of(parameter: inspect.Parameter) -> Any:
    """The type of a parameter: as annotated, else its default's."""
    if parameter.annotation is not inspect.Parameter.empty:
        return parameter.annotation
    default = parameter.default
    return Any if default is inspect.Parameter.empty or default is None else type(default)


@functools.lru_cache(maxsize=256)
def arguments_of(build: Callable) -> dict[str, inspect.Parameter]:
    """The parameters of a build that a config may give."""
    return {n: p for n, p in parameters_of(build).items() if note_of(p.annotation, Given) is None}


@functools.lru_cache(maxsize=256)
def plug_ins_of(build: Callable) -> dict[str, tuple[Registry, ...]]:
    """The parameters that name plug-ins, with their registries, of a build that takes what those take too, as **own."""
    if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in inspect.signature(build).parameters.values()):
        return {}
    limits = {name: note_of(parameter.annotation, Limits) for name, parameter in parameters_of(build).items()}
    return {name: each.registries for name, each in limits.items() if each and each.registries}


def with_plug_ins(build: Callable, given: Mapping[str, Any], where: str, entry: Entry = Registry.entry) -> Callable:
    """The build with parameters for the arguments of the plug-ins that it is given the names of, or has by default."""
    named, own, more = plug_ins_of(build), parameters_of(build), {}
    if not named:
        return build
    for name, registries in named.items():
        plug_in = accept(f"{where}.{name}", given.get(name, own[name].default), hint_of(own[name]))
        registry = next((each for each in registries if "." in plug_in or plug_in in each.names()), None)
        if registry:
            more |= arguments_of(entry(registry, plug_in, f"{where}.{name}"))

    @functools.wraps(build)
    def entire(*args: Any, **kwargs: Any) -> Any:
        return build(*args, **kwargs)

    more = [parameter.replace(kind=parameter.KEYWORD_ONLY) for name, parameter in more.items() if name not in own]
    entire.__signature__ = inspect.Signature([*own.values(), *more])
    return entire


def check_fields(built: Any, where: str = "") -> None:
    """Raise UserError unless the fields of a dataclass are within the limits of its annotations: for its __post_init__.

    `where` begins the message, by default the class's name.
    """
    for name, parameter in parameters_of(type(built)).items():
        if note_of(parameter.annotation, Given) and not note_of(parameter.annotation, Limits):
            continue
        field, value = f"{where or type(built).__name__}.{name}", getattr(built, name)
        if isinstance(accepted := accept(field, value, hint_of(parameter)), str) and accepted != value:
            raise UserError(f"{field} is {value!r}; write {accepted!r}.")


def limited(where: str) -> Callable[[Callable], Callable]:
    """Decorate a build: its arguments, by whomever it is called, are within the limits of its annotations."""

    def decorate(build: Callable) -> Callable:
        signature = inspect.signature(build)

        @functools.wraps(build)
        def checked(*args: Any, **kwargs: Any) -> Any:
            entire = with_plug_ins(build, signature.bind(*args, **kwargs).arguments, where)
            bound, known = inspect.signature(entire).bind(*args, **kwargs), arguments_of(entire)
            for name, value in bound.arguments.items():
                if name in known:
                    bound.arguments[name] = accept(f"{where}.{name}", value, hint_of(known[name]))
            return build(*bound.args, **bound.kwargs)

        return checked

    return decorate


def takes_fields(name: str, kind: type) -> Callable[[Callable], Callable]:
    """Decorate a build: in place of its parameter of a name, of a dataclass, it takes the fields of that."""
    fields = inspect.signature(kind).parameters

    def decorate(build: Callable) -> Callable:
        own = inspect.signature(build).parameters
        before = list(own).index(name)

        @functools.wraps(build)
        def entire(*args: Any, **kwargs: Any) -> Any:
            given = entire.__signature__.bind(*args, **kwargs).arguments
            made = kind(**{field: given.pop(field) for field in fields if field in given})
            return build(**given, **{name: made})

        parameters = list(own.values())
        entire.__signature__ = inspect.Signature([*parameters[:before], *fields.values(), *parameters[before + 1 :]])
        return entire

    return decorate
