"""Reading a run's configuration: a recipe file, `--config.any.key=value` overrides, and checks before time is spent."""

import ast
import difflib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from score_flow.types import UserError, check_choice

ROOT = Path(__file__).resolve().parent.parent
WIDEST_EMA = 12**-0.5  # the relative width of the plain mean

MINIMUM = {
    "training.batch_size": 1,
    "training.n_iters": 1,
    "training.n_jitted_steps": 1,
    "training.log_freq": 1,
    "training.eval_freq": 0,
    "training.snapshot_freq": 0,
    "training.snapshot_freq_for_preemption": 0,
    "training.smallest_time": 0,
    "training.vlb_weight": 0,
    "training.min_snr_gamma": 0,
    "optim.lr": 0,
    "optim.eps": 0,
    "optim.warmup": 0,
    "optim.weight_decay": 0,
    "deq.n_iters": 0,
    "deq.score_step": 0,
    "guidance.scale": 0,
    "guidance.channels": 0,
    "guidance.temperature": 0,
    "guidance.classifier_scale": 0,
    "eval.batch_size": 1,
    "eval.num_samples": 1,
    "eval.num_repeats": 1,
    "eval.begin_ckpt": 0,
    "eval.end_ckpt": 0,
    "eval.ema": -1,
    "eval.ema_std": 0,
    "eval.n_probes": 1,
    "eval.vlb_steps": 0,
    "eval.kept_features": 4,
    "eval.bound_times": 1,
    "eval.smallest_time": 0,
    "seed": 0,
    "model.data_std": 0,
}
UNIT = (
    "training.label_dropout",
    "training.smallest_time",
    "training.largest_time",
    "deq.ema_rate",
    "guidance.rescale",
    "guidance.percentile",
    "eval.smallest_time",
    "eval.decoder_time",
    "eval.largest_time",
    "optim.beta1",
    "optim.beta2",
)
CHOICES = {
    "optim.optimizer": ("Adam", "AdamW"),
    "eval.bpd_dataset": ("train", "test"),
    "eval.fid_dataset": ("train", "test"),
    "eval.dequantizer": ("uniform", "variational", "decoder"),
    "guidance.threshold": ("none", "static", "dynamic"),
    "eval.probe": ("rademacher", "gaussian", "exact"),
    "eval.vlb_variance": ("small", "large"),
    "eval.bound_form": ("dsm", "ssm"),
    "training.objective": ("simple", "hybrid", "vlb", "classifier"),
    "training.coupling": ("independent", "ot"),
    "training.variance": ("small", "large", "range", "log"),
    "training.decoder": ("tanh", "exact"),
    "training.weighting": ("simple", "velocity", "data", "likelihood", "min_snr"),
}


def load(file: str, overrides: list[str], settings: dict[str, Any] | None = None) -> ConfigDict:
    """The config of a recipe, or of a run (its config.json), checked; raises UserError in one line.

    `settings`, {"network.width": 128, ...}, are set first, then the `--config.a.b=value` overrides.
    """
    path = Path(file)
    if not path.is_file():
        check_choice("--config", file, recipes())
        path = ROOT / file
    config = from_json(path) if path.suffix == ".json" else from_recipe(path)
    config.lock()
    assign_all(config, settings or {})
    assign_all(config, dict(map(read_override, overrides)))
    check(config)
    return config


def recipes() -> list[str]:
    """The files of configs/ that have a get_config()."""
    files = sorted((ROOT / "configs").rglob("*.py"))
    return [str(f.relative_to(ROOT)) for f in files if f.stem != "base" and "def get_config(" in f.read_text()]


def from_recipe(path: Path) -> ConfigDict:
    """get_config() of a Python file."""
    spec = importlib.util.spec_from_file_location("recipe", path)
    module = spec and importlib.util.module_from_spec(spec)
    if spec:
        spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"--config is '{path}'; give a Python file with get_config(), or the config.json of a run.")
    return module.get_config()


def from_json(path: Path) -> ConfigDict:
    """The config that a run wrote into its workdir."""
    config = from_recipe(ROOT / "configs" / "base.py")
    config.lock()
    assign_all(config, flatten(read_json(path)))
    return config


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises UserError when there is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; it must hold an object of settings.")
    return content


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


class Text(str):
    """The value of an override as it was typed: what it means depends on the type of the default."""


def read_override(override: str) -> tuple[str, Text]:
    """("a.b", value) of one `--config.a.b=value`."""
    match = re.fullmatch(r"--config\.([\w.]+)=(.*)", override, re.DOTALL)
    if not match:
        raise UserError(f"cannot read {override!r}; write --config.section.key=value.")
    return match[1], Text(match[2])


def assign_all(config: ConfigDict, settings: dict[str, Any]) -> None:
    """Set every key; names of components first, as naming another one drops the arguments of the old."""
    for key in sorted(settings, key=lambda key: key.rpartition(".")[2] != "name"):
        assign(config, key, settings[key])


def assign(config: ConfigDict, key: str, value: Any) -> None:
    """Set one key, "a.b"; the value must be of the type of the default."""
    *sections, last = key.split(".")
    section = config
    for depth, name in enumerate(sections):
        _check_key(section, name, sections[:depth])
        section = section[name]
        if not isinstance(section, ConfigDict):
            raise UserError(f"config.{'.'.join(sections[: depth + 1])} is a value, not a section.")
    if isinstance(value, Text):  # a path named 1e3 is not the number
        value = str(value) if isinstance(section.get(last), str) else parse(value)
    if last == "name" and "name" in section:
        with section.unlocked():
            for field in [f for f in section if f != "name" and value != section.name]:
                del section[field]
    elif "name" in section and last not in section:  # an argument of a component's build, checked when it is built
        with section.unlocked():
            section[last] = value
        return
    _check_key(section, last, sections)
    section[last] = convert(key, value, section[last])


def _check_key(section: ConfigDict, name: str, above: list[str]) -> None:
    if name not in section:
        near = difflib.get_close_matches(name, list(section), 1, 0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"unknown key {name!r} in {'.'.join(['config', *above])}; keys: {', '.join(sorted(section))}.{hint}"
        )


def parse(text: str) -> Any:
    """A Python literal, true/false, or else the text itself."""
    try:
        return {"true": True, "false": False}.get(text) if text in ("true", "false") else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return str(text)


def convert(key: str, value: Any, default: Any) -> Any:
    """The value as the type of the default, where nothing is lost by it; raises UserError otherwise."""
    kind = type(default)
    if kind is tuple:
        items = tuple(value) if isinstance(value, list | tuple) else (value,)
        real = bool(default) and all(type(item) is float for item in default)
        return tuple(float(item) if real and type(item) is int else item for item in items)
    if kind is float and type(value) is int:
        return float(value)
    if kind is str and not isinstance(value, str):
        value = str(value)
    if default is not None and type(value) is not kind:
        raise UserError(f"config.{key} must be of type {kind.__name__}, got {value!r}.")
    return value


def check(config: ConfigDict) -> None:
    """Ranges and choices of the plain fields; components check their own arguments when they are built."""

    def value(key: str) -> Any:
        section, name = key.split(".") if "." in key else ("", key)
        return config[section][name] if section else config[name]

    for key, least in MINIMUM.items():
        if value(key) < least:
            raise UserError(f"config.{key} is {value(key)}; it must be at least {least}.")
    for key in UNIT:
        if not 0 <= value(key) <= 1:
            raise UserError(f"config.{key} is {value(key)}; it must lie in [0, 1].")
    for key, allowed in CHOICES.items():
        check_choice(f"config.{key}", value(key), allowed)
    for section in ("training", "eval"):
        if config[section].smallest_time >= config[section].largest_time:
            raise UserError(f"config.{section}.smallest_time must be below config.{section}.largest_time.")
    if not config.model.ema_rate or not all(
        isinstance(rate, float | int) and 0 <= rate < 1 for rate in config.model.ema_rate
    ):
        raise UserError(f"config.model.ema_rate is {config.model.ema_rate}; give one or more rates in [0, 1).")
    if not all(isinstance(std, float) and 0 < std <= WIDEST_EMA for std in config.model.ema_std):
        raise UserError(f"config.model.ema_std is {config.model.ema_std}; give widths in (0, {WIDEST_EMA:.3f}).")
    if config.eval.ema_std > WIDEST_EMA:
        raise UserError(f"config.eval.ema_std is {config.eval.ema_std}; it must be at most {WIDEST_EMA:.3f}.")


def explain() -> str:
    """One line a field for --help, read from the comments of configs/base.py."""
    lines = ["config fields (configs/base.py), each set by --config.KEY=VALUE:"]
    alias = {}
    for line in (ROOT / "configs" / "base.py").read_text().splitlines():
        if match := re.match(r"\s+config\.(\w+) = (\w+) = ConfigDict", line):
            alias[match[2]] = match[1]
        elif match := re.match(r"\s+(\w+)\.([\w.]+) = (.*?)(?:\s+# (.*))?$", line):
            section, key, default, comment = match.groups()
            if default != "ConfigDict()" and (section == "config" or section in alias):
                name = key if section == "config" else f"{alias[section]}.{key}"
                lines.append(f"  {name:42} {comment or ''}  [{default}]")
    return "\n".join(lines)


def differences(saved: dict, current: dict, sections: tuple[str, ...]) -> list[str]:
    """'key: saved value -> current value' for every difference within the named sections (dotted names allowed).

    A field that is younger than what was saved had what is now its default (of a component that was there, its `build`
    knows).
    """

    def plain(tree: dict) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in flatten(tree).items()}

    old, new, base = plain(saved), plain(current), plain(from_recipe(ROOT / "configs" / "base.py").to_dict())
    names = {k: f"{k.rpartition('.')[0]}.name" for k in base}
    old = {k: v for k, v in base.items() if k in new and (names[k] not in base or names[k] not in old)} | old
    keys = [k for k in sorted(old | new) if any(k == s or k.startswith(s + ".") for s in sections)]
    return [f"{k}: {old.get(k, 'absent')} -> {new.get(k, 'absent')}" for k in keys if old.get(k) != new.get(k)]
