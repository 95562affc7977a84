"""One new file each for a path, a network, a loss, a sampler, a job and a data set, in a copy of the project."""

import json
import shutil
import subprocess
import sys

import numpy as np

from tests.launch import ROOT, TINY, environment

FILES = {
    "score_flow/paths/cubic.py": '''
import dataclasses
from score_flow.config.hints import Positive
from score_flow.paths.base import Path

@dataclasses.dataclass(frozen=True)
class Cubic(Path):
    """x_t = (1 - t^power) x0 + t noise."""
    power: Positive = 3.0

    def alpha(self, t):
        return (1 - t) * (1 + t + t**2) if self.power == 3.0 else 1 - t**self.power

    def sigma(self, t):
        return 1.0 * t

build = Cubic
''',
    "score_flow/networks/affine.py": '''
import flax.linen as nn

class Affine(nn.Module):
    """One dense layer."""
    num_classes: int = 0
    width: int = 8

    @nn.compact
    def __call__(self, x, time, condition=None, *, deterministic=True):
        h = nn.Dense(self.width)(x.reshape(x.shape[0], -1)) + nn.Dense(self.width)(time[:, None])
        return nn.Dense(x[0].size)(nn.swish(h)).reshape(x.shape)

build = Affine
''',
    "score_flow/losses/absolute.py": '''
from typing import ClassVar
import flax.struct
import jax.numpy as jnp
from score_flow.model import Model
from score_flow.numerics import mean_flat
from score_flow.losses.base import Noising, initial, noising_of
from score_flow.process.prediction import Estimate
from score_flow.tree import static

@flax.struct.dataclass
class Absolute:
    """E_t of the mean absolute error of the network's output."""
    model: Model = static()
    noising: Noising = static()
    produces: ClassVar[str] = "denoiser"
    times = property(lambda self: self.noising.times)
    network = property(lambda self: self.model.network)

    def init(self, key, batch):
        return initial(self.model, self.noising.prepare, key, batch)

    def __call__(self, params, time_state, key, batch, *, train=True):
        return self.noising.mean(self.at, params, time_state, key, batch, train=train)

    def at(self, params, x0, noise, t, condition=None, *, key=None):
        path = self.model.path
        output = self.model.apply(params, path.perturb(x0, noise, t), t, condition, key=key)
        return mean_flat(jnp.abs(output - self.model.prediction.target(Estimate(x0, noise), path.at(t).expand(x0))))

def build(model, times, prepare, num_classes, options):
    return Absolute(model, noising_of(options, times, prepare, num_classes))
''',
    "sampling/one_jump.py": '''
import jax.numpy as jnp
from sampling.base import Samples, finite

def build(t_max: float = 1.0):
    """E[x0 | x_1] in one call."""
    def sample(keys, denoiser, shape):
        x = denoiser.x0(denoiser.path.prior_sample(keys, shape, t_max), jnp.asarray(t_max))
        return Samples(x, jnp.asarray(1), finite(x))
    return sample
''',
    "evaluation/brightness.py": '''
from evaluation.jobs.base import Job
from evaluation.jobs.rounds import per_image

def build(context, opened):
    """Mean level of the split."""
    def levels(params, batch, seeds):
        return {"level": batch["image"].astype(float).mean(axis=(1, 2, 3))}, None

    return per_image(context, levels, lambda state: {"mean_level": state["level"].mean()} | context.about())

job = Job(build, needs=frozenset({"split", "pixels"}))
''',
    "score_flow/data/stripes.py": '''
import numpy as np
from score_flow.data.base import ArraySource

def build(split: str = "train", n: int = 64, size: int = 6):
    """Horizontal or vertical stripes."""
    image = np.zeros((n, size, size, 1), np.uint8)
    image[::2, ::2], image[1::2, :, ::2] = 255, 255
    return ArraySource(f"stripes/{split}", image)
''',
}


def test_each_is_one_file(tmp_path):
    copy = tmp_path / "project"
    ignore = shutil.ignore_patterns("__pycache__", "golden", ".venv", "runs", ".git")
    for folder in ("score_flow", "sampling", "evaluation", "configs"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignore)
    shutil.copy(ROOT / "main.py", copy)
    before = {p: p.read_bytes() for p in copy.rglob("*.py")}
    for name, text in FILES.items():
        (copy / name).write_text(text)
    base = [flag for flag in TINY if ".network." not in flag and ".n_iters" not in flag]
    flags = [
        *base,
        "--config.path.name=cubic",
        "--config.path.power=3.0",
        "--config.network.name=affine",
        "--config.network.width=16",
        "--config.training.objective=absolute",
        "--config.sampling.name=one_jump",
        "--config.data.source.name=stripes",
        "--config.data.source.size=4",
        "--config.training.n_iters=6",
        "--config.eval.jobs=('brightness',)",
        "--config.eval.num_samples=8",
        "--config.eval.batch_size=16",
        "--config.eval.solver.rtol=1e-2",
        "--config.eval.solver.atol=1e-2",
        "--workdir=run",
    ]

    def run(*more: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "main.py", *flags, *more],
            cwd=copy, env=environment(), capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    refused = run("--mode=train", "--config.path.power=-1")
    assert (refused.returncode, refused.stderr.splitlines()[-1]) == (
        2, "error: config.path.power is -1.0; it must be above 0."
    )  # fmt: skip
    for mode in ("train", "eval"):
        done = run(f"--mode={mode}")
        assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((copy / "run/eval/6/results.json").read_text())
    assert results["brightness"]["mean_level"] == 127.5
    assert results["samples"]["network_calls_per_sample"] == 1
    assert np.isfinite(results["likelihood"]["bits_per_dim"])
    assert (copy / "run/report.html").stat().st_size > 10_000
    assert {p: p.read_bytes() for p in before} == before
