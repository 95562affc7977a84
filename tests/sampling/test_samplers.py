"""Every sampler on every path, against the exact marginals of Gaussian data."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling.base import chain, example_keys
from sampling.predictor_corrector import ancestral, annealed_langevin, langevin
from score_flow.grid import intervals, uniform
from score_flow.paths.gvp import GVP
from score_flow.paths.vp import VP
from score_flow.types import UserError
from tests.discover import builds
from tests.exact import GaussianDenoiser

N, SHAPE = 1024, (16,)
N_STEPS = 250
# Settings of each sampler beside its defaults; a new sampler is tested with its defaults.
VARIANTS = {
    "ode": [{"rtol": 1e-4, "atol": 1e-4}, {"method": "heun", "n_steps": 100}, {"per_example": False}],
    "sde": [
        {},
        {"method": "shark", "diffusion": "sigma", "last_step": "tweedie"},
        {"method": "heun", "last_step": "euler"},
        {"diffusion": "linear", "last_step": "none"},
    ],
    "predictor_corrector": [
        {"predictor": "euler"},
        {"corrector": "annealed_langevin", "snr": 0.05},
        {"predictor": "ancestral", "corrector": "langevin", "snr": 0.03},
    ],
    "ddim": [{}, {"eta": 0.5, "grid": "log_snr"}],
    "heun": [{}, {"s_churn": 40.0, "s_min": 0.02, "grid": "log_snr"}],
    "multistep": [{}, {"order": 3, "grid": "uniform"}, {"variant": "sde"}],
    "unipc": [{}, {"order": 3, "b": "bh1"}],
}


def cases():
    for path_name, path in builds("score_flow.paths").items():
        for name, build in builds("sampling").items():
            for fields in VARIANTS.get(name, [{}]):
                yield pytest.param(path(), build, fields, id="-".join([path_name, name, *map(str, fields.values())]))


@pytest.mark.parametrize("path, build, fields", list(cases()))
def test_samples_have_the_exact_mean_and_std(path, build, fields):
    """Within 3 standard errors, widened by the sampler's own first-order bias, O(1/n_steps)."""
    parameters = inspect.signature(build).parameters
    # t_max = 0.999 where the path ends at alpha = 0 and a log-SNR grid has no end.
    defaults = {"t_min": 1e-3, "t_max": 0.999} | ({"n_steps": N_STEPS} if parameters["n_steps"].default else {})
    denoiser = GaussianDenoiser(path)
    sampler = build(**defaults | fields)
    result = jax.jit(lambda keys: sampler(keys, denoiser, SHAPE))(example_keys(0, jnp.arange(N)))
    x = np.asarray(result.x, np.float64)
    assert np.asarray(result.ok).all()
    mean, std = denoiser.marginal(1e-3)
    if fields.get("last_step", "mean") in ("mean", "tweedie", "euler") and "last_step" in parameters:
        mean, std = denoiser.mean, denoiser.std  # the last step goes to t = 0
    prior_mismatch = (
        float(path.alpha(jnp.asarray(0.999))) / denoiser.marginal(0.999)[1]
    )  # the prior forgets the data's mean
    bias = 0.0 if "ode" in str(build.__module__) else 10.0 / N_STEPS
    n = x.size
    assert abs(x.mean() - mean) < 3 * std / math.sqrt(n) + std * (prior_mismatch + bias)
    assert abs(x.std() - std) < 3 * std / math.sqrt(2 * n) + std * (prior_mismatch**2 + bias)


@pytest.mark.parametrize("name", builds("sampling"))
def test_a_sample_does_not_depend_on_its_batch(name):
    """100 samples in batches of 10, 32 and 100, keyed by their index."""
    build = builds("sampling")[name]
    fields = {"n_steps": 20} if inspect.signature(build).parameters["n_steps"].default else {}
    sampler, denoiser = build(t_max=0.99, **fields), GaussianDenoiser(GVP())
    draw = jax.jit(lambda keys: sampler(keys, denoiser, (4, 4, 1)).x)
    whole = np.asarray(draw(example_keys(3, jnp.arange(100))))
    for size in (10, 32):
        parts = [np.asarray(draw(example_keys(3, jnp.arange(start, start + size)))) for start in range(0, 100, size)]
        np.testing.assert_allclose(
            np.concatenate(parts)[:100], whole, rtol=0, atol=2e-6
        )  # a few float32 roundings of values near 1


@pytest.mark.parametrize("name", builds("sampling"))
def test_network_calls_are_counted(name):
    """The reported number of calls is the number of times the denoiser ran."""
    build = builds("sampling")[name]
    calls = []

    class Counting(GaussianDenoiser):
        def estimate(self, x, t):
            jax.debug.callback(lambda: calls.append(1))
            return super().estimate(x, t)

    variants = [fields for fields in VARIANTS.get(name, [{}]) if fields.get("per_example", True) or name != "ode"]
    for fields in variants + ([{"per_example": False}] if name == "ode" else []):
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
    kernel = ancestral
    rows = np.array([[0.3, 0.5]])
    first, second = (chain(example_keys(seed, jnp.arange(2)), [kernel], denoiser, x, rows) for seed in (0, 1))
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
    kernel = corrector(snr)
    x = np.asarray(chain(example_keys(0, jnp.arange(64)), [kernel], denoiser, x, rows))
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
