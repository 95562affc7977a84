"""Recipes and config.json files: every mistake in them is one line, of a recipe with the line where it is."""

import pytest

from configs import families
from score_flow.config.loading import load
from score_flow.errors import UserError
from tests.config.test_config import PLAIN, outside, refused
from tests.discover import thinned

LINE = 3  # of a recipe, where its mistake is


def recipe(folder, line: str) -> str:
    """The file of a recipe with one line of its own."""
    file = folder / "recipe.py"
    head = "from configs.base import component, get_config as base"
    file.write_text(f"{head}\ndef get_config():\n    c = base(); {line}\n    return c\n")
    return str(file)


def refused_in(folder, line: str) -> str:
    """The one line with which a recipe is refused: it names the file and the line."""
    file = recipe(folder, line)
    with pytest.raises(UserError) as error:
        load(file, [])
    message = str(error.value)
    assert f"{file}, line {LINE}: " in message and "\n" not in message, message
    return message.partition(": ")[2]


@pytest.mark.parametrize("key", thinned(PLAIN, 3))
def test_every_mistake_in_a_recipe_names_its_line(tmp_path, key):
    """A field that does not exist (with the nearest), another type, a value outside the limits."""
    field, last = PLAIN[key], key.rpartition(".")[2]
    said = refused_in(tmp_path, f"c.{key}{last[-1]} = 1")
    assert repr(last + last[-1]) in said and f"Did you mean {last!r}?" in said
    for value in [None, {}] if type(field.default) is str else [None, {}, "text"]:
        assert last in refused_in(tmp_path, f"c.{key} = {value!r}")
    for value in outside(field)[:2]:
        wrapped = (value,) * max(1, *field.metadata["limits"].lengths, 1) if type(field.default) is tuple else value
        assert f"config.{key} " in refused_in(tmp_path, f"inf, nan = 1e999, 1e999 - 1e999; c.{key} = {wrapped!r}")


@pytest.mark.parametrize("line, said", [
    ("c.path = 'vp'", "path is a section, got 'vp': give path.name"), ("c.path.name = 'vpp'", "Did you mean 'vp'?"),
    ("c.path.name = 3", "name must be of type str"), ("c.path = component('vpp')", "Did you mean 'vp'?"),
    ("import no_such_package", "No module named"),
    ("c.optim.lr = = 3", "SyntaxError"), ("c.training.n_iters = 4e0", "n_iters must be of type int, got 4.0"),
    ("c['optim']['lrr'] = 3", "Did you mean 'lr'?"), ("1 / 0", "ZeroDivisionError"), ("c.nothing = 1", "'nothing'"),
])  # fmt: skip
def test_whatever_goes_wrong_in_a_recipe_is_one_line(tmp_path, line, said):
    assert said in refused_in(tmp_path, line)


@pytest.mark.parametrize("call, said", [
    ("cifar10(n_iter=3)", "unexpected keyword argument 'n_iter'"), ("cifar11()", "no attribute 'cifar11'"),
    ("vp(families.cifar10())", "missing 1 required keyword-only argument: 'network'"),
    ("vp(families.cifar10(), network='ncsnpp')", "network is a section, got 'ncsnpp': give network.name"),
    ("vp(families.cifar10(), network=component('ncsnp'))", "Did you mean 'ncsnpp'?"),
    ("cifar10(n_iters=4e0)", "n_iters must be of type int, got 4.0"), ("ve_1024(reduce_mean=3)", "reduce_mean must be"),
    ("lsun(batch_size=0)", "config.training.batch_size "), ("iddpm_lsun(lr=-1.0)", "config.optim.lr "),
    ("lsun(image_size=-1)", "config.data.image_shape "), ("sit(-8)", "config.data.image_shape "),
    ("cifar10(); c.training.n_iter = 3", "Did you mean 'n_iters'?"), ("sit(8); c.optim.lr = 'x'", "lr must be of"),
])  # fmt: skip
def test_a_mistake_in_the_call_of_a_family_names_the_line_of_the_call(tmp_path, call, said):
    assert said in refused_in(tmp_path, f"from configs import families; c = families.{call}")


def test_a_row_of_a_recipe_that_is_none_names_its_line(tmp_path):
    (file := tmp_path / "row.py").write_text(
        "from configs.reproduce.rows import evaluated, fid\n\nget_config = evaluated('digit', fid)\n"
    )
    with pytest.raises(UserError, match="row.py, line 3: .*configs.digit"):
        load(str(file), [])


def test_a_recipe_goes_on_from_a_family_as_the_docstring_of_families_does(tmp_path):
    body = families.__doc__.partition(",\n\n")[2]
    head = "from configs import families\nfrom configs.base import component\ndef get_config():\n"
    (tmp_path / "recipe.py").write_text(head + body)
    config = load(str(tmp_path / "recipe.py"), [])
    assert (config.path.name, config.training.batch_size, config.training.n_iters) == ("vp", 64, 1_300_001)


@pytest.mark.parametrize("text", ["", "x = 1", "def get_config(): return None", "def get_config(): return 3"])
def test_a_file_without_a_config_is_refused(tmp_path, text):
    (tmp_path / "recipe.py").write_text(text)
    assert "give a Python file with get_config()" in refused(file=str(tmp_path / "recipe.py"))


@pytest.mark.parametrize("text", ["[" * 100_000, "3", "{", "\x00", '{"optim": {"lr": "fast"}}', '{"path": "vp"}'])
def test_a_config_json_that_is_none_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert "config.json" in refused(file=str(tmp_path / "config.json"))
