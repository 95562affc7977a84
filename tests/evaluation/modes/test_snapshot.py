"""Sheets of samples while a run trains: few calls, a bar, and gone within a chunk after a signal."""

import os
import signal
import time

import jax
import numpy as np
import pytest
from PIL import Image

from evaluation.context import build_guide
from evaluation.drawing import drawer
from evaluation.modes import snapshot
from evaluation.modes.snapshot import CHUNK, N_STEPS, N, cheap_sampler, sheet
from score_flow.build import experiment
from score_flow.config.components import Component
from score_flow.config.loading import load
from score_flow.runs.preemption import Preemption
from score_flow.runs.sharding import replicated
from tests.launch import TINY

FLAGS = [flag for flag in TINY if not flag.startswith("--config=")]


@pytest.fixture(scope="module")
def model():
    config = load("configs/digits.py", FLAGS)
    run = experiment(config)
    return run, jax.device_put(run.init(jax.random.key(0)), replicated(run.mesh)), build_guide(run, config)


@pytest.mark.parametrize(
    "sampling", [Component("ode", {"rtol": 1e-9}), Component("sde", {"n_steps": 4000, "t_max": 0.9})]
)
def test_sixteen_samples_of_few_calls(model, tmp_path, capfd, sampling):
    """Whatever the configured sampler costs."""
    run, params, guide = model
    sampler = cheap_sampler(sampling)
    _, calls, ok = drawer(run, sampler)(params, guide, None, np.arange(8))
    assert (calls == N_STEPS).all() and ok.all()
    sheet(run, sampler, guide, tmp_path)(7, params)
    with Image.open(tmp_path / "00000007.png") as picture:
        zoom = picture.width // (4 * 9 - 1)
        assert picture.size == (zoom * 35, zoom * 35)  # four by four digits of eight pixels, with lines between
    assert "sheet of step 7: 100%" in capfd.readouterr().err and N == 16


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once(model, tmp_path, monkeypatch, number):
    """Between two chunks: no sheet is written, and training around it sees the signal."""
    run, params, guide = model
    drawn = []

    def slow(*arguments, **named):
        def draw(params, guide, control, indices):
            drawn.append(indices)
            os.kill(os.getpid(), number)
            return {"image": np.zeros((len(indices), 8, 8, 1), np.uint8)}, None, None

        return draw

    monkeypatch.setattr(snapshot, "drawer", slow)
    with Preemption() as training:
        began = time.monotonic()
        sheet(run, cheap_sampler(Component("ode")), guide, tmp_path)(7, params)
        assert training.signalled and len(drawn) == 1 and time.monotonic() - began < 5
        sheet(run, cheap_sampler(Component("ode")), guide, tmp_path)(
            8, params
        )  # one that begins after the signal draws nothing
        assert len(drawn) == 1
    assert list(tmp_path.iterdir()) == [] and len(drawn[0]) == max(CHUNK, run.mesh.size)
    with Preemption() as later:
        assert not later.signalled
