"""Time samplers: the law of each, its importance weights, and where it is refused."""

import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from score_flow.errors import UserError
from score_flow.paths.ve import VE
from score_flow.paths.vp import VP
from score_flow.process.times import (
    TIME_SAMPLERS,
    grid,
    log_snr,
    logit_normal,
    lognormal,
    loss_second_moment,
    nearest,
    shifted,
    stratified,
    uniform,
)
from score_flow.runs.checkpoint import Checkpoints, target
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
    later = sampler.update(state, t, weight)
    assert jax.tree.structure(later) == jax.tree.structure(state)
    assert sampler.times or state == later == ()

    @jax.jit
    def build_and_sample(key):
        sampler = TIME_SAMPLERS[name](VP(), t_min=T_MIN, t_max=T_MAX)
        return sampler.sample(sampler.init(), key, B)

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


@pytest.mark.parametrize("ends", [(0.0, 1.0), (0.2, 0.6)], ids=str)
@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (-0.5, 2.0)])
def test_logit_normal_is_cut_to_its_range(mean, std, ends):
    t, weight = draw(logit_normal(VP(), *ends, mean, std))
    law = scipy.stats.norm(mean, std)
    low, high = (law.cdf(scipy.special.logit(end)) for end in ends)
    quantile = (law.cdf(scipy.special.logit(t)) - low) / (high - low)
    assert scipy.stats.kstest(quantile, "uniform").pvalue > SIGNIFICANCE
    np.testing.assert_array_equal(weight, 1.0)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_shifted_times_are_a_map_of_uniform_ones_cut_to_the_range(shift):
    t, weight = draw(shifted(VP(), T_MIN, T_MAX, shift))
    u, *ends = (x / (shift - (shift - 1) * x) for x in (t, T_MIN, T_MAX))
    assert scipy.stats.kstest(u, "uniform", args=(ends[0], ends[1] - ends[0])).pvalue > SIGNIFICANCE
    np.testing.assert_array_equal(weight, 1.0)


@pytest.mark.parametrize("n", [3, 4000])
def test_times_of_a_chain_are_found_in_float32(n):
    times = tuple((np.arange(1, n + 1) / n).tolist())
    np.testing.assert_array_equal(nearest(times, jnp.asarray(times, jnp.float32)), np.arange(n))


def second_moments(seed, n=5, history=3, uniform_prob=0.1, n_batches=12):
    """A sampler after batches of losses of known size, and (index, loss) of each in the order in which they came."""
    sampler, rng = (
        loss_second_moment(VP(), 0.0, n=n, history=history, uniform_prob=uniform_prob),
        np.random.default_rng(seed),
    )
    state, seen = sampler.init(), []
    for _ in range(n_batches):
        step = rng.integers(0, n, 16)
        losses = (step + 1) * rng.uniform(0.5, 1.5, 16)
        t = jnp.asarray(np.asarray(sampler.times)[step], jnp.float32)
        state = jax.jit(sampler.update)(state, t, jnp.asarray(losses, jnp.float32))
        seen += list(zip(step, losses, strict=True))
    return sampler, state, seen


def test_second_moments_decide_the_law():
    """p ~ root mean square of the last losses of each time, mixed with a tenth of the uniform law; weight 1/(n p)."""
    sampler, state, seen = second_moments(seed=0)
    last = [[loss for i, loss in seen if i == step][-3:] for step in range(5)]
    rms = np.sqrt(np.mean(np.square(last), axis=1))
    p = 0.9 * rms / rms.sum() + 0.1 / 5
    t, weight = (np.asarray(a, np.float64) for a in sampler.sample(state, jax.random.key(0), 20000))
    step = np.rint(t * 5).astype(int) - 1
    np.testing.assert_allclose(weight, 1 / (5 * p[step]), rtol=1e-5)
    assert scipy.stats.chisquare(np.bincount(step, minlength=5), 20000 * p).pvalue > SIGNIFICANCE
    estimate = weight * np.cos(5 * t)
    exact = np.cos(np.arange(1, 6)).mean()
    assert abs(estimate.mean() - exact) <= 3 * estimate.std() / np.sqrt(len(t))


def test_second_moments_are_uniform_until_every_time_has_its_history():
    sampler = loss_second_moment(VP(), 0.0, n=5, history=3)
    state = sampler.update(sampler.init(), jnp.full(64, 0.2), jnp.full(64, 7.0))
    t, weight = sampler.sample(state, jax.random.key(0), 2000)
    np.testing.assert_array_equal(weight, 1.0)
    counts = np.bincount(np.rint(np.asarray(t) * 5).astype(int), minlength=6)[1:]
    assert scipy.stats.chisquare(counts).pvalue > SIGNIFICANCE


def test_second_moments_survive_a_checkpoint(tmp_path):
    _, state, _ = second_moments(seed=1)
    checkpoints = Checkpoints(tmp_path / "checkpoints", 0)
    items = {"train": {"time_state": state}}
    checkpoints.save(1, items, {}, wait=True)
    restored = checkpoints.restore(1, target(items, jax.tree.map(lambda leaf: leaf.sharding, items)))
    checkpoints.close()
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(one, other)
