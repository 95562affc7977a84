"""The likelihood of a flow map's steps: of Gaussian data, whose steps are exact, that of the flow on every path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling import flow_map
from sampling.change_of_variables import log_density
from score_flow.paths.linear import Linear
from tests.discover import thinned
from tests.exact import GaussianDenoiser
from tests.paths.variants import DEFAULTS


@pytest.mark.parametrize("n_steps", thinned([3, 1], 2))
@pytest.mark.parametrize("path", thinned(DEFAULTS.values(), 3), ids=DEFAULTS)
def test_the_density_of_gaussian_data(path, n_steps):
    t_min = 1e-3
    with jax.enable_x64(True):
        denoiser = GaussianDenoiser(path)
        mean, std = denoiser.marginal(t_min)
        x = mean + std * jax.random.normal(jax.random.key(0), (5, 2, 1, 2))
        steps = flow_map.build(t_min=t_min, n_steps=n_steps).intervals(path)
        found = log_density(denoiser, x, steps)
        # The sampler starts at the prior, N(0, sigma(1)^2), not at the marginal of t = 1: z follows the prior's law.
        (end_mean, end_std), sigma = denoiser.marginal(1.0), float(path.sigma(jnp.asarray(1.0)))
        z = end_mean + end_std * (x - mean) / std
        normal = lambda x, std: -0.5 * jnp.sum((x / std) ** 2 + jnp.log(2 * jnp.pi * std**2), axis=(1, 2, 3))  # noqa: E731
        expected = normal(z, sigma) + 4 * np.log(end_std / std)
    assert found.ok.all()
    np.testing.assert_allclose(found.z, z, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.log_prob, expected, rtol=1e-9)


def test_what_is_not_reached_is_said():
    """A step that folds: x_s = x^2 has no preimage below 0."""

    class Fold(GaussianDenoiser):
        def average_velocity(self, x, t, s):
            return (x - x**2) / (t - s)

        def velocity(self, x, t):
            return jnp.zeros_like(x)

    x = jnp.array([0.5, -0.5]).reshape(2, 1, 1, 1)
    found = log_density(Fold(Linear()), x, np.array([[0.0, 1.0]]))
    assert found.ok.tolist() == [True, False]
    np.testing.assert_allclose(found.z[0], 0.5**0.5, rtol=1e-5)
