"""Reading a run's configuration: a recipe file, `--config.any.key=value` overrides, and checks before time is spent.

What fields there are, and what they may be, says the schema (options.py), for files and for flags alike.
"""

import ast
import importlib.util
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from score_flow.config import components, former
from score_flow.config.components import Component, kinds
from score_flow.config.limits import check_times, convert
from score_flow.config.options import SCHEMA, Config, make
from score_flow.config.registries import ROOT
from score_flow.errors import UserError, check_choice, nearest

LIKENESS = 0.5  # of keys, which are short
Values = dict[str, Any]  # "training.batch_size" -> 128, "path" -> Component
SECTIONS = {key.rpartition(".")[0] for key in SCHEMA} | {"eval"}


def load(file: str | None, overrides: list[str], settings: dict[str, Any] | None = None) -> Config:
    """The config of a recipe, or of a run (its config.json), or of no file, checked; raises UserError in one line.

    `settings`, {"network.width": 128, ...}, are set first, then the `--config.a.b=value` overrides.
    """
    values = {key: field.default for key, field in SCHEMA.items()}
    if file is not None:
        path = existing(file)
        found = former.as_it_ran(flatten(read_json(path))) if path.suffix == ".json" else flatten(from_recipe(path))
        assign_all(values, found, lambda key: f"{path}{_line_that_sets(key, path)}: ", unsaid=dict(values))
    assign_all(values, settings or {})
    if said := former.expanded(overrides):
        raise UserError(said)
    assign_all(values, dict(map(read_override, overrides)))
    return checked(values)


def existing(file: str) -> Path:
    """The path of a config's file, or of the recipe of that name that comes with the program; raises UserError."""
    path = Path(file).expanduser()
    if path.is_file():
        return path
    if path.exists():
        raise UserError(f"--config is {file!r}, which is no regular file; give a recipe or the config.json of a run.")
    check_choice("--config", file, recipes(base=True))
    return ROOT / file


def with_settings(config: Config, settings: dict[str, Any]) -> Config:
    """The config with other values, {"network.width": 128, ...}, checked."""
    values = values_of(config)
    assign_all(values, settings)
    return checked(values)


def values_of(config: Config) -> Values:
    """The values of all fields by their dotted names."""
    found = {}
    for key in SCHEMA:
        value = config
        for name in key.split("."):
            value = getattr(value, name)
        found[key] = value
    return found


def recipes(base: bool = False) -> list[str]:
    """The files of configs/ that have a get_config(); base: that of the defaults too."""
    files = [f for f in sorted((ROOT / "configs").rglob("*.py")) if "def get_config(" in f.read_text()]
    return [str(f.relative_to(ROOT)) for f in files if base or f.stem != "base"]


def from_recipe(path: Path) -> dict[str, Any]:
    """get_config() of a Python file, as plain dicts; what goes wrong in it is one line that names file and line."""
    try:
        module = module_of(path)
        found = module.get_config() if hasattr(module, "get_config") else None
    except UserError:
        raise
    except Exception as error:
        line = _line_of(error, path)
        raise UserError(f"--config {path}, line {line}: {_former(path, line) or _reason(error)}") from error
    if found is None or (not isinstance(found, Mapping) and not hasattr(found, "to_dict")):
        got = f", which returns {type(found).__name__}" if module and hasattr(module, "get_config") else ""
        raise UserError(
            f"--config is '{path}'{got}; give a Python file with get_config(), or the config.json of a run."
        )
    return dict(found) if isinstance(found, Mapping) else found.to_dict()


def module_of(path: Path) -> ModuleType | None:
    """A Python file, run as a module that no import finds; None for a file of another kind."""
    sys.path[:0] = [str(ROOT)] if str(ROOT) not in sys.path else []
    spec = importlib.util.spec_from_file_location("recipe", path)
    module = spec and importlib.util.module_from_spec(spec)
    if spec:
        spec.loader.exec_module(module)
    return module


def _line_of(error: Exception, path: Path) -> str:
    """The line of a recipe at which an error arose, and the file where that is another than `path`."""
    if isinstance(error, SyntaxError) and error.lineno:
        same = error.filename == str(path)
        return str(error.lineno) if same else f"{error.lineno} of {error.filename}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return str(frames[-1].lineno) if frames else "1"


def _former(path: Path, line: str) -> str | None:
    """What to say of the line of a recipe that sets a key of score_sde's; None of other lines."""
    lines = path.read_text(errors="replace").splitlines()
    text = lines[int(line) - 1] if line.isdigit() and int(line) <= len(lines) else ""
    found = re.match(r"\s*(?:\w+\.)?(\w+\.\w+)\s*=\s*(.+?)\s*(#.*)?$", text)
    said = found and former.answer(found[1], parse(found[2]))
    return said and said.replace("--config.", "config.")


def _line_that_sets(key: str, path: Path) -> str:
    """", line n" of the last line of a file that sets a field, or else that makes the config; "" of a config.json."""
    section, _, last = key.rpartition(".")
    lines = path.read_text(errors="replace").splitlines()
    setters = [rf"\b{re.escape(word)}\b['\"]?\s*[=:\]]" for word in (last, section.rpartition(".")[2]) if word]
    for setter in [*setters, r"\b(families\.\w|get_config\()"]:
        if found := [n for n, line in enumerate(lines, 1) if re.search(setter, line)]:
            return f", line {found[-1]}"
    return ""


def _reason(error: Exception) -> str:
    """What is wrong, in one line, in our words where ml_collections found it; of an unknown field, the nearest one."""
    text = " ".join(str(error).split())
    if found := re.search(r'Key "(.+?)" does not exist and cannot be added.*?Other fields present: "(.*)"', text):
        there = sorted(set(re.findall(r"[{ ](?:\\?')?(\w+)(?:\\?')?: ", found[2])))
        return f"unknown key {found[1]!r}; keys: {', '.join(there)}.{nearest(found[1], there, LIKENESS)}"
    if found := re.search(r"override field '(\w+)'.*?\. (.*) is of original type .* type <class '(.*)'>", text):
        name, got, kind = found.groups()
        if "ConfigDict" in kind:
            return f"{name} is a section, got {got!r}: give {name}.name, or component(...) of configs/base.py."
        return f"{name} must be of type {kind}, got {got}."
    return f"{type(error).__name__}: {text[:300]}"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises UserError when there is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())[:200]}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; it must hold an object of settings.")
    return content


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


class Text(str):
    """The value of an override as it was typed: what it means depends on the type of the field."""


class Bare(Text):
    """The value of `--config.a.b` without one: True, where the field is a switch."""


def read_override(override: str) -> tuple[str, Text]:
    """("a.b", value) of one `--config.a.b=value`."""
    match = re.fullmatch(r"--config\.([\w.]+)(?:=(.*))?", override, re.DOTALL)
    if not match:
        raise UserError(f"cannot read {override!r}; write --config.section.key=value.")
    return match[1], Bare("True") if match[2] is None else Text(match[2])


def _refuse_bare(key: str, value: Any, kinds: set[type]) -> None:
    """Raise UserError for a key without a value that is no switch."""
    if isinstance(value, Bare) and bool not in kinds:
        raise UserError(f"cannot read '--config.{key}'; write --config.section.key=value.")


def assign_all(
    values: Values, settings: dict[str, Any], where: Callable[[str], str] = lambda key: "", unsaid: Values | None = None
) -> None:
    """Set every key; names of components first, as naming another one drops the arguments of the old.

    where: of a key, how a message about it begins. unsaid: what the settings hold of keys that nobody has set.
    """
    settings = former.renamed(settings, values["network"].name, unsaid or {})
    for key in sorted(settings, key=lambda key: key.rpartition(".")[2] != "name"):
        try:
            assign(values, key, settings[key])
        except UserError as error:
            raise UserError(f"{where(key)}{error}") from error


def assign(values: Values, key: str, value: Any) -> None:
    """Set one key, "a.b", as the type of its field."""
    section, _, last = key.rpartition(".")
    old = values.get(section)
    foreign = isinstance(old, Component) and "." in old.name  # of another package, whose arguments are its own
    if not foreign and (said := former.answer(key, value)):
        raise UserError(said)
    if isinstance(old, Component):
        values[section] = _with(old, last, value, section)
        return
    if key not in SCHEMA:
        raise UserError(_unknown(key))
    if isinstance(values[key], Component):
        raise UserError(f"config.{key} is a section, got {str(value)!r}: give config.{key}.name.")
    field = SCHEMA[key]
    kind = type(field.default)
    _refuse_bare(key, value, {kind})
    if isinstance(value, Text):  # a path named 1e3 is not the number
        value = str(value) if kind is str else parse(value)
    values[key] = convert(f"config.{key}", value, kind, field.metadata["limits"])


def _with(old: Component, last: str, value: Any, section: str) -> Component:
    """A section's component with another name, or another argument, which `check_components` checks."""
    if isinstance(value, Text):
        among = SCHEMA[section].metadata["limits"].among
        kinds_of = {str} if last == "name" else kinds(among, old, last, f"config.{section}")
        if kinds_of:  # of an unknown argument, the name is what is wrong
            _refuse_bare(f"{section}.{last}", value, kinds_of)
        parsed = parse(value)  # of what may be a text, a folder named 1e3 is none of the other types
        value = str(value) if str in kinds_of and type(parsed) not in kinds_of else parsed
    if last == "name":
        SCHEMA[section].metadata["limits"].refuse(f"config.{section}.name", value)
        return old if value == old.name else Component(value)
    return old.with_arguments(**{last: tuple(value) if isinstance(value, list) else value})


def _unknown(key: str) -> str:
    """What to say of a key that is none: the first word that is wrong, what there is in its place, and the nearest."""
    words = key.split(".")
    for depth, word in enumerate(words):
        above = ".".join(words[:depth])
        if f"{above}.{word}".lstrip(".") in SCHEMA and depth < len(words) - 1:
            return f"config.{'.'.join(words[: depth + 1])} is a value, not a section."
        prefix = f"{above}." if above else ""
        there = sorted({k[len(prefix) :].split(".")[0] for k in SCHEMA if k.startswith(prefix)})
        if word not in there:
            at = ".".join(part for part in ("config", above) if part)
            return f"unknown key {word!r} in {at}; keys: {', '.join(there)}.{nearest(word, there, LIKENESS)}"
    return f"config.{key} is a section: give one of its fields."


def parse(text: str) -> Any:
    """A Python literal, true/false, or else the text itself."""
    try:
        return {"true": True, "false": False}.get(text) if text in ("true", "false") else ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return str(text)


def checked(values: Values) -> Config:
    """The config of the values; raises UserError where two fields contradict each other."""
    config = make(values)
    for name, section in (("training", config.training), ("eval", config.eval)):
        times = section.smallest_time, section.largest_time
        check_times(f"config.{name}", *times, ("smallest_time", "largest_time"))
    first, last = config.guidance.interval
    if first > last:
        raise UserError(f"config.guidance.interval is {config.guidance.interval}; give (first, last) time, in order.")
    return config


def explain() -> str:
    """For --help: one line a field, then one an argument of each plug-in."""
    lines = ["config fields (score_flow/config/options.py), each set by --config.KEY=VALUE:"]
    for key, field in SCHEMA.items():
        limits, default = field.metadata["limits"], field.default
        allowed = ", ".join(limits.choices()) or limits.said()
        shown = default.name if isinstance(default, Component) else default
        about = "; ".join(part for part in (field.metadata["doc"], allowed) if part)
        lines.append(f"  {key + ('.name' if isinstance(default, Component) else ''):42} {about}  [{shown!r}]")
    for key, field in SCHEMA.items():
        if isinstance(field.default, Component):
            lines += ["", f"plug-ins of {key}.name, each argument set by --config.{key}.ARGUMENT=VALUE:"]
            lines += [f"  {line}" for line in components.explain(field.metadata["limits"].among).splitlines()]
    return "\n".join(lines)


def resolved(config: Config) -> str:
    """For --help of a config: one line a field with its value, and of each plug-in the arguments of the one named."""
    lines, values = ["fields of this config, each set by --config.KEY=VALUE:"], values_of(config)
    for key, field in SCHEMA.items():
        value, about = values[key], field.metadata["doc"]
        if not isinstance(value, Component):
            lines.append(f"  {key:42} {about}  [{value!r}]")
            continue
        lines.append(f"  {key + '.name':42} {about}  [{value.name!r}]")
        among = field.metadata["limits"].among
        entire = components.with_defaults(among, value, f"config.{key}").arguments
        shown = {name: given for name, given in entire.items() if kinds(among, value, name, f"config.{key}")}
        lines += [f"  {f'{key}.{name}':42} of {value.name}  [{given!r}]" for name, given in shown.items()]
    return "\n".join(lines)


def differences(saved: dict, current: dict, sections: tuple[str, ...]) -> list[str]:
    """'key: saved value -> current value' for every difference that `changes` finds."""
    return [f"{key}: {old} -> {new}" for key, old, new in changes(saved, current, sections)]


def changes(saved: dict, current: dict, sections: tuple[str, ...]) -> list[tuple[str, Any, Any]]:
    """(key, saved value, current value) of every difference within the named sections (dotted names allowed).

    A field that is younger than what was saved had what is now its default (of a component that was there, its `build`
    knows). A value that is not there is 'absent'.
    """

    def plain(tree: dict) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in former.as_it_ran(flatten(tree)).items()}

    old, new, base = plain(saved), plain(current), plain(Config().to_dict())
    names = {k: f"{k.rpartition('.')[0]}.name" for k in base}
    old = {k: v for k, v in base.items() if k in new and (names[k] not in base or names[k] not in old)} | old
    keys = [k for k in sorted(old | new) if within(k, sections)]
    return [(k, old.get(k, "absent"), new.get(k, "absent")) for k in keys if old.get(k) != new.get(k)]


def within(key: str, sections: Iterable[str]) -> bool:
    """Whether a key is one of some, or below one of them."""
    return any(key == section or key.startswith(f"{section}.") for section in sections)
