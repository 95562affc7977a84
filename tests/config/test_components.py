"""Plug-ins: every argument of every one is explained, has limits, and is refused in one line when it is wrong."""

import collections.abc
import dataclasses
import inspect
import math

import flax.linen as nn
import pytest

from evaluation.modes.checking import check_components
from score_flow.build import check_shapes, experiment
from score_flow.config import registries
from score_flow.config.components import Component, check, explain, find, resolve
from score_flow.config.hints import accept, arguments_of, hint_of, kind_of, limits_of, members
from score_flow.config.limits import Limits, check_times
from score_flow.config.loading import load, with_settings
from score_flow.config.options import SCHEMA
from score_flow.config.registries import ROOT
from score_flow.data.conditioning import Conditioning
from score_flow.errors import UserError
from score_flow.training.dequantiser import NETWORKS

REGISTRIES = {
    key: field.metadata["limits"].among for key, field in SCHEMA.items() if isinstance(field.default, Component)
}
BUILDS = {
    (key, name): find(registry, Component(name), key)
    for key, registry in REGISTRIES.items()
    for name in Limits(among=registry).choices()
}
ARGUMENTS = {
    (key, name, argument): parameter
    for (key, name), build in BUILDS.items()
    for argument, parameter in arguments_of(build).items()
}
SAMPLERS = [name for key, name in BUILDS if key == "sampling"]
# Numbers that may be anything finite: coefficients of a filter, means.
UNBOUNDED = {"fir_kernel", "data_mean", "mean"}
NUMBERS = (int, float)


def numbers(hint) -> dict:
    """kind -> limits of the members of a hint that are numbers, or tuples of them."""
    found = {kind_of(member): limits_of(member) for member in members(hint)}
    return {kind: limits for kind, limits in found.items() if (limits.each or kind) in NUMBERS}


def outside(limits: Limits, kind: type) -> list:
    """The nearest numbers that limits refuse, and those that are none."""
    step = 1 if kind is int else 1e-6
    found = [bound - step for bound in (limits.least,) if bound is not None]
    found += [bound for bound in (limits.above, limits.below) if bound is not None]
    found += [bound + step for bound in (limits.most,) if bound is not None]
    return [kind(value) for value in found] + ([math.nan] if kind is float else [])


def wrong_values(parameter: inspect.Parameter) -> list:
    """Values of another type than an argument's, and numbers and names that it does not take."""
    hint = hint_of(parameter)
    kinds = {kind_of(member): limits_of(member) for member in members(hint)}
    found = [{"a": 1}]
    found += [] if type(None) in kinds else [None]
    found += [] if bool in kinds else [True]
    found += [] if float in kinds or str in kinds or tuple in kinds else [1.5]
    found += ["zzz"] if not (str in kinds and not kinds[str].choices()) else []
    for kind, limits in kinds.items():
        item = limits.each or kind
        if item in NUMBERS:
            values = outside(limits, item)
            found += (
                [(value,) * max(limits.fewest, *limits.lengths, 1) for value in values] if kind is tuple else values
            )
        if kind is tuple and limits.fewest:
            found.append(())
    return found


def refusal(key: str, name: str, arguments: dict) -> str:
    """The one line in which a section's arguments are refused."""
    with pytest.raises(UserError) as error:
        check(REGISTRIES[key], Component(name, arguments), f"config.{key}")
    message = str(error.value)
    assert message and "\n" not in message
    return message


@pytest.mark.slow
def test_every_wrong_value_of_every_argument_is_refused_with_its_key():
    n = 0
    for (key, name, argument), parameter in ARGUMENTS.items():
        for value in wrong_values(parameter):
            assert f"config.{key}.{argument} " in refusal(key, name, {argument: value}), (name, argument, value)
            n += 1
    assert n > 4 * len(ARGUMENTS) > 400


def test_every_misspelt_argument_is_refused_with_the_nearest_name():
    for key, name, argument in ARGUMENTS:
        message = refusal(key, name, {f"{argument}x": 1})
        assert f"config.{key} (name = {name})" in message and f"Did you mean {argument!r}?" in message


def test_every_default_is_within_its_limits():
    for (key, name, argument), parameter in ARGUMENTS.items():
        if parameter.default is not inspect.Parameter.empty:
            assert accept(argument, parameter.default, hint_of(parameter)) == parameter.default, (key, name)


def test_every_number_has_a_limit_and_every_argument_a_type():
    """But for those named here; data sources are looked at where they are tested."""
    unbounded = set()
    for (key, _, argument), parameter in ARGUMENTS.items():
        plain = {int, float, bool, str, tuple, type(None), collections.abc.Callable}
        assert {kind_of(member) for member in members(hint_of(parameter))} <= plain, (key, argument)
        if key != "data.source":
            limited = [limits.choices() or outside(limits, int) for limits in numbers(hint_of(parameter)).values()]
            unbounded |= {argument} if not all(limited) else set()
    assert unbounded == UNBOUNDED


def test_no_argument_is_unexplained():
    for key, registry in REGISTRIES.items():
        text = "\n" + explain(registry)
        for (of, name), build in BUILDS.items():
            if of == key:
                about, *lines = text[text.index(f"\n{name}: ") + 1 :].splitlines()
                assert len(about) > len(name) + 10  # what it is
                for line, (argument, parameter) in zip(lines, arguments_of(build).items(), strict=False):
                    assert line.split()[0] == argument and line.split()[1].strip(":") in line
                    names = {n for member in members(hint_of(parameter)) for n in limits_of(member).choices()}
                    assert all(str(choice) in line for choice in names)


@pytest.mark.parametrize("name", SAMPLERS)
def test_times_and_steps_of_every_sampler(name):
    """Each by its name, by a person or from Python; the key is in the message."""
    build = BUILDS["sampling", name]
    for times, key in (
        ({"t_max": 2.0}, "t_max"), ({"t_min": -0.5}, "t_min"), ({"t_min": 0.9, "t_max": 0.5}, "t_min"),
        ({"t_min": 0.5, "t_max": 0.5}, "t_min"), ({"t_max": 0.0}, "t_m"), ({"t_min": math.nan}, "t_min"),
        ({"n_steps": -1}, "n_steps"), ({"n_steps": True}, "n_steps"), ({"n_steps": 10**12}, "n_steps"),
        ({"grid": (0.1, 0.5)}, "grid"), ({"grid": (1.5, 0.5)}, "grid"), ({"grid": (0.5,)}, "grid"),
        ({"grid": "unifrm"}, "grid"), ({"grid": "(0.9, x)"}, "grid"), ({"grid": 3}, "grid"),
    ):  # fmt: skip
        section = Component(name, times)
        for make in (lambda: resolve(registries.SAMPLERS, section, "config.sampling"), lambda: build(**times)):  # noqa: B023
            with pytest.raises(UserError, match=f"config.sampling.{key}") as error:
                make()
            assert "\n" not in str(error.value)
    with pytest.raises(UserError) if name != "ode" else pytest.MonkeyPatch.context():  # of ode: adaptive steps
        build(n_steps=0)


@pytest.mark.parametrize("first, last, said", [
    (-0.1, 1.0, "here.a is -0.1"), (0.0, 1.1, "here.b is 1.1"), (0.5, 0.5, "here.a is 0.5; it must be below here.b"),
    (math.nan, 1.0, "here.a is nan"),
])  # fmt: skip
def test_a_range_of_times_lies_in_order_within_0_and_1(first, last, said):
    with pytest.raises(UserError, match=said):
        check_times("here", first, last, ("a", "b"))
    check_times("here", 0.0, 1.0)


@pytest.mark.parametrize("text, value", [("bf16", "bfloat16"), ("fp32", "float32"), ("bfloat16", "bfloat16")])
def test_dtypes_have_one_name(text, value):
    for key in ("model.precision", "network.dtype"):  # the latter is its older name
        config = check_components(load("configs/digits.py", [f"--config.{key}={text}"]))
        assert config.model.precision == value and "dtype" not in config.network.arguments


@pytest.mark.parametrize("text, value", [("none", ""), ("", ""), ("langevin", "langevin")])
def test_no_corrector_has_a_name(text, value):
    flags = ["--config.sampling.name=predictor_corrector", f"--config.sampling.corrector={text}"]
    assert check_components(load("configs/base.py", flags)).sampling.arguments["corrector"] == value
    message = refusal("sampling", "predictor_corrector", {"corrector": "langevn"})
    assert "allowed: '' (none), annealed_langevin, langevin. Did you mean 'langevin'?" in message


@pytest.mark.parametrize("text", ["float16", "fp16", "half"])
def test_half_precision_without_loss_scaling_is_refused(text):
    with pytest.raises(UserError, match="config.model.precision is .*allowed: bfloat16.*no loss scaling"):
        load("configs/digits.py", [f"--config.model.precision={text}"])


@pytest.mark.parametrize("key, text, value", [
    ("data.source.path", "1e3", "1e3"), ("data.source.path", "None", "None"), ("sampling.respacing", "50", "50"),
    ("sampling.respacing", "10,10,30", "10,10,30"), ("sampling.grid", "(1.0, 0.5)", (1.0, 0.5)),
    ("sampling.grid", "karras", "karras"), ("sampling.eta", "1", 1.0), ("network.channel_mult", "2", (2,)),
    ("network.groups", "None", None), ("network.fir_kernel", "[1,3,3,1]", (1.0, 3.0, 3.0, 1.0)),
])  # fmt: skip
def test_what_is_typed_becomes_the_type_of_the_argument(key, text, value):
    names = ["--config.data.source.name=folder", "--config.sampling.name=ddim", "--config.network.name=ncsnpp"]
    config = check_components(load("configs/base.py", [*names, f"--config.{key}={text}"]))
    section, _, argument = key.rpartition(".")
    found = (config.data.source if section == "data.source" else getattr(config, section)).arguments[argument]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("settings, said", [
    ({"sampling.t_min": 0.9, "sampling.t_max": 0.5}, "config.sampling.t_min is 0.9"),
    ({"eval.solver.grid": "(0.1, 1.0)"}, "config.eval.solver.grid"),
    ({"control.sigma_y": -1.0}, "config.control.sigma_y"),
    ({"dequantizer.blocks": -1}, "config.dequantizer.blocks"),
    ({"dequantizer.blok": ("conv",)}, "config.dequantizer"),
    ({"eval.extractor.name": "inception", "eval.extractor.dtype": "int8"}, "config.eval.extractor.dtype"),
    ({"eval.extractor.levels": 3}, "config.eval.extractor"),
    ({"training.time_sampler.t_min": 0.1}, "config.training.time_sampler.t_min cannot be given"),
    ({"network.num_classes": 5}, "config.network.num_classes cannot be given"),
    ({"network.out_channels": 5}, "config.network.out_channels cannot be given"),
    ({"control.image_shape": (1, 1, 1)}, "config.control.image_shape cannot be given"),
    ({"path.name": "vp", "path.beta_min": -1.0}, "config.path.beta_min"),
])  # fmt: skip
def test_every_section_is_checked_whatever_the_mode(settings, said):
    with pytest.raises(UserError, match=said) as error:
        check_components(with_settings(load("configs/digits.py", []), settings))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("settings", [
    {"network.patch_size": 3}, {"network.num_heads": 7}, {"network.width": 6, "network.num_heads": 1},
    {"network.name": "ncsnpp", "network.width": 8, "network.channel_mult": (1, 1, 1, 1, 1)},
    {"network.name": "adm", "network.width": 8, "network.num_heads": 3},
    {"network.name": "ncsnpp", "data.image_shape": (6, 6, 1)},
    {"network.name": "ncsnv2", "data.image_shape": (5, 5, 1)},
    {"network.name": "ncsnpp", "network.conditional": False, "model.class_conditional": True},
])  # fmt: skip
def test_a_network_that_does_not_fit_is_refused_before_anything_is_computed(settings):
    with pytest.raises(UserError, match=r"config.network( |\.)") as error:
        experiment(with_settings(load("configs/digits.py", []), settings))
    assert "\n" not in str(error.value)


def test_whatever_a_network_raises_is_one_line():
    class Broken(nn.Module):
        num_classes: int = 0

        @nn.compact
        def __call__(self, x, time, condition=None, *, deterministic=True):
            return x.reshape(3, 3) + x

    model = experiment(load("configs/digits.py", [])).model
    with pytest.raises(
        UserError, match=r"config.network \(name = broken\) does not fit images of \(8, 8, 1\): TypeError"
    ) as error:
        check_shapes(dataclasses.replace(model, network=Broken()), (8, 8, 1), Conditioning(0, 0), name="broken")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("settings, said", [
    ({"path.name": "vp", "path.beta_min": 20.0, "path.beta_max": 0.1}, "config.path.beta_min is 20.0"),
    ({"path.name": "subvp", "path.beta_min": 20.0, "path.beta_max": 0.1}, "config.path.beta_min is 20.0"),
    ({"path.name": "ddpm", "path.beta_min": 20.0, "path.beta_max": 0.1}, "config.path.beta_min is 20.0"),
    ({"path.name": "ddpm", "path.n": 20}, r"config.path .*\(0, 1\)"),
    ({"path.name": "ve", "path.sigma_min": 60.0}, "config.path.sigma_min"),
    ({"training.time_sampler.name": "lognormal", "training.time_sampler.mean": 1e3, "training.largest_time": 0.9,
      "training.smallest_time": 0.1}, "config.training.time_sampler.mean"),
    ({"training.time_sampler.name": "logit_normal", "training.time_sampler.mean": -1e3,
      "training.smallest_time": 0.1}, "config.training.time_sampler.mean"),
    ({"training.time_sampler.name": "grid", "training.time_sampler.n": 2, "training.largest_time": 0.4},
     "config.training.time_sampler.n"),
])  # fmt: skip
def test_what_no_argument_alone_decides_is_refused_too(settings, said):
    with pytest.raises(UserError, match=said) as error:
        experiment(with_settings(load("configs/digits.py", []), settings))
    assert "\n" not in str(error.value)


def test_annotations_are_read_however_they_are_written():
    """Those of a plug-in of one's own: as text, none at all, a union, a limit around a union."""
    namespace = {}
    exec(
        "from __future__ import annotations\n"
        "from typing import Annotated\nfrom score_flow.config.limits import Limits\n"
        "def build(a: Annotated[int | None, Limits(least=1)] = None, b=2.0, c: str | float = 'x', d=None): ...",
        namespace,
    )
    hints = {name: hint_of(parameter) for name, parameter in arguments_of(namespace["build"]).items()}
    assert accept("a", None, hints["a"]) is None and accept("a", 1, hints["a"]) == 1
    assert accept("b", 1, hints["b"]) == 1.0 and accept("c", 2.5, hints["c"]) == 2.5
    assert accept("d", (1, "x"), hints["d"]) == (1, "x")
    for name, value in (("a", 0), ("a", "1"), ("a", 1.5), ("b", "x"), ("b", math.inf), ("c", (1,)), ("c", None)):
        with pytest.raises(UserError, match=f"^{name} "):
            accept(name, value, hints[name])


def test_registries_name_files_and_tables():
    assert set(registries.SAMPLERS.names()) == set(SAMPLERS)
    assert {path.stem for path in (ROOT / "score_flow/paths").glob("*.py")} >= set(registries.PATHS.names())
    with pytest.raises(UserError, match=r"here.name is 'odee'; allowed: .*Did you mean 'ode'\?"):
        find(registries.SAMPLERS, Component("odee"), "here")


def test_dequantisers_that_are_named_are_those_that_there_are():
    assert set(registries.DEQUANTISERS.names()) == {"auto", *NETWORKS}
