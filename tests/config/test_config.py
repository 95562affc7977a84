"""Configs: every mistake is one line that names the right word; every field can be set and is explained."""

import json
import math
import re

import jax
import jaxtyping
import numpy as np
import pytest

from sampling.building import build_sampler
from score_flow.build import build_conditioning, build_loss, build_model, experiment, is_latent
from score_flow.config import registries
from score_flow.config.components import Component, call, resolve
from score_flow.config.limits import convert
from score_flow.config.loading import differences, explain, flatten, load, parse, recipes, values_of, with_settings
from score_flow.config.options import SCHEMA, Config
from score_flow.data.base import ArraySource
from score_flow.data.preprocessing import Preprocessing
from score_flow.data.scaling import Scaling
from score_flow.errors import UserError
from score_flow.model import count_parameters
from score_flow.training.dequantiser import build_network
from score_flow.training.steps import init_state
from tests.discover import builds, thinned

DIGITS = "configs/digits.py"
RECIPES = recipes()
COMPONENTS = ("path", "network", "data.source", "training.time_sampler", "sampling")


def leaves(config: Config) -> dict:
    """dotted key -> value of every field."""
    return flatten(config.to_dict())


BASE = leaves(Config())
KEYS = set(BASE) | {key.rpartition(".")[0] for key in BASE} | {"eval"}


def build_all(config: Config):
    """The model and the loss, as a run builds them of its components; the data set last."""
    channels = (config.data.image_shape or (1,))[-1]
    conditioning = build_conditioning(config, num_classes=10)
    model = build_model(config, channels, conditioning)
    dequantised = config.data.uniform_dequantization and not is_latent(config)
    loss = build_loss(config, model, Preprocessing(Scaling(), conditioning, dequantised, config.data.random_flip))
    build_sampler(config)
    return model, loss


def refused(*overrides: str, file: str = DIGITS) -> str:
    """The one line with which the overrides are refused, when they are read or when components are built."""
    with pytest.raises(UserError) as error:
        config = load(file, list(overrides))
        build_all(config)
        resolve(registries.SOURCES, config.data.source, "config.data.source", split="train")
        pixels = ArraySource("pixels", np.zeros((2, 2, 2, 1), np.uint8))
        resolve(registries.EXTRACTORS, config.eval.extractor, "config.eval.extractor", train=pixels, levels=256)
        build_network(config.dequantizer, (8, 8, 1))
        resolve(registries.LOGGERS, config.training.logger, "config.training.logger")
        known = {"image_shape": (8, 8, 1), "scaling": Scaling(), "dequantised": True}
        resolve(registries.CONTROLS, config.control, "config.control", **known)
    message = str(error.value)
    assert message and "\n" not in message
    return message


def typos(n: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """(wrong key, wrong word, right word): one letter of one word dropped, doubled or swapped with the next letter.

    None is another word without a letter, as tol is both atol and rtol.
    """
    rng, found = np.random.default_rng(seed), []
    shorter = {(word[:i] + word[i + 1 :], word) for key in BASE for word in key.split(".") for i in range(len(word))}
    while len(found) < n:
        words = rng.choice(sorted(BASE)).split(".")
        i = int(rng.integers(len(words)))
        word, place = words[i], int(rng.integers(len(words[i])))
        edits = {
            "drop": word[:place] + word[place + 1 :],
            "double": word[:place] + 2 * word[place] + word[place + 1 :],
            "swap": word[:place] + word[place : place + 2][::-1] + word[place + 2 :],
        }
        wrong = edits[rng.choice(list(edits))]
        key = ".".join([*words[:i], wrong, *words[i + 1 :]])
        if word[place].isalpha() and wrong and wrong != word and key not in KEYS and not any(
            short == wrong and other != word for short, other in shorter
        ):
            found.append((key, wrong, word))
    return found


def test_typos_are_refused_with_the_right_word():
    missed = []
    for key, wrong, right in typos(100):
        message = refused(f"--config.{key}=1", file="configs/base.py")
        if repr(wrong) not in message or f"Did you mean {right!r}?" not in message:
            missed.append((key, message))
    assert not missed


@pytest.fixture
def unchecked_types():
    """Without the run-time checks of annotations, as in a real run: a Literal field reaches its own check."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("override, right", [
    ("path.name=vpp", "vp"), ("network.name=sitt", "sit"), ("training.time_sampler.name=stratifed", "stratified"),
    ("data.source.name=digit", "digits"), ("sampling.name=odee", "ode"), ("model.prediction=velocty", "velocity"),
    ("model.time=log_sgima", "log_sigma"), ("training.weighting=likelyhood", "likelihood"),
    ("optim.optimizer=adamW", "AdamW"),
])  # fmt: skip
def test_unknown_choices_are_refused_with_the_nearest(override, right, unchecked_types):
    assert f"Did you mean {right!r}?" in refused(f"--config.{override}")


def test_unknown_recipes_are_refused_with_the_nearest():
    assert "Did you mean 'configs/digits.py'?" in refused(file="configs/digit.py")


@pytest.mark.parametrize("file", ["pyproject.toml", "configs/__init__.py"])
def test_files_that_are_no_recipes_are_refused(file):
    assert f"--config is '{file}'; give a Python file with get_config()" in refused(file=file)


@pytest.mark.parametrize("override", ["--confg.seed=1", "--config.seed", "--config=3", "config.seed=1", "seed"])
def test_what_is_no_override_is_refused(override):
    assert f"cannot read {override!r}; write --config.section.key=value" in refused(override)


def wrong_values(value) -> list[str]:
    """Texts of another type than a field's."""
    match value:
        case bool():
            return ["1", "yes", "0.5", "None", "[]"]
        case int():
            return ["1.5", "many", "True", "None", "(1,)", ""]
        case float():
            return ["fast", "True", "None", "(0.1,)", "nan", "", "1e-3x"]
        case _:  # anything makes a text or a tuple
            return []


@pytest.mark.parametrize("key", thinned((key for key, value in BASE.items() if wrong_values(value)), 3))
def test_values_of_another_type_are_refused(key):
    also = SCHEMA[key].metadata["limits"].also if key in SCHEMA else None
    for text in wrong_values(BASE[key] if also is None else also(BASE[key])):
        if also and text == "True":
            continue
        message = refused(f"--config.{key}={text}", file="configs/base.py")
        assert f"config.{key} " in message and type(BASE[key]).__name__ in message


def test_a_section_is_no_value():
    assert "config.optim" in refused("--config.optim=3")
    assert "config.optim.lr is a value, not a section" in refused("--config.optim.lr.x=3")


PLAIN = {key: field for key, field in SCHEMA.items() if not isinstance(field.default, Component)}


def outside(field) -> list:
    """Values of the type of a field that its limits forbid."""
    limits, kind = field.metadata["limits"], field.metadata["limits"].also or limits_kind(field)
    if limits.among:
        return ["nothing"]
    found = [bound - step for bound, step in ((limits.least, 1), (limits.above, 0)) if bound is not None]
    found += [bound + step for bound, step in ((limits.most, 1), (limits.below, 0)) if bound is not None]
    found = [kind(value) for value in found]
    return found + ([math.nan, math.inf, -math.inf] if kind is float else [])


def number(value) -> bool:
    return isinstance(value, int | float)


def limits_kind(field) -> type:
    return field.metadata["limits"].each or type(field.default)


@pytest.mark.parametrize("key", [key for key, field in PLAIN.items() if outside(field)])
def test_values_outside_their_limits_are_refused(key):
    """Of a flag, and of a tuple's items."""
    field = PLAIN[key]
    for value in outside(field):
        wrapped = (value,) * max(1, *field.metadata["limits"].lengths, 1) if type(field.default) is tuple else value
        with pytest.raises(UserError, match=re.escape(f"config.{key} ")):
            load(DIGITS, [], {key: wrapped})


def test_fields_without_limits_are_texts_switches_or_unbounded_numbers():
    """Every number but these few has a limit: a new field without one is a decision to be written here."""
    bounded = {key for key, field in PLAIN.items() if any(map(math.isfinite, filter(number, outside(field))))}
    numbers = {key for key, field in PLAIN.items() if limits_kind(field) in (int, float)} - bounded
    assert numbers == {"model.time_scale", "model.time_shift", "optim.grad_clip", "data.range"}


def test_values_out_of_their_range_are_refused():
    for rates in ("()", "(0.9,1.0)", "(-0.1,)", "('a',)", "(None,)", "1"):
        assert "config.model.ema_rate" in refused(f"--config.model.ema_rate={rates}")
    for section in ("training", "eval"):
        given = refused(f"--config.{section}.smallest_time=0.5", f"--config.{section}.largest_time=0.5")
        assert f"it must be below config.{section}.largest_time" in given


def test_naming_another_component_drops_the_arguments_of_the_old():
    """Wherever the name stands among the overrides."""
    overrides = ["network.width=16", "network.name=mlp", "path.beta_max=10", "path.name=vp"]
    config = load(DIGITS, [f"--config.{override}" for override in overrides])
    assert config.network.to_dict() == {"name": "mlp", "width": 16}
    assert config.path.to_dict() == {"name": "vp", "beta_max": 10}
    model, _ = build_all(config)
    assert model.network == builds("score_flow.networks")["mlp"](width=16)
    assert model.path == builds("score_flow.paths")["vp"](beta_max=10.0) and isinstance(model.path.beta_max, float)
    same = load(DIGITS, ["--config.network.name=sit"])  # the name that it has: its arguments stay
    assert same.network == load(DIGITS, []).network


@pytest.mark.parametrize("name, argument, said", [
    ("network.name=mlp", "network.wdith=16", "Did you mean 'width'?"),
    ("network.name=mlp", "network.patch_size=2", "'patch_size'"),  # an argument of the other network
    ("network.name=mlp", "network.width=wide", "config.network.width must be of type int, got 'wide'"),
    ("training.time_sampler.name=lognormal", "training.time_sampler.mena=0", "Did you mean 'mean'?"),
    ("path.name=ve", "path.sigma_min=0", "sigma_min"),
    ("sampling.name=ode", "sampling.rtoll=1", "Did you mean 'rtol'?"),
    ("eval.extractor.name=inception", "eval.extractor.wieghts=a.pth", "Did you mean 'weights'?"),
])  # fmt: skip
def test_unknown_arguments_of_components_are_refused_when_they_are_built(name, argument, said):
    assert said in refused(f"--config.{name}", f"--config.{argument}")


def test_components_take_what_they_name_of_what_the_program_knows():
    def build(path, size=3, levels=256):
        return path, size, levels

    section = Component("this", {"path": "here", "size": 4})
    assert call(build, section, "config.data.source", levels=17, split="train") == ("here", 4, 17)
    with pytest.raises(UserError, match="config.data.source.size cannot be given"):
        call(build, section, "config.data.source", size=5)
    with pytest.raises(UserError, match=r"data.source \(name = this\) needs path: give --config.data.source.path="):
        call(build, Component("this"), "config.data.source")


PLUG_INS = {"path": registries.PATHS, "network": registries.NETWORKS, "sampling": registries.SAMPLERS}


@pytest.mark.parametrize("section", PLUG_INS)
def test_every_plug_in_can_be_named(section):
    for name in builds(PLUG_INS[section]):
        config = load("configs/base.py", [f"--config.{section}.name={name}"])
        resolve(PLUG_INS[section], getattr(config, section), f"config.{section}")


@pytest.mark.parametrize("file", RECIPES)
def test_every_recipe_is_read_and_built(file):
    config = load(file, [])
    added = leaves(config).keys() - BASE.keys()
    assert all(key.startswith(tuple(f"{component}." for component in COMPONENTS)) for key in added)
    if config.data.source.name != "digits":
        build_all(config)  # the data are not on this machine
        return
    run = experiment(config)
    n_ema = len(config.model.ema_rate)
    state = jax.eval_shape(
        lambda key: init_state(run.init(key), run.loss, run.optimiser, n_ema=n_ema), jax.random.key(0)
    )
    assert len(state.ema) == n_ema and count_parameters(state.ema) == n_ema * count_parameters(state.params) > 0


def test_every_field_can_be_set_to_what_it_is():
    """As --config.key=value, each keeps its value and its type."""
    overrides = [f"--config.{key}={value if isinstance(value, str) else repr(value)}" for key, value in BASE.items()]
    found = leaves(load("configs/base.py", overrides))
    assert found == BASE
    assert {key: type(value) for key, value in found.items()} == {key: type(value) for key, value in BASE.items()}


@pytest.mark.parametrize("text, value", [
    ("3", 3), ("3.0", 3.0), ("1e-4", 1e-4), ("True", True), ("true", True), ("false", False), ("None", None),
    ("(0.9,0.99)", (0.9, 0.99)), ("[1,2]", [1, 2]), ("'3'", "3"), ("vp", "vp"), ("1-t", "1-t"), ("", ""),
    ("a b", "a b"), ("__import__('os')", "__import__('os')"),
])  # fmt: skip
def test_values_are_literals_or_text(text, value):
    assert parse(text) == value and type(parse(text)) is type(value)


@pytest.mark.parametrize("value, default, result", [
    (3, 1.0, 3.0), ([1, 2], (1,), (1, 2)), (2, (1,), (2,)), (3, "a", "3"),
])  # fmt: skip
def test_conversions_that_lose_nothing(value, default, result):
    kind = type(default)
    assert convert("key", value, kind) == result and type(convert("key", value, kind)) is kind


def test_explain_has_a_line_for_every_field():
    of_fields = explain().split("\n\n")[0].splitlines()[1:]
    lines = dict(re.match(r"  ([\w.]+) +(.*?)  \[", line).groups() for line in of_fields)
    assert lines.keys() == {key + (".name" if key not in PLAIN else "") for key in SCHEMA}
    assert all(lines.values())
    for key, field in SCHEMA.items():  # what is allowed is said
        about = lines[key if key in PLAIN else f"{key}.name"]
        assert all(name in about for name in field.metadata["limits"].choices()), key


def test_differences_are_named_with_both_values():
    old = {
        "path": {"name": "vp", "beta_max": 20.0},
        "model": {"ema_rate": [0.9]},
        "optim": {"lr": 1, "optimizer": "Adam"},
    }
    new = {"path": {"name": "linear"}, "model": {"ema_rate": (0.9,)}, "optim": {"lr": 2, "optimizer": "AdamW"}}
    found = differences(old, new, ("path", "model", "optim.optimizer"))
    assert found == ["optim.optimizer: Adam -> AdamW", "path.beta_max: 20.0 -> absent", "path.name: vp -> linear"]
    assert differences(old, old, ("path", "model", "optim")) == []


def test_a_section_younger_than_what_was_saved_had_its_default():
    new = load("configs/digits.py", [])
    old = new.to_dict()
    del old["eval"]["extractor"], old["eval"]["stats"]
    assert differences(old, new.to_dict(), ("eval",)) == []
    new = with_settings(new, {"eval.extractor.name": "inception"})
    assert differences(old, new.to_dict(), ("eval",)) == ["eval.extractor.name: small -> inception"]


@pytest.mark.parametrize("pair, as_it_ran", [
    ({"likelihood_weighting": True, "weighting": "velocity"}, {"training.weighting": "likelihood"}),
    ({"importance_weighting": True, "time_sampler": {"name": "lognormal", "std": 2.0}},
     {"training.time_sampler": Component("log_snr")}),
    ({"label_dropout": 0.1}, {"training.label_dropout": 0.0}),
    ({"min_snr_gamma": 3.0}, {"training.min_snr_gamma": 5.0}),
    ({"vlb_weight": 0.5}, {"training.vlb_weight": 1e-3}),
])  # fmt: skip
def test_a_run_goes_on_as_an_older_program_understood_it(tmp_path, pair, as_it_ran):
    """Of two options that contradict each other it overlooked one; asked for anew, they are refused."""
    saved = load(DIGITS, []).to_dict()
    saved["training"] |= pair
    saved["path"] = {"name": "vp"}  # whose log SNR is finite at t = 1
    (tmp_path / "config.json").write_text(json.dumps(saved))
    config = load(str(tmp_path / "config.json"), [])
    values = values_of(config)
    assert {key: values[key] for key in as_it_ran} == as_it_ran
    assert differences(saved, config.to_dict(), ("training",)) == []
    build_all(config)
