"""What every sampler promises beside its law: keys decide, network calls are counted, chains end without noise."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling.base import chain, example_keys
from sampling.kernels import annealed_langevin, langevin
from sampling.kernels.ancestral import ancestral
from score_flow.errors import UserError
from score_flow.paths.gvp import GVP
from score_flow.paths.vp import VP
from score_flow.process.grid import intervals, uniform
from tests.discover import builds, thinned
from tests.exact import GaussianDenoiser

# Settings on which the number of network calls depends, beside the defaults.
CALLS = {
    "ode": [{"rtol": 1e-4, "atol": 1e-4}, {"method": "heun", "n_steps": 100}],
    "sde": [
        {"method": "shark", "last_step": "tweedie"},
        {"method": "heun", "last_step": "euler"},
        {"method": "noise_first_heun", "last_step": "none"},
    ],
    "predictor_corrector": [{"predictor": "ancestral", "corrector": "langevin", "snr": 0.03}],
    "heun": [{"s_churn": 40.0, "s_min": 0.02, "grid": "log_snr"}],
}


@pytest.mark.parametrize("name", thinned(builds("sampling"), 3))
def test_a_sample_does_not_depend_on_its_batch(name):
    """100 samples in batches of 10 and of 100, keyed by their index."""
    build = builds("sampling")[name]
    fields = {"n_steps": 20} if inspect.signature(build).parameters["n_steps"].default else {}
    sampler, denoiser = build(t_max=0.99, **fields), GaussianDenoiser(GVP())
    draw = jax.jit(lambda keys: sampler(keys, denoiser, (4, 4, 1)).x)
    whole = np.asarray(draw(example_keys(3, jnp.arange(100))))
    parts = [np.asarray(draw(example_keys(3, jnp.arange(start, start + 10)))) for start in range(0, 100, 10)]
    # a few float32 roundings of values near 1
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", thinned(builds("sampling"), 3))
def test_network_calls_are_counted(name):
    """The reported number of calls is the number of times the denoiser ran."""
    build = builds("sampling")[name]
    calls = []

    class Counting(GaussianDenoiser):
        def estimate(self, x, t):
            jax.debug.callback(lambda: calls.append(1))
            return super().estimate(x, t)

    for fields in [{}, *CALLS.get(name, [])]:
        if name == "ode":
            fields = fields | {"per_example": False}  # under vmap a callback runs once an example
        elif inspect.signature(build).parameters["n_steps"].default:
            fields = fields | {"n_steps": 7}
        calls.clear()
        sampler = build(**{"t_max": 0.9, "t_min": 1e-2} | fields)
        result = jax.jit(lambda keys, s=sampler: s(keys, Counting(VP()), (3,)))(example_keys(0, jnp.arange(2)))
        jax.effects_barrier()
        assert int(result.n_evaluations) == len(calls), fields


def test_chain_adds_no_noise_in_its_last_step():
    """The result is the last kernel's mean: with one interval it is a deterministic function of x."""
    denoiser = GaussianDenoiser(VP())
    x = jnp.ones((2, 3))
    kernel = ancestral()
    rows = np.array([[0.3, 0.5]])
    first, second = (
        chain(example_keys(seed, jnp.arange(2)), denoiser, x, kernels=[kernel], intervals=rows) for seed in (0, 1)
    )
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, kernel(denoiser, x, jnp.asarray(0.3), jnp.asarray(0.5)).mean, rtol=1e-6)


@pytest.mark.parametrize("corrector, snr", [(annealed_langevin, 0.3), (langevin, 0.1)])
def test_langevin_is_stationary_at_its_closed_form(corrector, snr):
    """A Langevin step of size e on N(m, v) has the stationary variance v / (1 - e / (2 v)), within 1 %."""
    path, t, d = VP(), 0.5, 256
    denoiser = GaussianDenoiser(path)
    mean, std = denoiser.marginal(t)
    rows = np.repeat([[t - 1e-3, t]], 400, axis=0)
    x = mean + std * jax.random.normal(jax.random.key(0), (64, d))
    kernel = corrector.corrector(snr)
    x = np.asarray(chain(example_keys(0, jnp.arange(64)), denoiser, x, kernels=[kernel], intervals=rows))
    a = float((path.alpha(jnp.asarray(t)) / path.alpha(jnp.asarray(t - 1e-3))) ** 2)
    size = 2 * a * snr**2 * (float(path.sigma(jnp.asarray(t))) ** 2 if corrector is annealed_langevin else std**2)
    # The chain returns a mean: its variance is the stationary one less the last step's noise, 2 e.
    expected = std**2 / (1 - size / (2 * std**2)) - 2 * size
    assert abs(x.var() - expected) < 0.01 * std**2
    assert abs(x.mean() - mean) < 3 * std / math.sqrt(x.size) * math.sqrt(
        2 * std**2 / size
    )  # correlated: 2 v/e steps forget


@pytest.mark.parametrize("name", builds("sampling"))
def test_mistakes_are_one_line(name):
    build = builds("sampling")[name]
    for field in ("grid", "method", "predictor", "variance"):
        if field in inspect.signature(build).parameters:
            with pytest.raises(UserError, match="allowed") as error:
                build(**{field: "unifrm"})
            assert "\n" not in str(error.value)


def test_intervals_are_contiguous():
    rows = intervals(uniform(VP(), 10, 1e-3, 1.0))
    assert rows.shape == (10, 2)
    assert rows[0, 1] == 1.0 and rows[-1, 0] == 1e-3
    np.testing.assert_array_equal(rows[1:, 1], rows[:-1, 0])


def test_variances_of_an_ancestral_step():
    """Learned: "range" goes from the small variance (v = -1) to the large (v = 1), "log" is the logarithm itself."""
    path = VP()

    class Learned(GaussianDenoiser):
        def estimate(self, x, t):
            return super().estimate(x, t)._replace(variance=v)

    def std(variance):
        return ancestral(variance)(Learned(path), x, s, t).std

    x, s, t = jnp.ones((3, 2)), jnp.asarray(0.4), jnp.asarray(0.5)
    for end, variance in ((-1.0, "small"), (1.0, "large")):
        v = jnp.full(x.shape, end)
        np.testing.assert_allclose(std("range"), np.full(x.shape, std(variance)), rtol=1e-6)
    v = jnp.full(x.shape, -3.0)
    np.testing.assert_allclose(std("log"), math.exp(-1.5), rtol=1e-6)
    with pytest.raises(UserError, match="learn_sigma"):
        ancestral("range")(GaussianDenoiser(path), x, s, t)
