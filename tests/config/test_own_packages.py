"""Plug-ins of a package of one's own: a name with a dot is a module, or a row of one; failures are one line."""

import sys

import pytest

from score_flow.config import registries
from score_flow.config.components import Component, check, explain, find
from score_flow.config.loading import load
from score_flow.config.options import SCHEMA
from score_flow.config.registries import Registry
from score_flow.errors import UserError


def _entries(among):
    return among if isinstance(among, tuple) else (among,)


def _is_a_folder(entry):
    return isinstance(entry, Registry) and not entry.table


FILES = {
    "__init__": "",
    "plain": """
from score_flow.config.hints import Count
def build(power: Count = 3): "A thing."
class job: ...
def predictor(): ...
def corrector(): ...
""",
    "table": "rows = {}\ndef sampler(): ...\n",
    "empty": "",
    "needs": "import not_installed_anywhere\n",
    "wrong": "x = 1\ny = z\n",
    "unreadable": "def f(:\n",
}
NAMED = [key for key, field in SCHEMA.items() if Registry in map(type, _entries(field.metadata["limits"].among))]


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """my_lab, in the folder that one works in."""
    (tmp_path / "my_lab").mkdir()
    for name, text in FILES.items():
        (tmp_path / "my_lab" / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield tmp_path / "my_lab"
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_lab"]:
        del sys.modules[name]


@pytest.mark.parametrize("key", NAMED)
def test_every_section_takes_a_dotted_name(key, lab, tmp_path):
    plug_in = isinstance(SCHEMA[key].default, Component)
    flag, name = (f"{key}.name" if plug_in else key), "my_lab.plain"
    value = f"('{name}',)" if isinstance(SCHEMA[key].default, tuple) else name
    saved = tmp_path / "config.json"
    saved.write_text(load("configs/digits.py", [f"--config.{flag}={value}"]).to_json())
    assert name in load(str(saved), []).to_json()


@pytest.mark.parametrize("kind", [kind for kind, entry in vars(registries).items() if _is_a_folder(entry)])
def test_a_module_is_what_it_exports(kind, lab):
    found = getattr(registries, kind).entry("my_lab.plain", "here")
    assert found.__module__ == "my_lab.plain" and found.__name__ == getattr(registries, kind).exports


def test_a_row_is_an_attribute_of_a_module(lab):
    assert registries.TIME_SAMPLERS.entry("my_lab.table.sampler", "here").__name__ == "sampler"
    with pytest.raises(UserError, match=r"my_lab.table has no samplr, .* Did you mean 'sampler'\?"):
        registries.TIME_SAMPLERS.entry("my_lab.table.samplr", "here")


def test_arguments_are_checked_by_its_signature(lab):
    section = check(registries.PATHS, Component("my_lab.plain", {"power": 2}), "config.path")
    assert section.arguments == {"power": 2}
    for arguments, said in (({"power": 0}, "at least 1"), ({"pwer": 1}, "Did you mean 'power'?")):
        with pytest.raises(UserError) as error:
            check(registries.PATHS, Component("my_lab.plain", arguments), "config.path")
        assert said in str(error.value)


@pytest.mark.parametrize(
    "name, said",
    [
        ("my_lab.plane", "no module plane, but: empty, needs, plain, table, unreadable, wrong. Did you mean 'plain'?"),
        ("my_lib.plain", "there is no package my_lib: install it, or start where its folder lies. Without a dot: "),
        ("my_lab.plain.x", "my_lab.plain has no module x, but: none."),
        ("my_lab.empty", "my_lab.empty has no build, which it is to export."),
        ("my_lab.needs", "needs.py, line 1: ModuleNotFoundError: No module named 'not_installed_anywhere'"),
        ("my_lab.wrong", "wrong.py, line 2: NameError: name 'z' is not defined"),
        ("my_lab.unreadable", "SyntaxError: invalid syntax (unreadable.py, line 1)"),
        (".plain", "which is no name of a module; without a dot: ddpm, "),
        ("my_lab.", "which is no name of a module; without a dot: ddpm, "),
        ("my-lab.plain", "which is no name of a module; without a dot: ddpm, "),
    ],
)  # fmt: skip
def test_what_fails_is_one_line(name, said, lab):
    with pytest.raises(UserError) as error:
        find(registries.PATHS, Component(name), "config.path")
    assert str(error.value).startswith(f"config.path.name is {name!r}") and said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_folder_that_one_works_in_hides_no_library_and_nothing_of_the_program(lab):
    """Its files come last, and --help is of this project's plug-ins alone."""
    (lab.parent / "json.py").write_text("raise RuntimeError")
    (lab.parent / "score_flow").mkdir()
    assert registries.PATHS.entry("my_lab.plain", "here")
    assert sys.path[-1] == "" and sys.path.count("") == 1
    assert "my_lab" not in explain(registries.PATHS)
