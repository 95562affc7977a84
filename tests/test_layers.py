"""The rooms of the house: each imports only those before it, by import or by text; libraries stay at their seams."""

import ast
import functools
import re
from pathlib import Path

import pytest

from score_flow.config import registries
from score_flow.config.registries import Registry

ROOT = Path(__file__).resolve().parent.parent
FILES = [p for folder in ("score_flow", "sampling", "evaluation", "configs") for p in (ROOT / folder).rglob("*.py")] + [
    ROOT / "main.py"
]

# Every room, in order: a file imports what is in its own and in those before it. A room is a file or a folder; the
# longest name that fits decides, so that a folder within another is a room of its own. A file in no room fails: a new
# room has to be named here.
HOUSE = """
    score_flow.errors  score_flow.types  score_flow.numerics  score_flow.tree  score_flow.config
    score_flow.paths  score_flow.process  score_flow.networks.blocks  score_flow.networks  score_flow.model
    score_flow.runs  score_flow.data.formats  score_flow.data  score_flow.losses  score_flow.experiment
    score_flow.training.loggers  score_flow.training
    score_flow.pretrained.readers  score_flow.pretrained  score_flow.pretrained.layouts  score_flow.pretrained.projects
    score_flow.build  configs
    sampling.base  sampling.published  sampling.recursion  sampling.exponential  sampling.flow  sampling.reverse_sde
    sampling.likelihood  sampling.change_of_variables  sampling.guided  sampling.guidance  sampling.kernels
    sampling.encoding  sampling.control  sampling  sampling.building
    evaluation.fold  evaluation.weights  evaluation.labels  evaluation.context  evaluation.metrics.extractors
    evaluation.metrics  evaluation.drawing  evaluation.dequantisers  evaluation.report  evaluation.coding
    evaluation.jobs  evaluation.run  evaluation.plan  evaluation.modes  evaluation.opened  main
"""
ROOMS = tuple(HOUSE.split())
FACE = "score_flow"  # hands on names of all rooms, each when it is asked for; inside only its versions are read
VERSIONS = ("score_flow.__version__", "score_flow.FIGURES")
# What names rooms above its own, in text alone, and why that is no arrow.
MAPS = {
    "score_flow.config.registries": "the map of what can be added: imports nothing before an entry is asked for",
    "score_flow.config.options": "the schema: points at registries, which import nothing before an entry is asked for",
    "score_flow.config.evaluation": "a part of the schema",
}
# What imports by a name that is made while it runs: the face, the map, packages whose plug-ins Python asks for, the
# reader of signatures (the ground alone), and rows of reproduced figures, which start from the recipe of the same name.
IMPORTERS = {
    FACE, "score_flow.config.registries", "score_flow.config.packages", "score_flow.config.signatures",
    "configs.reproduce.rows",
}  # fmt: skip
# What runs a Python file by its path, a recipe, and what runs the heads of functions and classes of plug-ins.
LOADERS = {"score_flow.config.loading", "score_flow.config.signatures"}
PLUG_INS = [entry for entry in vars(registries).values() if isinstance(entry, Registry) and not entry.table]

# library -> the files that may import it
SEAMS = {
    "diffrax": ("sampling/flow.py", "sampling/reverse_sde.py", "sampling/sde.py"),
    "orbax": ("score_flow/runs/checkpoint.py", "score_flow/runs/s3.py"),
    "fsspec": ("score_flow/runs/stores.py",),
    "tensorstore": ("score_flow/runs/manifest.py",),
    "grain": ("score_flow/data/",),
    "lmdb": ("score_flow/data/lmdb.py",),
    "pyarrow": ("score_flow/data/parquet.py",),
    "tensorflow_datasets": ("score_flow/data/tfds.py",),
    "trackio": ("score_flow/training/loggers/trackio.py",),
    "wandb": ("score_flow/training/loggers/wandb.py",),
    "sklearn": ("score_flow/data/digits.py", "evaluation/metrics/extractors/small.py"),
    "optax": tuple(
        f"score_flow/{file}.py"
        for file in ("training/steps", "training/optimiser", "training/matrices", "losses/coupling", "experiment")
    ),
    "tensorflow": (),
    "torch": (),
    "pickle": (),
}


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path) for path in FILES}
OURS = ("score_flow", "sampling", "evaluation", "configs", "main")


def room(name: str) -> str | None:
    """The room of a module, or of a name in one."""
    return max((r for r in ROOMS if name == r or name.startswith(f"{r}.")), key=len, default=None)


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def imports(path: Path) -> set[str]:
    """What a file imports, at its top or in a function: "package.module.name"."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides its room"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@functools.cache
def named(path: Path) -> set[str]:
    """What a file reaches by text: an entry of a registry, a module by its dotted name or by its file's."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and isinstance(getattr(registries, node.attr, None), Registry):
            found.add(getattr(registries, node.attr).package)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value.partition(":")[0]  # "module:name"
            text = text.removesuffix(".py").replace("/", ".") if text.endswith(".py") else text
            ours = text in MODULES or text.startswith(("score_flow.", "evaluation."))  # sampling.n_steps is an option
            found |= {text} if ours and re.fullmatch(r"\w+(\.\w+)+", text) else set()
    for name in imports(path):
        entry = getattr(registries, name.removeprefix(f"{registries.__name__}."), None)
        found |= {entry.package} if isinstance(entry, Registry) else set()
    return found


def reached(path: Path) -> set[str]:
    """The names of this project that a file needs, but for those of its own file."""
    names = {name for name in imports(path) | named(path) if name.partition(".")[0] in OURS}
    return {name for name in names if name != module(path) and not name.startswith(f"{module(path)}.")}


@pytest.mark.parametrize("path", FILES, ids=module)
def test_every_file_is_in_a_room_and_imports_only_those_before(path):
    name = module(path)
    needed = {n for n in reached(path) if name not in MAPS or n in imports(path)}
    if name == FACE or (path.name == "__init__.py" and not needed):
        return
    own = room(name)
    inside = own is not None and own in (name, name.rpartition(".")[0], name.removesuffix(".__init__"))
    assert inside or name.startswith("configs."), f"{path} is in no room: give its room a place in ROOMS"
    upward = [other for other in needed if (r := room(other)) and ROOMS.index(r) > ROOMS.index(own)]
    assert not upward, f"{name} (room {own}) reaches up: {sorted(upward)}"


def test_every_room_is_there_and_the_sampling_room_holds_samplers_alone():
    assert not [r for r in ROOMS if r not in MODULES and not any(m.startswith(f"{r}.") for m in MODULES)]
    assert {m for m in MODULES if room(m) == "sampling"} == {
        "sampling", *(f"sampling.{name}" for name in registries.SAMPLERS.names())
    }  # fmt: skip


def test_no_file_imports_the_face():
    """But for its versions, which name no room."""
    for path in FILES:
        used = {name for name in imports(path) if name == "score_flow" or re.fullmatch(r"score_flow\.\w+", name)}
        strange = {name for name in used if name not in MODULES and name not in VERSIONS} | (
            used & {"score_flow"} if module(path) != "main" else set()
        )
        assert not strange, f"{path} uses the face: {strange}"


def test_what_is_named_by_text_exists():
    """The lazy names of the face, and whatever else a file spells out."""
    for path in FILES:
        for name in named(path):
            assert name in MODULES or name.rpartition(".")[0] in MODULES, f"{path} names {name}"


def test_files_import_each_other_in_no_circle():
    graph = {
        module(path): {other if other in MODULES else other.rpartition(".")[0] for other in imports(path)} & MODULES
        for path in FILES
        if module(path) != FACE
    }
    graph = {name: others & set(graph) for name, others in graph.items()}
    done: set[str] = set()
    while ready := {name for name, others in graph.items() if name not in done and others - {name} <= done}:
        done |= ready
    assert not set(graph) - done, f"in a circle, or above one: {sorted(set(graph) - done)}"


@pytest.mark.parametrize("registry", PLUG_INS, ids=lambda registry: registry.package)
def test_plug_ins_do_not_import_each_other(registry):
    """What two of them share stands beside them; a preset may derive from what it is a preset of."""
    names = {f"{registry.package}.{name}" for name in registry.names()}
    allowed = {"score_flow.networks", "score_flow.paths", "score_flow.losses", "score_flow.pretrained.projects"}
    if registry.package in allowed:
        return
    for path in FILES:
        if module(path) in names:
            others = {n for n in imports(path) if any(n == other or n.startswith(f"{other}.") for other in names)}
            assert not others, f"{module(path)} imports other plug-ins: {sorted(others)}"


def test_networks_and_paths_meet_only_in_the_model():
    for path in FILES:
        if module(path).startswith("score_flow.networks"):
            assert not [name for name in reached(path) if name.startswith(("score_flow.paths", "score_flow.process"))]
        if module(path).startswith(("score_flow.paths", "score_flow.process")):
            assert not [name for name in imports(path) if name.startswith(("flax", "ml_collections"))]


@pytest.mark.parametrize("library", SEAMS)
def test_libraries_stay_behind_their_seams(library):
    users = [p.relative_to(ROOT).as_posix() for p in FILES for name in imports(p) if name.split(".")[0] == library]
    assert not [user for user in users if not user.startswith(SEAMS[library])] if SEAMS[library] else not users


def test_modules_are_made_from_files_and_names_in_few_places():
    """What loads Python by a path, or by a name that is made while it runs, is an arrow that no import shows."""

    def users(*words: str) -> set[str]:
        names = {path: {getattr(n, "attr", getattr(n, "id", "")) for n in ast.walk(tree(path))} for path in FILES}
        return {module(path) for path, found in names.items() if found & set(words)}

    assert users("spec_from_file_location", "exec_module", "run_path", "exec") <= LOADERS
    assert users("import_module", "__import__") <= IMPORTERS


def test_nothing_says_pmap():
    assert not [p for p in FILES if "pmap" in p.read_text().replace("No pmap", "")]
