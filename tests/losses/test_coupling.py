"""Noise coupled to images by optimal transport within a batch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from scipy.optimize import linear_sum_assignment

from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.errors import UserError
from score_flow.losses.coupling import optimal
from score_flow.model import Model, Preconditioning
from score_flow.paths.linear import Linear
from score_flow.process.prediction import PREDICTIONS
from score_flow.process.times import uniform
from score_flow.runs.sharding import BATCH_AXES, batch_sharding, make_mesh, replicated
from tests.launch import TINY
from tests.toy_losses import denoising

EPS = np.finfo(np.float32).eps
couple = jax.jit(optimal)


def draw(n=16, shape=(4, 4, 1), seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(n, *shape)), jnp.float32) for _ in range(2)]


def cost(x0, noise):
    return float(np.sum((np.asarray(x0, np.float64) - np.asarray(noise, np.float64)) ** 2))


def order_of(coupled, noise):
    """Where each row of the coupled noise was; fails unless the rows are a permutation, to the bit."""
    rows = [row.tobytes() for row in np.asarray(noise)]
    order = [rows.index(row.tobytes()) for row in np.asarray(coupled)]
    assert sorted(order) == list(range(len(rows)))
    return order


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_cheapest_permutation(seed):
    x0, noise = draw(seed=seed)
    coupled = couple(x0, noise)
    order_of(coupled, noise)
    matrix = ((np.asarray(x0)[:, None] - np.asarray(noise)[None]) ** 2).sum(axis=(2, 3, 4), dtype=np.float64)
    rows, columns = linear_sum_assignment(matrix)
    # Products of 16 numbers in float32 decide: their roundings may choose another pairing of all but the same cost.
    assert cost(x0, coupled) <= matrix[rows, columns].sum() * (1 + 64 * EPS)
    assert cost(x0, coupled) < cost(x0, noise)


def test_noise_that_is_matched_already_stays():
    x0, _ = draw()
    np.testing.assert_array_equal(couple(x0, x0), x0)
    np.testing.assert_array_equal(couple(x0, x0[::-1]), x0)


def test_the_law_of_noise_is_kept():
    """Any function of one noise has, over a batch, the mean that it had: the marginal law stays N(0, I)."""
    x0, noise = draw()
    coupled = couple(5 * x0, noise)
    for f in (lambda z: z, lambda z: z**2, jnp.cos):
        np.testing.assert_allclose(f(coupled).mean(0), f(noise).mean(0), rtol=0, atol=64 * EPS)
    assert np.corrcoef(np.ravel(x0), np.ravel(coupled))[0, 1] > 0.1  # though no longer independent of the image


class Affine(nn.Module):
    """A network that compiles in no time."""

    @nn.compact
    def __call__(self, x, time, condition=None, *, deterministic=True):
        return nn.Dense(1)(x) + time[:, None, None, None]


PARAMS = {"Dense_0": {"kernel": jnp.ones((1, 1)), "bias": jnp.ones(1)}}


def objective(coupling):
    model = Model(Affine(), Linear(), PREDICTIONS["velocity"], Preconditioning(time_scale=1.0))
    return denoising(model, uniform(Linear(), 1e-3), "velocity", coupling=coupling)


def test_the_loss_of_eight_devices_is_that_of_one():
    loss, (x0, _) = objective("ot"), draw()
    one = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), BATCH_AXES)
    found = []
    for mesh in (one, make_mesh()):
        assert mesh.size in (1, 8)
        step = jax.jit(
            lambda params, key, x0: jax.value_and_grad(loss, has_aux=True)(params, (), key, {"image": x0}),
            in_shardings=(replicated(mesh), replicated(mesh), batch_sharding(mesh)),
        )
        (value, aux), gradient = step(PARAMS, jax.random.key(1), x0)
        found.append([np.asarray(leaf) for leaf in jax.tree.leaves((value, aux.losses, aux.t, gradient))])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=64 * EPS * max(1.0, np.abs(b).max()))

    other = jax.jit(objective("independent"))(PARAMS, (), jax.random.key(1), {"image": x0})[1]
    np.testing.assert_allclose(aux.t, other.t, rtol=EPS)  # the same times, with other noise
    assert not np.allclose(aux.losses, other.losses)


@pytest.mark.parametrize("flags, words", [
    (("training.coupling=optimal",), "config.training.coupling is 'optimal'; allowed: independent, ot"),
    (("training.coupling=ot", "training.objective=vlb", "training.time_sampler.name=grid", "path.name=vp",
      "training.variance=small", "data.uniform_dequantization=False", "training.largest_time=1."),
     "config.training.coupling is 'ot', which training.objective = vlb has no use for"),
])  # fmt: skip
def test_mistakes_are_one_line(flags, words):
    with pytest.raises(UserError) as error:
        experiment(load("configs/digits.py", [*TINY[1:], *(f"--config.{flag}" for flag in flags)]))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_config_turns_it_on():
    run = experiment(load("configs/digits.py", [*TINY[1:], "--config.training.coupling=ot"]))
    assert run.loss.noising.coupling == "ot"
