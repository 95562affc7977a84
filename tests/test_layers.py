"""The house: imports go down only, each library stays behind its seam, files stay small."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = [p for folder in ("score_flow", "sampling", "evaluation", "configs") for p in (ROOT / folder).rglob("*.py")] + [
    ROOT / "main.py"
]

# The first prefix that matches decides; a file may import its own layer and those below.
LAYERS = [
    (name, level)
    for level, names in enumerate((
        ("score_flow.types", "score_flow.tree", "score_flow.numerics", "score_flow.config"),
        ("score_flow.paths", "score_flow.networks"), ("score_flow.process",), ("score_flow.model",),
        ("score_flow",), ("sampling",), ("evaluation",), ("main", "configs"),
    ))
    for name in names
]  # fmt: skip
# library -> the files that may import it
SEAMS = {
    "diffrax": ("sampling/flow.py", "sampling/reverse_sde.py"),
    "orbax": ("score_flow/runs/checkpoint.py",),
    "tensorstore": ("score_flow/runs/manifest.py",),
    "grain": ("score_flow/data/",),
    "tensorflow_datasets": ("score_flow/data/tfds.py",),
    "sklearn": ("score_flow/data/digits.py", "evaluation/metrics/extractors/small.py"),
    "optax": ("score_flow/training/steps.py", "score_flow/build.py", "score_flow/losses/coupling.py"),
    "tensorflow": (),
    "torch": (),
    "pickle": (),
}


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def layer(name: str) -> int | None:
    return next((level for prefix, level in LAYERS if name == prefix or name.startswith(prefix + ".")), None)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides its layer"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_go_down(path):
    own = layer(module(path))
    assert own is not None, f"{path} has no layer"
    upward = [name for name in imports(path) if (level := layer(name)) is not None and level > own]
    assert not upward, f"{module(path)} (layer {own}) imports upward: {upward}"


def test_networks_and_paths_meet_only_in_the_model():
    for path in FILES:
        if module(path).startswith("score_flow.networks"):
            assert not [name for name in imports(path) if name.startswith(("score_flow.paths", "score_flow.process"))]
        if module(path).startswith(("score_flow.paths", "score_flow.process")):
            assert not [name for name in imports(path) if name.startswith(("flax", "ml_collections"))]


@pytest.mark.parametrize("library", SEAMS)
def test_libraries_stay_behind_their_seams(library):
    users = [p.relative_to(ROOT).as_posix() for p in FILES for name in imports(p) if name.split(".")[0] == library]
    assert not [user for user in users if not user.startswith(SEAMS[library])] if SEAMS[library] else not users


def test_files_are_short():
    long = {
        p.relative_to(ROOT).as_posix(): n
        for p in [*FILES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
        if (n := len(p.read_text().splitlines())) > 400
    }
    assert not long


def test_nothing_says_pmap():
    assert not [p for p in FILES if "pmap" in p.read_text().replace("No pmap", "")]
