"""Presets whose weights are published say which file it is, where its authors offer it, and the statistics it needs."""

import ast
import re

import pytest

from tests.launch import ROOT

RECIPES = [f for f in sorted((ROOT / "configs").rglob("*.py")) if f.parent.name not in ("reproduce", "families")]
NAMES = [f.relative_to(ROOT / "configs").with_suffix("").as_posix() for f in RECIPES]
DOCS = {name: ast.get_docstring(ast.parse(f.read_text())) for name, f in zip(NAMES, RECIPES, strict=True)}
NAMED = {name: doc for name, doc in DOCS.items() if doc and re.search(r"^Weights ", doc, re.MULTILINE)}
# Rows of published figures start from these. Of SiT at 512 no file is offered: its download.py has the one at 256.
ROWS = sorted(
    {
        recipe
        for file in (ROOT / "configs/reproduce").glob("*.py")
        for recipe in re.findall(r'evaluated\("([\w/]+)"', file.read_text())
    }
    - {"digits", "sit/xl_2_512"}
)


@pytest.mark.parametrize("name", ROWS)
def test_a_preset_of_published_figures_names_its_file(name):
    assert name in NAMED


@pytest.mark.parametrize("name", NAMED)
def test_file_address_and_statistics(name):
    found = re.search(r"^Weights +(.*?)^Statistics +(.*?)^Hardware ", NAMED[name], re.DOTALL | re.MULTILINE)
    weights, statistics = found.groups()
    assert re.search(r"https://\S+\.\w+/\S{10,}", weights)
    assert re.search(r"\.pt\b|\.pth\b|\.pkl\b|/checkpoints|/ of score_sde_pytorch", weights)
    assert re.search(r"\w+\.npz|/\w+\.pkl|--mode=stats", statistics)


def test_every_file_that_improved_diffusion_offers():
    """Its README has eight; each preset names another."""
    files = [re.search(r"march-2021/(\w+\.pt)", doc)[1] for name, doc in NAMED.items() if "improved_diffusion/" in name]
    assert len(set(files)) == len(files) == 8 and len(NAMED) == 47
