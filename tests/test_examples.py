"""The notebooks of examples/: their cells run, a few steps of each now and in full with the slow tests."""

import ast
import json
import sys

import pytest

from examples.run import cells, run, with_values
from tests.launch import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
PICTURES = ROOT / "docs/pictures/examples"
QUICK = {
    "score_from_nothing": {"STEPS": 3, "WIDTH": 8, "N": 20, "GRID": 4},
    "play_with_a_checkpoint": {"STEPS": 2, "NETWORK": "mlp", "WIDTH": 8, "DEPTH": 1, "PC_STEPS": 2, "N_BITS": 5},
    "sit_in_latents": {
        "AUTOENCODER_STEPS": 1, "STEPS": 2, "NETWORK": "mlp", "WIDTH": 8, "DEPTH": 1, "CHANNELS": (8, 8),
    },
    "add_your_own": {"STEPS": 2, "WIDTH": 8, "DEPTH": 1, "SHARES": (0.5,)},
}
LONG = ("play_with_a_checkpoint", "sit_in_latents")  # compiling what they contain takes a minute


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, with the recipes; what a notebook adds to Python's path and modules goes again."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_lab"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "notebook",
    [pytest.param(file, marks=[pytest.mark.slow] * (file.stem in LONG), id=file.stem) for file in NOTEBOOKS],
)
def test_a_few_steps(notebook, place):
    """Every cell runs, and draws the pictures of which the site shows those of a full run."""
    drawn = {}
    session = run(notebook, QUICK[notebook.stem], lambda n, figure: drawn.update({f"{notebook.stem}-{n}.png": figure}))
    kept = {file.name for file in PICTURES.glob(f"{notebook.stem}-*.png")}
    assert len(drawn) >= 2 and kept <= drawn.keys() and all(figure.axes for figure in drawn.values())
    assert {name: session[name] for name in QUICK[notebook.stem]} == QUICK[notebook.stem]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_in_full(notebook, place):
    drawn = []
    session = run(notebook, {}, lambda n, figure: drawn.append(n))
    assert drawn == [*range(1, len(drawn) + 1)] and len(drawn) >= 2
    if notebook.stem == "score_from_nothing":
        assert session["bits"] > session["gaussian"] + 1
    if notebook.stem == "play_with_a_checkpoint":
        assert session["right"] > 0.5 and session["bits"]["test images"].mean() < session["bits"]["negatives"].mean()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_nothing_of_a_run_is_kept(notebook):
    """No output, no count, small; the first code cell has numbers and names alone."""
    content = json.loads(notebook.read_text())
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert notebook.stat().st_size < 40_000 and content["nbformat"] == 4
    assert all(isinstance(node, ast.Assign) for node in ast.parse("".join(code[0]["source"])).body)


def test_sixty_lines():
    """As its title says: but for parameters, imports and pictures."""
    code = [c.text for c in cells(ROOT / "examples/score_from_nothing.ipynb") if not c.markdown]
    lines = [line for text in code[1:] if "plt" not in text for line in text.splitlines() if line.strip()]
    assert 50 < len(lines) <= 60


def test_parameters_are_known_by_name():
    assert with_values("N = 3\nM = 4", {"M": 5}).splitlines()[-1] == "M = 5"
    with pytest.raises(ValueError, match="no parameter K; it has: N"):
        with_values("N = 3", {"K": 1})
