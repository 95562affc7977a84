"""The stochastic sampler is EDM's algorithm 2, on any path."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling.base import example_keys, normal
from sampling.heun import build, churned, heun
from sampling.recursion import recur
from score_flow.errors import UserError
from score_flow.paths.linear import Linear
from score_flow.paths.ve import VE
from score_flow.paths.vp import VP
from score_flow.process.grid import karras
from tests.exact import GaussianDenoiser, MixtureDenoiser

PATHS = [VP(), VE(), Linear()]
every_path = pytest.mark.parametrize("path", PATHS, ids=[type(path).__name__ for path in PATHS])
N = 9


def level(path, t):
    """sigma/alpha, alpha."""
    t = jnp.asarray(t, float)
    return path.sigma(t) / path.alpha(t), path.alpha(t)


def algorithm_2(denoiser, x, times, start, s_noise, keys):
    """arXiv:2206.00364, alg. 2, as a plain loop in y = x/alpha; start holds the times of the raised noise levels."""
    path, n = denoiser.path, len(times) - 1

    def slope(y, t):
        v, alpha = level(path, t)
        return (y - denoiser.x0(alpha * y, jnp.asarray(t))) / v

    y = x / level(path, times[0])[1]
    for i in range(n):
        (low, _), (raised, _), (end, alpha) = (level(path, t) for t in (times[i], start[i], times[i + 1]))
        if i > 0:
            y = y + s_noise * jnp.sqrt(raised**2 - low**2) * normal(keys, x.shape[1:], 2 * i - 1)
        d = slope(y, start[i])
        following = y + (end - raised) * d
        if i < n - 1:
            following = y + (end - raised) * (d + slope(following, times[i + 1])) / 2
        y = following
    return alpha * y


@every_path
@pytest.mark.parametrize(
    "churn", [{}, {"s_churn": 2.0, "s_min": 0.05, "s_max": 3.0, "s_noise": 1.1}], ids=["ode", "sde"]
)
def test_it_is_algorithm_2(path, churn):
    with jax.enable_x64(True):
        denoiser = MixtureDenoiser(path, jnp.asarray(np.random.default_rng(0).normal(size=(4, 3))), 0.3)
        keys, times = example_keys(0, jnp.arange(4)), karras(path, N, 1e-3, 0.99)
        x = path.sigma(jnp.asarray(0.99)) * jax.random.normal(jax.random.key(0), (4, 3))
        rows = heun(path, times, **churn)
        ours = jax.jit(lambda x: recur(keys, denoiser, x, rows=rows))(x)
        start = churned(
            path,
            times,
            **{"s_churn": 0.0, "s_min": 0.0, "s_max": 0.0} | {k: v for k, v in churn.items() if k != "s_noise"},
        )
        expected = algorithm_2(denoiser, x, times, start, churn.get("s_noise", 1.0), keys)
    assert len(rows.t) == 2 * N - 1 and rows.std.any() == bool(churn)
    np.testing.assert_allclose(ours, expected, atol=1e-9)


@every_path
@pytest.mark.parametrize("s_churn, gamma", [(2.0, 2.0 / N), (100.0, math.sqrt(2) - 1)])
def test_churn_raises_the_noise_between_its_bounds(path, s_churn, gamma):
    with jax.enable_x64(True):
        times = karras(path, N, 1e-3, 0.99)
        start = churned(path, times, s_churn, s_min=0.05, s_max=3.0)
        noise, raised = (np.asarray(level(path, t)[0]) for t in (times[:-1], start))
    inside = (noise >= 0.05) & (noise <= 3.0)
    assert 0 < inside.sum() < N
    np.testing.assert_allclose(raised / noise, np.where(inside, 1 + gamma, 1.0), rtol=1e-9)


def test_the_network_is_never_called_above_t_max():
    """The first steps would start above it: their churn is cut."""
    times = karras(VP(), 40, 1e-3, 0.9)
    start = churned(VP(), times, 1e3, s_min=0.0, s_max=math.inf)
    assert start[0] == 0.9 and start.max() <= 0.9
    assert (start[1:] > times[1:-1]).all()


@every_path
def test_a_grid_may_end_at_the_data(path):
    """At sigma = 0 the last step returns E[x0 | x_t]: for a point mass, the point."""
    times = (0.95, 0.6, 0.3, 0.1, 0.0)
    if path == VE():  # sigma(0) > 0
        path = VE(0.0, 50.0, "linear")
    sampler = build(grid=times, s_churn=1.0)
    result = sampler(example_keys(0, jnp.arange(2)), GaussianDenoiser(path, 0.7, 0.0), (4,))
    assert int(result.n_evaluations) == 7
    np.testing.assert_allclose(result.x, 0.7, rtol=1e-5)


@pytest.mark.parametrize("churn", [0.0, 8.0])
def test_an_end_without_data_is_left_in_one_step(churn):
    """From alpha = 0 the first call goes to alpha_s x0 + sigma_s z; what follows starts there as it would alone."""
    times = np.array([1.0, 0.8, 0.5, 0.1])
    whole, rest = heun(Linear(), times, churn), heun(Linear(), times[1:], churn)
    assert len(whole.t) == len(rest.t) + 1
    np.testing.assert_allclose([whole.scale[0], *whole.weights[0], whole.std[0]], [0.8, 0.2, 0, 0], rtol=1e-6)
    for column, same in zip(whole, rest, strict=True):
        np.testing.assert_array_equal(column[1:], same)


@pytest.mark.parametrize("fields", [{"s_churn": -1.0}, {"s_noise": -1.0}, {"s_min": 2.0, "s_max": 1.0}])
def test_mistakes_are_one_line(fields):
    with pytest.raises(UserError, match=f"config.sampling.{next(iter(fields))} is .*must be") as caught:
        build(**fields)
    assert "\n" not in str(caught.value)
