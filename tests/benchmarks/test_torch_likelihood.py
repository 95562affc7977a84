"""The likelihood in PyTorch integrates the right-hand side that ours does."""

import numpy as np
import pytest

from benchmarks import torch_likelihood
from benchmarks.likelihood import problem
from benchmarks.measure import random_params
from score_flow.build import experiment
from score_flow.config.loading import load


def test_the_right_hand_side_is_ours_and_another_is_told_apart():
    pytest.importorskip("torch")
    config = load("configs/digits.py", [f"--config.{flag}" for flag in ("network.width=32", "network.depth=1")])
    run = experiment(config)
    params = random_params(run)
    given = problem(run, params, config.eval, 2)
    torch_likelihood.check(torch_likelihood.of_torch(run, params, given), given)
    elsewhere = given._replace(probe=np.roll(given.probe, 1, axis=1))
    with pytest.raises(AssertionError):
        torch_likelihood.check(torch_likelihood.of_torch(run, params, elsewhere), given)
