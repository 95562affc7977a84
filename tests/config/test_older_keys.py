"""Keys and values of older programs of ours mean what they meant, in configs, recipes, flags and saved states."""

import json

import pytest

from score_flow.build import build_network
from score_flow.config import former
from score_flow.config.loading import differences, load
from score_flow.data.conditioning import Conditioning
from score_flow.errors import UserError

DIGITS = "configs/digits.py"
RECIPE = """
from configs.base import component, get_config as base

def get_config():
    config = base()
    config.network = component("mlp", dtype="bf16"{more})
    {then}
    return config
"""


def recipe(tmp_path, more="", then=""):
    (tmp_path / "recipe.py").write_text(RECIPE.format(more=more, then=then))
    return load(str(tmp_path / "recipe.py"), [])


def test_a_run_goes_on_in_its_precision(tmp_path):
    """Neither its config.json nor a state of it says that anything has changed."""
    saved = load(DIGITS, []).to_dict()
    del saved["model"]["precision"]
    saved["network"] |= {"dtype": "bfloat16", "remat": True}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    config = load(str(tmp_path / "config.json"), [])
    assert (config.model.precision, config.network.arguments["remat"]) == ("bfloat16", "full")
    assert "dtype" not in config.network.arguments
    assert differences(saved, config.to_dict(), ("network", "model")) == []
    other = load(DIGITS, ["--config.network.remat=full"]).to_dict()
    assert differences(saved, other, ("network", "model")) == ["model.precision: bfloat16 -> float32"]


def test_a_network_computes_as_either_name_says(tmp_path):
    for config in (
        recipe(tmp_path),
        load(DIGITS, ["--config.network.dtype=bf16"]),
        load(DIGITS, ["--config.model.precision=bf16"]),
    ):
        assert build_network(config, 1, Conditioning(0, 0)).dtype == "bfloat16"
    assert build_network(load(DIGITS, []), 1, Conditioning(0, 0)).dtype == "float32"


def test_both_names_are_refused(tmp_path):
    with pytest.raises(UserError, match="config.network.dtype is the older name of config.model.precision: give one"):
        recipe(tmp_path, then="config.model.precision = 'float64'")
    for value in ("float32", "bf16"):
        with pytest.raises(UserError, match="config.network.dtype is the older name"):
            load(DIGITS, [f"--config.model.precision={value}", "--config.network.dtype=bf16"])
    load(DIGITS, ["--config.model.precision=bf16"], {"network.dtype": "float64"})  # of two places the last counts


@pytest.mark.parametrize("named", [({}, "my_lab.affine"), ({"network.name": "my_lab.affine"}, "sit")])
def test_a_network_of_another_package_has_keys_of_its_own(named):
    settings, network = named
    settings = settings | {"network.dtype": "int8"}
    assert former.renamed(settings, network, {}) == settings
