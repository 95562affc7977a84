"""Guidance from the command line: in snapshots, samples and trajectories, kept with the run, its mistakes refused."""

import json

import numpy as np
import pytest

from main import EXIT_USER_ERROR, main
from sampling.guided import ClassifierFree
from tests.launch import TINY

FLAGS = (
    *(flag for flag in TINY if "snapshot_sampling" not in flag and ".n_iters" not in flag),
    *("--config.training.n_iters=8", "--config.eval.num_samples=16", "--config.eval.batch_size=16"),
    *("--config.sampling.name=ddim", "--config.sampling.n_steps=4"),
)
LABELS = ("--config.model.class_conditional=True", "--config.training.label_dropout=0.2")


def run(workdir, mode, *flags):
    return main([*FLAGS, f"--workdir={workdir}", f"--mode={mode}", *flags])


@pytest.mark.slow
def test_guided_samples_from_the_command_line(tmp_path, capsys, monkeypatch):
    """Training with snapshots, samples and trajectories; the folder keeps the settings and refuses others."""
    guided = (*LABELS, "--config.guidance.scale=2", "--config.guidance.threshold=dynamic")
    scales, estimate = [], ClassifierFree.estimate
    monkeypatch.setattr(
        ClassifierFree, "estimate", lambda self, x, t: scales.append(self.guidance.scale) or estimate(self, x, t)
    )
    trajectory = ("--config.eval.enable_sampling=False", "--config.eval.enable_loss=False",
                  "--config.eval.enable_bpd=False", "--config.eval.jobs=('trajectory',)")  # fmt: skip
    monkeypatch.setattr("evaluation.jobs.trajectory.flow", lambda denoiser, x, *_: (x, None))  # seconds of compilation
    for mode, flags in (("train", ()), ("sample", ()), ("eval", trajectory)):
        scales.clear()
        assert run(tmp_path, mode, *guided, *flags) == 0
        assert scales and set(scales) == {2.0}, f"{mode} draws without guidance"
    folder = tmp_path / "samples" / "8"
    with np.load(folder / "samples" / "samples.npz", allow_pickle=False) as arrays:
        assert arrays["image"].shape == (16, 8, 8, 1)
        np.testing.assert_array_equal(arrays["label"], np.arange(16) % 10)
    guidance = json.loads((folder / "samples" / "result.json").read_text())["key"]["guidance"]
    assert guidance["scale"] == 2.0 and guidance["threshold"] == "dynamic"
    capsys.readouterr()
    assert run(tmp_path, "sample", *LABELS) == EXIT_USER_ERROR
    assert "guidance.scale is 2.0 there and 1.0 here" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["train", "sample"])
@pytest.mark.parametrize("flags, words", [
    (("--config.guidance.scale=2",), "config.guidance.scale is 2.0, but the model knows no null class"),
    ((LABELS[0], "--config.guidance.scale=2"), "label_dropout"),
    (("--config.guidance.threshold=dynamc",), "Did you mean 'dynamic'?"),
    (("--config.guidance.interval=(0.8,0.1)",), "config.guidance.interval is (0.8, 0.1)"),
])  # fmt: skip
def test_mistakes_in_a_config_are_one_line(tmp_path, capsys, mode, flags, words):
    assert run(tmp_path, mode, *flags) == EXIT_USER_ERROR
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1 and words in lines[0]
