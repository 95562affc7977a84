"""Published rows as presets: each is whole and says what it is; the mode passes and fails as it must."""

import ast
import json

import jax
import numpy as np
import pytest

from evaluation.jobs.base import asked
from evaluation.modes.reproduce import compared, expected_of, presets
from main import EXIT_NOT_REPRODUCED, EXIT_USER_ERROR, main
from sampling.building import build_sampler
from score_flow.build import experiment
from score_flow.config import registries
from score_flow.config.loading import ROOT, load
from score_flow.runs.checkpoint import Checkpoints
from tests.launch import TINY

PRESETS = [f"configs/reproduce/{name}.py" for name in presets()]


@pytest.mark.parametrize("file", PRESETS)
def test_a_preset_is_whole(file):
    """It loads, checks and builds; runs the jobs whose figures it expects, no other; its first line has each figure."""
    config, expected = load(file, []), expected_of(file)
    build_sampler(config)
    assert {figure.split(".")[0] for figure in expected} == set(asked(config.eval)) <= set(registries.JOBS.names())
    assert config.eval.begin_ckpt == config.eval.end_ckpt == 0
    text = ast.get_docstring(ast.parse((ROOT / file).read_text()))
    head, places = text.splitlines()[0], {"likelihood.bits_per_dim": 2, "vlb.bits_per_dim": 2, "fid.fid": 2}
    for figure, (value, tolerance) in expected.items():
        assert f"{value:.{places.get(figure, 2)}f}" in head
        assert 0 < tolerance < 0.06 * value
    assert "\nSource " in text and "\nWeights " in text


def test_the_rows_are_many():
    """score_sde's table has nine figures of FID, six by the flow, six of bits/dim; SiT's four; the others have one."""
    sit = [file for file in PRESETS if "/sit_" in file]
    kinds = [file.removesuffix(".py").rpartition("_")[2] for file in PRESETS if file not in sit]
    flow = sum(file.endswith("_ode_fid.py") for file in PRESETS if file not in sit)
    assert (kinds.count("fid") - flow, flow) == (9, 6) and len(sit) == 4
    assert sum(file.endswith("_bpd.py") and "score_flow" not in file for file in PRESETS) == 6
    assert all(any(word in file for file in PRESETS) for word in ("score_flow", "iddpm", "digits"))


def test_verdicts():
    results = {"a": {"x": 1.04, "y": float("nan")}, "step": 3}
    got = compared({"a.x": (1.0, 0.05), "a.y": (1.0, 9.0), "a.z": (0.0, 9.0)}, results)
    assert [row["pass"] for row in got.values()] == [True, False, False]
    assert got["a.z"]["got"] is None
    assert not compared({"a.x": (1.0, 0.03)}, results)["a.x"]["pass"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A milestone of a tiny model of the digits whose weights are all zero."""
    workdir = tmp_path_factory.mktemp("trained")
    config = load("configs/digits.py", TINY[1:])
    shapes = jax.eval_shape(experiment(config).init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    milestones, settings = Checkpoints(workdir / "checkpoints"), config.to_json()
    meta = {"config": json.loads(settings), "weights": {"raw": "raw", "ema": "ema"}}
    milestones.save(40, {"params": params, "ema": [params] * 2}, meta, wait=True)
    milestones.close()
    (workdir / "config.json").write_text(settings)
    return workdir


def preset(folder, loss, tolerance=0.2):
    """A preset that expects this loss of the tiny model."""
    lines = [f"    config.{flag.removeprefix('--config.')}" for flag in TINY[2:]]
    text = f"""from configs.base import component
from configs.reproduce.rows import evaluated

def tiny(config):
    config.network = component("mlp")
    with config.network.unlocked():
{chr(10).join("    " + line for line in lines if ".network." in line)}
{chr(10).join(line for line in lines if ".network." not in line)}
    config.eval.enable_loss = True

get_config = evaluated("digits", tiny)
expected = {{"loss.loss": ({loss}, {tolerance})}}
"""
    file = folder / "tiny.py"
    file.write_text(text)
    return file


def reproduce(workdir, file):
    return main([f"--config={file}", f"--workdir={workdir}", "--mode=reproduce", "--config.eval.batch_size=297"])


def test_pass_and_fail(trained, tmp_path, capsys):
    """Velocity 0 for all: the loss is the mean of (noise - x0)^2, 1 + E x0^2 = 1.6; one preset says so, another not."""
    assert reproduce(trained, preset(tmp_path, 0.1)) == EXIT_NOT_REPRODUCED
    assert "fail: loss.loss expected 0.1 +- 0.2, got " in capsys.readouterr().out
    verdict = json.loads((trained / "reproduce" / "tiny" / "reproduce.json").read_text())
    got = verdict["figures"]["loss.loss"]["got"]
    assert not verdict["pass"] and verdict["figures"]["loss.loss"]["expected"] == 0.1 and 1.4 < got < 1.8
    assert verdict["eval"]["batch_size"] == 297 and verdict["seed"] == 0
    # What is done is not done again: only the verdict is another.
    assert reproduce(trained, preset(tmp_path, got + 0.1)) == 0
    printed = capsys.readouterr()
    assert "pass: loss.loss" in printed.out and "round/s" not in printed.err
    assert json.loads((trained / "reproduce" / "tiny" / "reproduce.json").read_text())["pass"]


@pytest.mark.parametrize("config", ["configs/digits.py", ""])
def test_a_recipe_expects_nothing(config, trained, capsys):
    flags = [f"--config={config}"] if config else []
    assert main([*flags, f"--workdir={trained}", "--mode=reproduce"]) == EXIT_USER_ERROR
    assert "needs a preset" in (message := capsys.readouterr().err) and "digits" in message


def test_a_figure_of_a_job_that_is_not_run(trained, tmp_path, capsys):
    file = preset(tmp_path, 1.0)
    file.write_text(file.read_text().replace("loss.loss", "vlb.bits_per_dim"))
    assert reproduce(trained, file) == EXIT_USER_ERROR
    assert "the job vlb, which the config does not run" in capsys.readouterr().err
