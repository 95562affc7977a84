"""Installed, and used outside the checkout: the command, the library, plug-ins of a package of one's own."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import score_flow
from score_flow.config.loading import recipes
from tests.launch import ROOT

LAB = {
    "cubic": """
import dataclasses
from score_flow.config.hints import Positive
from score_flow.paths.base import Path

@dataclasses.dataclass(frozen=True)
class Cubic(Path):
    \"\"\"x_t = (1 - t^power) x0 + t noise.\"\"\"
    power: Positive = 3.0

    def alpha(self, t):
        return 1 - t**self.power

    def sigma(self, t):
        return 1.0 * t

build = Cubic
""",
    "affine": """
import flax.linen as nn

class Affine(nn.Module):
    \"\"\"One dense layer.\"\"\"
    num_classes: int = 0
    width: int = 8

    @nn.compact
    def __call__(self, x, time, condition=None, *, deterministic=True):
        h = nn.Dense(self.width)(x.reshape(x.shape[0], -1)) + nn.Dense(self.width)(time[:, None])
        return nn.Dense(x[0].size)(nn.swish(h)).reshape(x.shape)

build = Affine
""",
    "straight": """
from score_flow.process.transition import Gaussian

def predictor():
    \"\"\"Euler's step of the probability flow.\"\"\"
    def kernel(denoiser, x, s, t):
        return Gaussian(x + (s - t) * denoiser.velocity(x, t), 0.0 * t)
    return kernel
""",
    "brightness": """
from evaluation.jobs.base import Job
from evaluation.jobs.rounds import per_image

def build(context, opened):
    \"\"\"Mean level of the split.\"\"\"
    def levels(params, batch, seeds):
        return {"level": batch["image"].astype(float).mean(axis=(1, 2, 3))}, None

    return per_image(context, levels, lambda state: {"mean_level": state["level"].mean()} | context.about())

job = Job(build, needs=frozenset({"split", "pixels"}))
""",
}
FLAGS = [
    "--config.path.name=my_lab.cubic",
    "--config.path.power=2",
    "--config.network.name=my_lab.affine",
    "--config.network.width=16",
    "--config.training.batch_size=16",
    "--config.training.n_iters=4",
    "--config.training.snapshot_sampling=False",
    "--config.sampling.name=predictor_corrector",
    "--config.sampling.predictor=my_lab.straight",
    "--config.sampling.n_steps=4",
    "--config.eval.enable_loss=False",
    "--config.eval.enable_bpd=False",
    "--config.eval.jobs=('my_lab.brightness',)",
    "--config.eval.num_samples=4",
]


class Installed:
    """A virtual environment with this project in it, and a folder elsewhere to work in."""

    def __init__(self, folder: Path):
        self.bin, self.home = folder / "venv/bin", folder / "home"
        self.home.mkdir()

    def run(self, *command: str, expected: int = 0) -> str:
        """Run a command of the environment there; returns what it prints."""
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
        program, *arguments = command
        done = subprocess.run(
            [self.bin / program, *arguments], cwd=self.home, env=environment | {"JAX_PLATFORMS": "cpu"},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == expected, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout + done.stderr


def source(folder: Path) -> Path:
    """What pip builds from: in the checkout it would leave a build/ behind."""
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("score_flow", "sampling", "evaluation", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("pyproject.toml", "requirements.txt", "README.md", "main.py"):
        shutil.copy(ROOT / name, folder)
    return folder


def lab(home: Path) -> None:
    """A package of one's own in the folder that one works in."""
    (home / "my_lab").mkdir()
    for name, text in LAB.items():
        (home / "my_lab" / f"{name}.py").write_text(text)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Dependencies are those of the environment that runs the tests; nothing is downloaded."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    found = Installed(folder)
    [packages] = (folder / "venv").glob("lib/python3*/site-packages")
    (packages / "dependencies.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})")
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
    found.run("python", "-m", "pip", "install", *options, str(source(folder / "source")))
    lab(found.home)
    return found


def test_what_is_installed_is_the_program_with_its_recipes(installed):
    code = """
import importlib.metadata, json, sys
import score_flow
heavy = [name for name in ("jax", "numpy") if name in sys.modules]
from score_flow.config.loading import recipes
about = importlib.metadata.metadata("score-flow")
found = [score_flow.__file__, score_flow.__version__, about["Version"], about["License-Expression"], heavy, recipes()]
print(json.dumps(found))
"""
    file, version, declared, licence, heavy, found = json.loads(installed.run("python", "-c", code))
    assert Path(file).is_relative_to(installed.bin.parent) and version == declared == score_flow.__version__
    assert licence == "Apache-2.0" and heavy == [] and found == recipes()


@pytest.mark.slow
def test_the_command_trains_and_evaluates_with_a_package_of_one_s_own(installed):
    command = ("score-flow", "--workdir=runs/x", "--config=configs/digits.py", *FLAGS)
    said = installed.run(*command, "--mode=train", "--config.path.name=my_lab.cubik", expected=2)
    assert "my_lab has no module cubik, but: affine, brightness, cubic, straight. Did you mean 'cubic'?" in said
    assert "Traceback" not in said and not (installed.home / "runs").exists()
    installed.run(*command, "--mode=train")
    config = json.loads((installed.home / "runs/x/config.json").read_text())
    assert config["path"] == {"name": "my_lab.cubic", "power": 2.0}
    installed.run("score-flow", "--workdir=runs/x", "--mode=eval")  # by the config that the run left
    results = json.loads((installed.home / "runs/x/eval/4/results.json").read_text())
    assert results["my_lab.brightness"]["mean_level"] > 0
    assert results["samples"]["network_calls_per_sample"] == 4


@pytest.mark.slow
def test_the_lines_of_the_readme_run_there(installed):
    """On the run of the test before, whose network is small."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("n_steps=18", "n_steps=2")
    assert "score_flow" in lines
    installed.run("python", "-c", f"{lines}\nimport numpy as np\nnp.save('images', sf.open('runs/x').sample(4))")
    found = np.load(installed.home / "runs/x/eval/4/samples/samples.npz")["image"]
    assert np.abs(np.load(installed.home / "images.npy").astype(int) - found).max() <= 1


@pytest.mark.slow
def test_a_fresh_environment_with_all_that_is_needed(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    fresh = Installed(tmp_path)
    fresh.run("python", "-m", "pip", "install", "--quiet", str(source(tmp_path / "source")))
    lab(fresh.home)
    command = ("score-flow", "--workdir=runs/x", "--config=configs/digits.py", *FLAGS)
    fresh.run(*command, "--mode=train")
    fresh.run(*command, "--mode=sample")
    assert list(fresh.home.glob("runs/x/samples/4/samples/samples.npz"))
