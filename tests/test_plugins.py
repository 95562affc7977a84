"""CONTRIBUTING.md: one of each kind, written from its text alone, trains, samples and evaluates and passes the tests.

The examples of the text are the files: each is written into a copy of the project, where nothing else changes.
"""

import ast
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from score_flow.config import registries
from score_flow.config.registries import Registry
from score_flow.networks.mlp import MLP
from tests.launch import ROOT, environment


class Block(NamedTuple):
    """An example: the file that it is, or the file and table of which it is a row; the flags that name it."""

    file: str
    table: str
    row: str  # "name": value
    flags: tuple[str, ...]
    code: str

    @property
    def name(self) -> str:
        return ast.literal_eval(self.row.partition(":")[0]) if self.table else Path(self.file).stem


def blocks() -> dict[str, Block]:
    """name -> example, in the order of the text."""
    found = []
    for text in re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL):
        place, *lines = text.split("\n")
        match = re.fullmatch(r"# (\S+\.py)(?:, in (\w+): (.+))?", place)
        flags = list(itertools.takewhile(lambda line: line.startswith("# --"), lines))
        assert match and flags, f"an example begins with its place and its flags, got {place!r}"
        named, code = " ".join(line[2:] for line in flags).split(), "\n".join(lines[len(flags) :])
        found.append(Block(match[1], match[2] or "", match[3] or "", tuple(named), code))
    return {block.name: block for block in found}


BLOCKS = blocks()


def inserted(text: str, block: Block) -> str:
    """The file of a table with one more row, and what the row needs above the table."""
    lines = text.splitlines(keepends=True)
    table = next(
        node for node in ast.parse(text).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and block.table in [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    )  # fmt: skip
    line, column = table.value.lineno - 1, table.value.col_offset + 1
    lines[line] = f"{lines[line][:column]}\n    {block.row},\n{lines[line][column:].lstrip()}"
    above = table.lineno - 1
    return "".join([*lines[:above], block.code + "\n\n" if block.code else "", *lines[above:]])


@pytest.fixture(scope="module", autouse=True)
def compiled_once(cache):
    """The processes of this file share what they compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
        patch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with one more of each; nothing that was there is another."""
    copy = tmp_path_factory.mktemp("contributing") / "project"
    ignore = shutil.ignore_patterns("__pycache__", "golden")
    for folder in ("score_flow", "sampling", "evaluation", "configs", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignore)
    (copy / "tests/golden").symlink_to(ROOT / "tests/golden")
    for name in ("main.py", "pyproject.toml", "CONTRIBUTING.md", "README.md"):
        shutil.copy(ROOT / name, copy)
    before = {p: p.read_text() for p in copy.rglob("*.py")}
    for block in BLOCKS.values():
        file = copy / block.file
        assert file.exists() == bool(block.table), block.file
        file.write_text(inserted(file.read_text(), block) if block.table else block.code)
    yield copy
    tables = {copy / block.file for block in BLOCKS.values() if block.table}
    assert {p for p in before if p.read_text() != before[p]} == tables
    assert {p for p in copy.rglob("*.py") if p not in before} == {copy / b.file for b in BLOCKS.values() if not b.table}


def run(project: Path, *flags: str, expected: int = 0, program: str = "main.py") -> str:
    done = subprocess.run(
        [sys.executable, program, *flags], cwd=project, env=environment(), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == expected, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stderr


def named(*names: str) -> list[str]:
    """The flags of some of the examples."""
    return [flag for name in names for flag in BLOCKS[name].flags]


def result(project: Path, folder: str, job: str) -> dict:
    return json.loads((project / folder / "results.json").read_text())[job]


TRAINING = ("tiny", "cubic", "displacement", "squared", "affine", "by_variance", "stripes", "lines")
QUIET = [
    "--config.training.eval_freq=0",
    "--config.training.snapshot_freq=0",
    "--config.training.snapshot_sampling=False",
]
LOOSE = ["--config.eval.solver.rtol=1e-2", "--config.eval.solver.atol=1e-2"]


PRESETS = {"DEQUANTISERS"}  # rows that are settings of one class


def test_every_registry_has_an_example():
    places = {(block.file if block.table else f"{Path(block.file).parent}/", block.table) for block in BLOCKS.values()}
    for key in {name for name, value in vars(registries).items() if isinstance(value, Registry)} - PRESETS:
        registry = getattr(registries, key)
        assert (registry.place, registry.table) in places, key


@pytest.fixture(scope="module")
def trained(project):
    """A workdir of a path, prediction, law of times, network, weighting, data set and recipe of one's own."""
    refused = run(project, *named(*TRAINING), "--workdir=run", "--mode=train", "--config.path.bend=-1", expected=2)
    assert refused.splitlines()[-1] == "error: config.path.bend is -1.0; it must be at least 0."
    run(project, *named(*TRAINING), *QUIET, "--workdir=run", "--mode=train")
    told = (project / "lines.txt").read_text().splitlines()
    assert told[0] == "run run affine" and told[-1] == "the end" and "step 6 loss grad_norm lr" in told[-2]
    return project


@pytest.mark.slow
def test_one_of_each_is_evaluated(trained):
    """A sampler on a grid, a method with a step control, an extractor, a job."""
    flags = [*named("straight", "cosine", "reversible_heun", "gentle", "projections"), *LOOSE, "--workdir=run"]
    run(trained, *flags, "--mode=stats")
    run(trained, *flags, "--mode=eval", "--config.eval.jobs=('brightness','fid')")
    of = {job: result(trained, "run/eval/6", job) for job in ("samples", "likelihood", "brightness", "fid")}
    assert of["samples"]["network_calls_per_sample"] == 5 and "n_steps=5 grid=cosine" in of["samples"]["sampler"]
    assert of["likelihood"]["solver"].startswith("reversible_heun") and np.isfinite(of["likelihood"]["bits_per_dim"])
    assert of["brightness"]["mean_level"] == 127.5
    assert of["fid"]["features"] == "8 random projections" and of["fid"]["n_reference"] == 32
    assert (trained / "run/report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_a_predictor_and_a_corrector_take_a_control(trained):
    """Two network calls a step, and what is known is kept to the bit: the left columns are black."""
    flags = ["--config.sampling.n_steps=5", "--config.control.method=replacement", "--workdir=run", "--mode=control"]
    run(trained, *named("churned", "margin"), *flags)
    assert result(trained, "run/control/6", "samples")["network_calls_per_sample"] == 10
    with np.load(trained / "run/control/6/samples/samples.npz", allow_pickle=False) as samples:
        assert not samples["image"][:, :, :2].any() and samples["image"][:, :, 2:].any()


@pytest.mark.slow
def test_a_loss_is_trained(project):
    """Of a network that begins with 0: E|noise - x0| of pixels that are -1 or 1, to four standard errors."""
    run(project, *named("tiny", "stripes", "absolute"), *QUIET, "--workdir=absolute", "--mode=train")
    first = json.loads((project / "absolute/metrics.jsonl").read_text().splitlines()[0])
    density, inside = math.exp(-0.5) / math.sqrt(2 * math.pi), math.erf(math.sqrt(0.5))
    mean = 2 * density + inside
    assert abs(first["loss"] - mean) < 4 * math.sqrt((2 - mean**2) / (16 * 64)) + 1 / 256


@pytest.mark.slow
def test_a_classifier_is_trained(project):
    """Stripes of either kind are told apart by a linear map: without noise none is mistaken."""
    flags = [*named("tiny", "stripes", "pooled"), *QUIET, "--config.training.n_iters=100", "--config.optim.lr=1e-2"]
    flags += ["--config.optim.warmup=0", "--config.model.ema_rate=(0.9,)", "--workdir=classifier"]
    run(project, *flags, "--mode=train")
    only = ["--config.eval.enable_sampling=False", "--config.eval.enable_bpd=False", "--config.eval.jobs=('accuracy',)"]
    run(project, *flags, *only, "--mode=eval")
    assert result(project, "classifier/eval/100", "accuracy")["accuracy_by_time"][0] == 1.0


@pytest.mark.slow
def test_published_weights_are_imported(project):
    """Each tensor is where its name says, the matrices transposed; the run that they make draws samples."""
    random = np.random.default_rng(0)
    network = MLP(width=32, depth=1)
    shapes = flatten_dict(
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.zeros(1))["params"], sep="."
    )
    theirs = {
        name.replace("kernel", "weight"): random.normal(size=leaf.shape[::-1]).astype(np.float32)
        for name, leaf in shapes.items()
    }
    save_file(theirs, project / "mlp.safetensors")
    run(project, *named("tiny", "stripes", "torch_mlp"), "--workdir=imported")
    restored = ocp.StandardCheckpointer().restore(project / "imported/checkpoints/0/params")
    for name, leaf in flatten_dict(restored, sep=".").items():
        np.testing.assert_array_equal(leaf, theirs[name.replace("kernel", "weight")].T)
    flags = ["--config.sampling.name=ddim", "--config.sampling.n_steps=2", "--workdir=imported", "--mode=sample"]
    run(project, *flags)
    assert result(project, "imported/samples/0", "samples")["network_calls_per_sample"] == 2


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The same examples in a package of one's own, by which no file of the project is touched."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_lab").mkdir()
    for block in BLOCKS.values():
        with open(folder / "my_lab" / Path(block.file).name, "a") as file:
            if block.table:
                value = block.row.partition(": ")[2]
                module = block.file.removesuffix(".py").replace("/", ".")
                file.write(f"from {module} import *\n{block.code}\n{block.name} = {value}\n")
            else:
                file.write(block.code)
    return folder


def dotted(*names: str) -> list[str]:
    """The flags of some of the examples, as they are named in a package of one's own."""
    flags = []
    for name in names:
        block = BLOCKS[name]
        own = f"my_lab.{Path(block.file).stem}.{name}" if block.table else f"my_lab.{name}"
        flags += [re.sub(rf"(?<=[='])(configs/)?{name}\b(?!\.py)", own, flag) for flag in block.flags]
    return [flag.replace("configs/", "my_lab/") for flag in flags]


@pytest.mark.slow
def test_all_of_them_may_live_in_a_package_of_ones_own(package):
    before = {path: path.read_bytes() for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    program, workdir = str(ROOT / "main.py"), "--workdir=run"
    run(package, *dotted(*TRAINING), *QUIET, workdir, "--mode=train", program=program)
    flags = [*dotted("straight", "cosine", "reversible_heun", "gentle", "projections", "brightness"), *LOOSE, workdir]
    run(package, *flags, "--mode=eval", program=program)
    samples, likelihood = (result(package, "run/eval/6", job) for job in ("samples", "likelihood"))
    assert samples["sampler"].startswith("my_lab.straight") and samples["network_calls_per_sample"] == 5
    assert likelihood["solver"].startswith("my_lab.flow.reversible_heun")
    assert result(package, "run/eval/6", "my_lab.brightness")["mean_level"] == 127.5
    flags = [*dotted("churned", "margin"), "--config.sampling.n_steps=5", workdir]
    run(package, *flags, "--mode=control", program=program)
    assert result(package, "run/control/6", "samples")["network_calls_per_sample"] == 10
    run(package, *dotted("tiny", "stripes", "absolute"), *QUIET, "--workdir=loss", "--mode=train", program=program)
    assert {path: path.read_bytes() for path in before} == before


def own_tests(project: Path, folders: tuple[str, ...], names: tuple[str, ...], marks: str) -> str:
    """The project's own tests of some names, in the copy; returns their count."""
    outer = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", "-m", marks]
    done = subprocess.run(
        [*command, *folders, "-k", " or ".join(names)],
        cwd=project, env=outer, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_the_projects_own_tests_pass_on_some_of_them(project):
    own_tests(project, ("tests/paths",), ("cubic",), "not slow")


@pytest.mark.slow
def test_the_projects_own_tests_pass_on_all_of_them(project):
    """By the commands that the text gives for each kind, and those that look at whole tables."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    commands = [command.split() for command in re.findall(r"`pytest ([^`]+)`", text)]
    whole = {"every_control", "every_plug_in", "registries", "every_weighting", "least_loss"}
    assert {command[-1] for command in commands if "-k" in command} <= {*BLOCKS, *whole}
    folders = {folder for command in commands for folder in command if folder.startswith("tests/")}
    own_tests(project, tuple(sorted(folders)), (*BLOCKS, *whole), "not slow")
