"""Every command and every Python block of the README and the guides runs, and what they name is there.

A command runs as it is written, in a folder of stand-ins, with a small network, few steps and a coarse solver put
behind it. A PATH that has a stand-in is read; one that has none (published files, Inception weights) must be what the
command is refused for. Runs that another page makes (`make demo`, `make gallery`) are small ones of the same recipes.
"""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.modes.checking import check_components
from main import main
from score_flow.config import registries
from score_flow.config.loading import load
from score_flow.errors import UserError
from tests.data import writers
from tests.launch import ROOT, environment, finish, places

README = ROOT / "README.md"
GUIDES = sorted((ROOT / "docs/guide").glob("*.md"))
PAGES = [README, *GUIDES]
CHECKED = [*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md"))]
PROGRAM = "python main.py "

# Put behind a command, so that it takes seconds: by what it says, for training (TRAINED) or for what reads a run. What
# is trained on images of the user's own has the quickest network.
NETWORKS = {
    "configs/digits_classifier.py": ("blocks_per_group=1",),
    "configs/": ("name=mlp", "width=8", "depth=1"),
}
TRAINED = (
    "--config.training.batch_size=8",
    "--config.training.n_iters=4",
    "--config.training.n_jitted_steps=1",
    "--config.training.eval_freq=0",
    "--config.training.snapshot_sampling=False",
    "--config.eval.solver.rtol=1e-1",
    "--config.eval.solver.atol=1e-1",
    "--config.eval.num_samples=8",
    "--config.eval.batch_size=152",
)
JUDGED = (
    "--config.eval.num_samples=8",
    "--config.sampling.n_steps=2",
    "--config.eval.bound_times=2",
    "--config.eval.solver.rtol=1e-1",
    "--config.eval.solver.atol=1e-1",
)


CODED = ("--config.eval.vlb_steps=2", "--config.eval.num_images=4")  # bits are pushed one by one


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def lines(page: Path, language: str = "bash") -> list[str]:
    """The lines of the blocks of a language."""
    return [line for kind, text in blocks(page) if kind == language for line in text.splitlines()]


def small(line: str) -> list[str]:
    """The flags of a command of a page, and those that make it quick."""
    given = shlex.split(line.removeprefix(PROGRAM))
    if "--mode=train_deq" in given:
        return [*given, "--config.deq.n_iters=2", "--config.dequantizer.width=8", "--config.dequantizer.blocks=0"]
    if not {"--mode=train", "--mode=plan"} & {*given}:
        quick = [*(JUDGED if {"--mode=eval", "--mode=sample", "--mode=control"} & {*given} else ())]
        return [*given, *quick, *(CODED if "'code'" in line else ())]
    recipe = next((flag.split("=")[1] for flag in given if flag.startswith("--config=")), "configs/digits.py")
    named = "configs/" if any(flag.startswith("--config.data.source.") for flag in given) else recipe
    network = next(flags for start, flags in NETWORKS.items() if named.startswith(start))
    return [*given, *TRAINED, *(f"--config.network.{flag}" for flag in network)]


def missing(line: str) -> list[str]:
    """What a command reads that has no stand-in: files of PATH, and the run of a mode that does not begin one."""
    given = dict(flag.split("=", 1) for flag in shlex.split(line.removeprefix(PROGRAM)))
    begins, read = given["--mode"] in ("train", "import", "encode", "pack", "plan"), dict(given)
    workdir = read.pop("--workdir", "")
    files = [file for value in read.values() for file in re.findall(r"PATH/[\w./-]+", value)]
    return [name for name in [*files, *([] if begins else [workdir])] if not Path(name).exists()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder to work in: recipes and stand-ins of PATH."""
    folder, rng = tmp_path_factory.mktemp("docs"), np.random.default_rng(0)
    (folder / "configs").symlink_to(ROOT / "configs")
    for i in range(20):
        file = folder / f"PATH/images/{('cat', 'dog')[i % 2]}/{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (70, 66 + i, 3), np.uint8)).save(file)
    np.savez(folder / "PATH/images.npz", image=rng.integers(0, 256, (20, 8, 8), np.uint8), label=np.arange(20) % 3)
    packed = {f"cifar-10-batches-py/{name}": content for name, content in writers.cifar10()[0].items()}
    (folder / "PATH/cifar-10-python.tar.gz").write_bytes(writers.tar_of(packed))
    for name in ("image", "mask"):
        Image.fromarray(255 * rng.integers(0, 2, (8, 8), np.uint8)).save(folder / f"PATH/{name}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def digits(place):
    """A small run in the place of that of make demo."""
    assert main(small(f"{PROGRAM}--config=configs/digits.py --workdir=runs/digits --mode=train")) == 0


@pytest.fixture(scope="module")
def gallery(place):
    """A small run in the place of that of make gallery."""
    flags = "--config=configs/digits_conditional.py --workdir=runs/gallery"
    assert main(small(f"{PROGRAM}{flags} --mode=train")) == 0
    others = [f"--config.eval.enable_{job}=False" for job in ("loss", "bpd", "sampling")]
    assert main(["--workdir=runs/gallery", "--mode=eval", *others, "--config.eval.jobs=('trajectory',)"]) == 0


# These run with the slow tests; the quick ones read their flags.
LONG = {"combine", "data", "evaluation", "flow_maps", "guidance", "machines", "python"}
RUN = [pytest.param(p, marks=[pytest.mark.slow] * (p.stem in LONG), id=p.stem) for p in PAGES if blocks(p)]


@pytest.mark.parametrize("page", RUN)
def test_a_page_from_top_to_bottom(page, place, request, capsys):
    """Every command in turn, and every Python block, in one session; a block that begins with a file's name is it."""
    for made in ("digits", "gallery"):
        if any(f"runs/{made}" in text for _, text in blocks(page)):
            request.getfixturevalue(made)
    session = {}
    for kind, text in blocks(page):
        if kind == "bash":
            for line in text.splitlines():
                command(line, capsys)
        elif kind == "python" and (named := re.match(r"# ([\w/]+\.py)\n", text)):
            (place / named[1]).parent.mkdir(exist_ok=True)
            (place / named[1]).write_text(text)
        elif kind == "python":
            python(text, page.name, session)


def command(line, capsys):
    """Run it, or see it refused for what it lacks."""
    if line.startswith("make "):
        return
    assert line.startswith(PROGRAM), f"a line that no test knows how to run: {line}"
    lacking, code = missing(line), main(small(line))
    said = capsys.readouterr().err
    assert code == (2 if lacking else 0), f"{line}\n{said}"
    # Or for what the command before it, which was refused too, would have left.
    named = not lacking or any(name in said for name in [*lacking, "--mode=stats"])
    assert named, f"{line}\nlacks {lacking}, but: {said}"


def python(text, name, session):
    """Run it, or see it refused for what it lacks."""
    lacking = [file for file in re.findall(r"PATH/[\w./-]+", text) if not Path(file).exists()]
    code = compile(text, name, "exec")
    if not lacking:
        exec(code, session)
        return
    with pytest.raises(UserError) as refused:
        exec(code, session)
    assert any(file in str(refused.value) for file in lacking)


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem in LONG], ids=lambda page: page.stem)
def test_flags(page):
    """The recipes, keys and values of a page are such; a run in whose place none is given is one of the digits."""
    for line in (line for line in lines(page) if line.startswith(PROGRAM)):
        given = shlex.split(line.removeprefix(PROGRAM))
        recipe = dict(flag.split("=", 1) for flag in given).get("--config", "configs/digits_conditional.py")
        flags = [flag for flag in given if flag.startswith("--config.") and "=my_lab." not in flag]
        assert check_components(load(str(ROOT / recipe), flags))


def test_commands_in_the_text(capsys):
    """`python -c` runs; `python -m` names a module and flags that it has."""
    text = "\n".join(page.read_text() for page in PAGES)
    for code in re.findall(r"`python -c \"(.*?)\"`", text):
        exec(code, {})
    assert "Device" in capsys.readouterr().out
    named = set(re.findall(r"`python -m ([\w.]+)(.*?)`", text, re.DOTALL))
    known = (ROOT / "benchmarks/measure.py").read_text()
    for module, flags in named:
        assert (ROOT / f"{module.replace('.', '/')}.py").exists()
        assert all(f'"{flag}"' in known for flag in re.findall(r"--\w+", flags))
    assert named


LOOP, *TOGETHER = sorted(lines(ROOT / "docs/guide/machines.md", "sh"), key=lambda line: not line.startswith("until"))


def test_the_loop_of_a_job_script(tmp_path):
    """It starts the command again after a stop that saved, a loss and a kill, and after nothing else."""
    program, starts = tmp_path / "python", tmp_path / "starts"
    for codes, n in (((75, 76, 137, 75, 0), 5), ((75, 2), 2)):
        starts.write_text("")
        program.write_text(
            f"#!/bin/bash\necho >> {starts}\ncodes=({' '.join(map(str, codes))})\n"
            f"exit ${{codes[$(wc -l < {starts}) - 1]}}\n"
        )
        program.chmod(0o755)
        subprocess.run(["bash", "-c", LOOP], env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=False, timeout=60)
        assert len(starts.read_text().splitlines()) == n


@pytest.mark.slow
def test_commands_of_two_processes(place):
    """Both, at another port."""
    started = []
    for line, where in zip(TOGETHER, places(len(TOGETHER)), strict=True):
        variables, command = line.split(PROGRAM)
        assert dict(word.split("=") for word in variables.split()).keys() == where.keys()
        program = [sys.executable, str(ROOT / "main.py"), *small(command)]
        started.append(subprocess.Popen(program, env=environment(**where), stdout=subprocess.PIPE, text=True))
    for process in started:
        finish(process)
    assert len(started) == 2 and list(Path("runs/two/checkpoints").glob("*.manifest.json"))


def test_the_readme_is_a_door():
    assert len(README.read_text().splitlines()) <= 110
    linked = re.findall(r"\]\((docs/guide/\w+\.md)\)", README.read_text())
    assert {ROOT / link for link in linked} == set(GUIDES)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", CHECKED, ids=lambda page: page.stem)
def test_links_and_names_of_files(page):
    """Relative links lead to a file and a heading; `configs/...` and the like, in any page, are there."""
    text = page.read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("https:"):
            continue
        file, _, heading = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not heading or heading in anchors(target), link
    rooms = "|".join(file.name for file in ROOT.iterdir() if file.is_dir() and not file.name.startswith("."))
    for name in re.findall(rf"`((?:{rooms})/[\w./-]*)`", text):
        if not name.startswith("runs/") and Path(name).stem not in ("x", "NAME"):
            assert (ROOT / name).exists(), name


def test_what_can_be_combined_is_named():
    """Every plug-in and row that a config can name stands in the guide; a project's files are told by their content."""
    named = set(re.findall(r"`(\w+)`", (ROOT / "docs/guide/combine.md").read_text()))
    kinds = {name: kind for name, kind in vars(registries).items() if isinstance(kind, registries.Registry)}
    assert len(kinds) > 15
    for name in set(kinds) - {"PROJECTS"}:
        assert set(kinds[name].names()) <= named, name


def test_modules_that_moved():
    """Those of the changelog were at one place and are at the other."""
    rows = re.findall(r"^\| (.*) \| (.*) \|$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    cells = [[re.findall(r"`([\w.]+)`", cell) for cell in row] for row in rows]
    found = [pair for row in cells for pair in zip(*row, strict=True)]
    assert len(found) > 50
    for old, new in found:
        assert stands(new), new
        assert not stands(old) or stands(old).is_dir(), old


def stands(name: str) -> Path | None:
    """Where a module, a package, or what a module has stands; None where it does not."""
    path = ROOT / name.replace(".", "/")
    if path.is_dir() or path.with_suffix(".py").exists():
        return path if path.is_dir() else path.with_suffix(".py")
    module, bound = path.parent.with_suffix(".py"), rf"^(?:def|class) {path.name}\b|^{path.name}\b.*="
    return module if module.exists() and re.search(bound, module.read_text(), re.MULTILINE) else None


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"(?:^|`)make ([\w-]+)", page.read_text(), re.MULTILINE)}
    assert {"demo", "test", "gallery"} <= named <= targets


def test_extras():
    """The README installs by extras of ours, which are extras that the installed jax has."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r'`pip install "\.\[(\w+)\]"`', README.read_text())
    assert set(named) == {"cuda12", "cuda13", "tpu"} <= set(metadata("jax").get_all("Provides-Extra"))
    assert all(extras[name] == [f"jax[{name}]"] for name in named)


def test_the_oldest_tested_versions_are_the_lower_bounds():
    bounds = dict(re.findall(r"^([\w-]+)>=([\d.]+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    text = (ROOT / "docs/guide/machines.md").read_text()
    (oldest,) = re.findall(r"Python 3\.11 \((.*?): the lower bounds", text)
    named = dict(package.split() for package in oldest.split(", "))
    assert {"jax", "flax", "numpy"} <= set(named) and named.items() <= bounds.items()
