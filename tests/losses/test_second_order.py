"""The second-order term: on Gaussian data its value and its minimum are known, for every path and prediction."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.errors import UserError
from score_flow.process.prediction import PREDICTIONS
from tests.discover import thinned
from tests.losses.test_objective import KEY, NOISE, X0, D, T, objective
from tests.paths.variants import DEFAULTS, evaluate
from tests.test_model import MEAN, STD

WEIGHT = 0.1


def parts(path):
    """In float64, at T: the weight of likelihood, sigma div E[noise | x_t], and |E[noise | x_t] - noise|^2."""

    coefficients = lambda t: jnp.stack([(c := path.at(t)).alpha, c.sigma, c.g2 / c.sigma**2], axis=-1)  # noqa: E731
    alpha, sigma, weight = np.asarray(evaluate(coefficients, T), np.float64).T
    variance = (alpha * STD) ** 2 + sigma**2
    noise = np.asarray(NOISE, np.float64)
    guess = (sigma / variance)[:, None] * (alpha[:, None] * (np.asarray(X0) - MEAN) + sigma[:, None] * noise)
    return weight, D * sigma**2 / variance, ((guess - noise) ** 2).sum(axis=1)


@pytest.mark.parametrize("name", thinned(sorted(DEFAULTS, key=lambda name: name != "linear"), 9))
def test_its_value_for_the_best_network(name):
    """Along one random probe exactly: the Jacobian is a multiple of the identity. Half sums as means."""
    path = DEFAULTS[name]
    weight, divergence, error = parts(path)
    second = WEIGHT * weight * (divergence - D + error) ** 2 / D
    for name in PREDICTIONS:
        for reduce, share in (("mean", 1 / D), ("sum", 0.5)):
            loss = objective(path, name, "likelihood", reduce=reduce).replace(second_order=WEIGHT)
            got, without = (np.asarray(loss.at({}, X0, NOISE, T, key=key), np.float64) for key in (KEY, None))
            # Of weights of 1e6 beside each other: relative to what cancels.
            allowed = 2e-4 * share * weight * (1 + (divergence - D + error) ** 2 + error)
            assert (np.abs(got - without - share * second) < allowed).all(), (name, reduce)


class Scaled(nn.Module):
    """Another network times a parameter."""

    inner: nn.Module

    @nn.compact
    def __call__(self, x, time, condition=None, *, deterministic=True):
        return self.param("scale", nn.initializers.ones, ()) * self.inner(x, time, condition)


def test_it_trains_the_divergence_alone():
    """d/da of (a div - d + |error|^2)^2 is 2 div (div - d + |error|^2) at a = 1: none of the error's."""
    path = DEFAULTS["vp"]
    weight, divergence, error = parts(path)

    def gradient(second_order):
        loss = objective(path, "noise", "likelihood", reduce="sum").replace(second_order=second_order)
        loss = loss.replace(model=dataclasses.replace(loss.model, network=Scaled(loss.model.network)))
        at = lambda a: jnp.mean(loss.at({"scale": a}, X0, NOISE, T, key=KEY))  # noqa: E731
        return float(jax.grad(at)(jnp.ones(())))

    expected = np.mean(0.5 * WEIGHT * weight * 2 * divergence * (divergence - D + error) / D)
    scale = np.mean(0.5 * WEIGHT * weight * 2 * divergence * np.abs(divergence - D + error) / D)
    assert abs(gradient(WEIGHT) - gradient(0.0) - expected) < 1e-3 * scale


@pytest.mark.parametrize("objective_name", ["vlb", "flow_map"])
def test_losses_without_it_say_so(objective_name):
    flags = ["--config.training.second_order=0.1", f"--config.training.objective={objective_name}"]
    flags += ["--config.model.span=True"] if objective_name == "flow_map" else []
    with pytest.raises(UserError, match="second_order"):
        experiment(load("configs/digits.py", flags))
