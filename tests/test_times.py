"""Time samplers: the law of each, its importance weights, and where it is refused."""

import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from score_flow.paths.ve import VE
from score_flow.paths.vp import VP
from score_flow.times import TIME_SAMPLERS, grid, log_snr, lognormal, stratified, uniform
from score_flow.types import UserError
from tests.paths.variants import DEFAULTS, PATHS, coefficients

T_MIN, T_MAX, B = 1e-3, 0.97, 2048

every_path = pytest.mark.parametrize("path", DEFAULTS.values(), ids=DEFAULTS.keys())
SIGNIFICANCE = 1e-3  # of every test of a law below: fixed keys, so that a test that passes keeps passing


def draw(sampler, b=B):
    return (np.asarray(a, np.float64) for a in sampler.sample(sampler.init(), jax.random.key(0), b))


def log_snr_at(path, t):
    return coefficients(path, np.atleast_1d(t))["log_snr"]


@pytest.mark.parametrize("name", TIME_SAMPLERS)
def test_every_sampler_draws_in_range_by_key_and_inside_jit(name):
    sampler = TIME_SAMPLERS[name](VP(), t_min=T_MIN, t_max=T_MAX)  # built outside
    sample = jax.jit(sampler.sample, static_argnums=2)  # used inside
    state = sampler.init()
    t, weight = sample(state, jax.random.key(0), B)
    assert t.shape == weight.shape == (B,)
    assert (t >= T_MIN * (1 - 1e-6)).all() and (t <= T_MAX * (1 + 1e-6)).all() and (weight > 0).all()
    assert (sample(state, jax.random.key(1), B)[0] != t).mean() > 0.9
    assert sampler.update(state, t, weight) == state == ()

    @jax.jit
    def build_and_sample(key):
        return TIME_SAMPLERS[name](VP(), t_min=T_MIN, t_max=T_MAX).sample((), key, B)

    inside = build_and_sample(jax.random.key(0))
    np.testing.assert_allclose(inside[0], t, rtol=1e-4)  # bisection amplifies the rounding of log SNR by 1/(t rate)
    np.testing.assert_allclose(inside[1], weight, rtol=1e-4)


def assert_weighted_means_are_uniform_means(t, weight):
    for f in (np.ones_like, np.square, lambda t: np.cos(5 * t)):
        exact = scipy.integrate.quad(f, T_MIN, T_MAX)[0] / (T_MAX - T_MIN)
        values = weight * f(t)
        # 3 standard errors of independent draws (samplers in cells are better) and the float32 of t and weight.
        assert abs(values.mean() - exact) <= 3 * values.std() / np.sqrt(len(t)) + 1e-5


@every_path
def test_log_snr_is_uniform_in_log_snr(path):
    t, weight = draw(log_snr(path, T_MIN, T_MAX))
    assert_weighted_means_are_uniform_means(t, weight)
    high, low = log_snr_at(path, [T_MIN, T_MAX])
    c = coefficients(path, t)
    law = (high - c["log_snr"]) / (high - low)
    assert scipy.stats.kstest(law, "uniform").statistic <= 1 / B + 1e-3  # cells: far nearer than chance
    density = c["rate"] / (high - low)
    # Within 1/n of a knot the rate of a chain turns with t as fast as log SNR itself: n x the error of t.
    np.testing.assert_allclose(weight, 1 / (density * (T_MAX - T_MIN)), rtol=1e-3)


@pytest.mark.parametrize("make", [uniform, stratified])
def test_uniform_laws(make):
    t, weight = draw(make(VP(), T_MIN, T_MAX))
    assert_weighted_means_are_uniform_means(t, weight)
    np.testing.assert_array_equal(weight, 1.0)
    assert scipy.stats.kstest(t, "uniform", args=(T_MIN, T_MAX - T_MIN)).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("make", [stratified, log_snr])
def test_every_cell_holds_one_time_and_every_time_is_uniform_in_its_cell(make):
    path, b = VP(), 64
    keys = jax.random.split(jax.random.key(0), 200)
    t = np.asarray(jax.jit(jax.vmap(lambda key: make(path, T_MIN, T_MAX).sample((), key, b)[0]))(keys), np.float64)
    ends = log_snr_at(path, [T_MIN, T_MAX])
    log_snr_t = log_snr_at(path, t.ravel()).reshape(t.shape)
    u = (t - T_MIN) / (T_MAX - T_MIN) if make is stratified else (ends[0] - log_snr_t) / (ends[0] - ends[1])
    place = np.sort(u, axis=1) * b - np.arange(b)
    assert (place > -1e-3).all() and (place < 1 + 1e-3).all()  # float32: 1e-3 of a cell
    assert scipy.stats.kstest(place.mean(axis=1), "uniform").pvalue > SIGNIFICANCE


@pytest.mark.parametrize("n, low, high", [(10, 0.0, 1.0), (10, 0.25, 0.8), (1000, 1e-3, 0.999)])
def test_grid_draws_the_chain_times_evenly(n, low, high):
    t, weight = draw(grid(VP(), low, high, n=n), 20000)
    allowed = [i / n for i in range(1, n + 1) if low <= i / n <= high]
    index = np.rint(t * n).astype(int)
    np.testing.assert_allclose(t, index / n, rtol=1e-6)
    counts = np.bincount(index, minlength=n + 1)
    kept = np.rint(np.array(allowed) * n).astype(int)
    assert counts[kept].sum() == 20000
    assert scipy.stats.chisquare(counts[kept]).pvalue > SIGNIFICANCE
    np.testing.assert_array_equal(weight, 1.0)


def test_grid_without_chain_times_is_refused():
    with pytest.raises(UserError, match="no i/10 lies between"):
        grid(VP(), 0.41, 0.48, n=10)


@pytest.mark.parametrize("path", [VE(0.002, 80.0), VP(), PATHS["linear"], PATHS["ddpm-cosine"]], ids=str)
@pytest.mark.parametrize("mean, std", [(-1.2, 1.2), (0.5, 2.0)])
def test_lognormal_is_cut_to_its_range(path, mean, std):
    ends = (0.2, 0.6)  # each cuts off much of one law or the other
    t, weight = draw(lognormal(path, *ends, mean, std))
    law = statistics.NormalDist(mean, std)
    low, high = (law.cdf(-end / 2) for end in log_snr_at(path, ends))
    quantile = (scipy.stats.norm.cdf(-log_snr_at(path, t) / 2, mean, std) - low) / (high - low)
    assert high - low < 0.9
    assert scipy.stats.kstest(quantile, "uniform").pvalue > SIGNIFICANCE
    np.testing.assert_array_equal(weight, 1.0)


@pytest.mark.parametrize("make", [log_snr, lognormal])
@pytest.mark.parametrize("path_name", ["linear", "gvp"])
@pytest.mark.parametrize("ends", [(1e-3, 1.0), (0.0, 0.9)], ids=["t_max", "t_min"])
def test_an_infinite_log_snr_is_refused_when_built(make, path_name, ends):
    def build():
        return make(PATHS[path_name], *ends)

    for attempt in (build, lambda: jax.jit(lambda x: (build(), x)[1])(jnp.asarray(0.0))):
        with pytest.raises(UserError) as caught:
            attempt()
        end = ends[1] if ends[1] == 1.0 else ends[0]
        assert f"t = {end}" in str(caught.value) and "\n" not in str(caught.value)
