"""A run of a tiny model of three named classes of small colour images, as training leaves one."""

import json
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from main import main
from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.runs.checkpoint import Checkpoints

COUNTS = {"cat": 30, "dog": 10, "owl": 20}
FLAGS = (
    "--config.network.name=mlp", "--config.network.width=8", "--config.network.depth=1",
    "--config.model.class_conditional=True", "--config.training.label_dropout=0.1", "--config.model.ema_rate=0.9",
    "--config.data.source.name=folder", "--config.data.source.image_size=8", "--config.data.levels=256",
    "--config.sampling.name=ddim", "--config.sampling.n_steps=2", "--config.eval.num_samples=40",
    "--config.eval.batch_size=40", "--config.eval.smallest_time=0.01", "--config.eval.solver.method=heun",
    "--config.eval.solver.n_steps=2",
)  # fmt: skip


def draw_data(folder: Path) -> Path:
    """Images in a sub-folder a class, in sets of other colours."""
    random = np.random.default_rng(0)
    for number, (name, count) in enumerate(COUNTS.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 60, (8, 8, 3), np.uint8)
            pixels[..., number] += 150
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def make_run(workdir: Path, data: Path, *flags: str) -> Path:
    """A milestone at step 40, which knows the facts of its data."""
    config = load("configs/digits.py", [*FLAGS, f"--config.data.source.path={data}", *flags])
    run = experiment(config)
    params = jax.device_get(run.init(jax.random.key(1)))
    # The network's last layer begins at 0, where labels would change no sample.
    params = jax.tree.map(lambda leaf: np.random.default_rng(leaf.size).normal(0, 0.1, leaf.shape).astype("f"), params)
    meta = {"config": json.loads(config.to_json()), "weights": {"raw": "raw", "ema": "ema"}, "step": 40}
    milestones = Checkpoints(workdir / "checkpoints")
    milestones.save(40, {"params": params, "ema": [params]}, meta | {"data": run.data_facts}, wait=True)
    milestones.close()
    (workdir / "config.json").write_text(config.to_json())
    return workdir


def do(workdir: Path, mode: str, *flags: str, folder: str = "") -> int:
    """The exit code of a mode, with settings of config.eval ("labels=cat") and of others (".seed=2")."""
    given = [f"--config{flag if flag.startswith('.') else f'.eval.{flag}'}" for flag in flags]
    return main([f"--workdir={workdir}", f"--mode={mode}", f"--eval_folder={folder}", *given])


def result(workdir: Path, folder: str, job: str) -> dict:
    """What a job left."""
    return json.loads((workdir / folder / "40" / job / "result.json").read_text())
