"""Solvers converge at their orders on Gaussian data, whose flow and marginals are known."""

import functools

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling import reverse_sde as sde
from sampling.base import chain, example_keys
from sampling.exponential import dpm_solver
from sampling.flow import METHODS, Solver, flow
from sampling.heun import heun
from sampling.kernels import ancestral, ddim, euler, reverse_diffusion
from sampling.recursion import recur
from sampling.unipc import unipc
from score_flow.paths.gvp import GVP
from score_flow.paths.vp import VP
from score_flow.process.grid import intervals, karras, uniform
from tests.discover import builds, thinned
from tests.exact import GaussianDenoiser, MixtureDenoiser
from tests.paths.variants import DEFAULTS

ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "ralston": 2, "bosh3": 3, "tsit5": 5, "dopri5": 5, "dopri8": 8}


def slope(ns, errors) -> float:
    """Least-squares slope of -log error over log n."""
    return -np.polyfit(np.log(ns), np.log(errors), 1)[0]


@pytest.mark.parametrize("method", thinned(METHODS, 4))
def test_ode_order(method):
    """End state against the exact flow z = m_t + (s_t/s_0)(x - m_0), in float64; counted in steps."""
    with jax.enable_x64(True):
        denoiser, t0, t1 = GaussianDenoiser(GVP(), mean=0.7, std=0.4), 0.9, 0.1
        (m0, s0), (m1, s1) = denoiser.marginal(t0), denoiser.marginal(t1)
        x = jnp.linspace(-2, 2, 8).reshape(2, 4)
        order = ORDERS.get(method) or METHODS[method][0]().order(None)  # one more: as diffrax says
        ns = np.array([2, 3, 6]) if order == 8 else np.array([8, 16, 24])
        errors = []
        for n in ns:
            end, stats = flow(denoiser, x, Solver(method, n_steps=int(n), per_example=False), t0=t0, t1=t1)
            errors.append(np.abs(end - (m1 + s1 / s0 * (x - m0))).max())
            assert int(stats.n_steps[0]) == n
    # Dopri8 meets float64 after a few steps and has its order only in the limit: within 1; the rest within .3.
    assert slope(ns, errors) > order - (1.0 if method == "dopri8" else 0.3)
    if method != "dopri8":
        assert slope(ns, errors) < order + 1.0  # symmetric errors may cancel, never a whole order more


@pytest.mark.parametrize("name", thinned(builds("score_flow.paths"), 4))
def test_adaptive_flow_reaches_the_exact_state(name):
    """The error of Tsit5 at rtol = atol = 1e-6 stays below 1e-4, there and back again; each example steps alone."""
    denoiser = GaussianDenoiser(builds("score_flow.paths")[name]())
    (m0, s0), (m1, s1) = denoiser.marginal(1e-3), denoiser.marginal(0.9)
    x = jnp.linspace(-1, 1, 12).reshape(3, 4)
    solver = Solver("tsit5", 1e-6, 1e-6, per_example=name != "gvp")  # one path as a whole batch

    @jax.jit
    def there_and_back(x):
        z, _ = flow(denoiser, x, solver, t0=1e-3, t1=0.9)
        return z, *flow(denoiser, z, solver, t0=0.9, t1=1e-3)

    z, back, stats = there_and_back(x)
    np.testing.assert_allclose(z, m1 + s1 / s0 * (x - m0), rtol=1e-4, atol=1e-4 * s1)
    np.testing.assert_allclose(back, x, atol=1e-3)
    assert np.asarray(stats.ok).all()


def moments(kernel, denoiser, times) -> float:
    """Variance after a chain whose kernels are affine in x, by exact recursion: no Monte Carlo."""

    def step(variance, row):
        zero, one = (kernel(denoiser, jnp.full((1, 1), value), row[0], row[1]) for value in (0.0, 1.0))
        return (one.mean - zero.mean)[0, 0] ** 2 * variance + jnp.squeeze(zero.std) ** 2, None

    start = jnp.asarray(denoiser.marginal(float(times[0]))[1] ** 2)
    return float(jax.lax.scan(step, start, jnp.asarray(intervals(times)))[0])


FIRST = {
    "euler": euler.predictor(),
    "reverse_diffusion": reverse_diffusion.predictor(),
    "ancestral": ancestral.predictor(),
    "ddim0": ddim.predictor(0.0),
    "ddim1": ddim.predictor(1.0),
}


@pytest.mark.parametrize("kernel", FIRST.values(), ids=FIRST)
@pytest.mark.parametrize("path", thinned([VP(), GVP()], 2), ids=["vp", "gvp"])
def test_kernels_have_weak_order_one(kernel, path):
    with jax.enable_x64(True):
        denoiser, ns = GaussianDenoiser(path), np.array([100, 200, 400])
        exact = denoiser.marginal(0.05)[1] ** 2
        errors = [abs(moments(kernel, denoiser, uniform(path, int(n), 0.05, 0.8)) - exact) for n in ns]
    assert abs(slope(ns, errors) - 1) < 0.15


class Impulses(diffrax.AbstractBrownianPath):
    """Each of the independent standard normal numbers behind n steps set to 1 in one example, all others to 0.

    They are the steps' W/sqrt(h) and, of methods that see a Levy area, H/sqrt(h/12). Two more examples have none.
    """

    tau: jax.Array
    levy_area: type = eqx.field(static=True)

    @property
    def t0(self):
        return None

    @property
    def t1(self):
        return None

    def evaluate(self, t0, t1=None, left=True, use_levy=False):
        n, h = len(self.tau) - 1, t1 - t0
        step, row = jnp.searchsorted(self.tau, (t0 + t1) / 2) - 1, jnp.arange(2 * n + 2)[:, None]
        w, area = jnp.sqrt(h) * (row == step), jnp.sqrt(h / 12) * (row == n + step)
        return diffrax.SpaceTimeLevyArea(dt=h, W=w, H=area) if use_levy else w


slow = pytest.mark.slow


@pytest.mark.parametrize("method, order", [
    ("euler", 1), ("shark", 2), pytest.param("heun", 2, marks=slow), pytest.param("sra1", 2, marks=slow),
])  # fmt: skip
def test_reverse_sdes_have_their_weak_order(method, order, monkeypatch):
    """The variance, a sum over the squared responses to each normal number: a method is linear in them on Gaussians."""
    with jax.enable_x64(True):
        path, ns = VP(), np.array([80, 160])
        denoiser = GaussianDenoiser(path)
        (mean, std), exact = denoiser.marginal(0.8), denoiser.marginal(0.05)[1] ** 2

        def error(n):
            times = uniform(path, int(n), 0.05, 0.8)
            tau = jnp.asarray(0.8 - times)
            monkeypatch.setattr(sde, "ExampleNoise", lambda keys, shape, levy: Impulses(tau, levy))
            x = jnp.full((2 * n + 2, 1), mean).at[-1].add(std)  # the last example's impulse is the start's
            keys = example_keys(0, jnp.arange(2 * n + 2))
            end = jax.jit(
                lambda x: sde.reverse_sde(keys, denoiser, x, times=times, w=lambda c, t: c.g2, method=method)
            )(x)
            return abs(float(jnp.sum((end - end[-2]) ** 2)) - exact)

        errors = [error(n) for n in ns]
    assert abs(slope(ns, errors) - order) < 0.15


# UniPC of order p is accurate to p + 1 (arXiv:2302.04867, theorem 3.1).
FAST = {
    "dpm1": (lambda path, times: dpm_solver(path, times, 1), 1),
    "dpm2": (lambda path, times: dpm_solver(path, times, 2), 2),
    "dpm3": (lambda path, times: dpm_solver(path, times, 3), 3),
    "unipc2": (lambda path, times: unipc(path, times, 2), 3),
    "unipc2_bh1": (lambda path, times: unipc(path, times, 2, b="bh1"), 3),
    "unipc3": (lambda path, times: unipc(path, times, 3), 4),
    "heun": (heun, 2),
}


@functools.cache
def mixture_or_gaussian(path, data):
    """(denoiser, states near the prior, the exact states near the data they flow to), in float64."""
    x = jax.random.normal(jax.random.key(0), (8, 3))
    means = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))
    denoiser = GaussianDenoiser(path) if data == "gaussian" else MixtureDenoiser(path, means, 0.6)
    # Its error is far below the smallest of the samplers', 4e-7.
    finest = Solver("dopri8", rtol=1e-12, atol=1e-12, per_example=False)
    return denoiser, x, flow(denoiser, x, finest, t0=0.99, t1=1e-3)[0]


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("data", thinned(["mixture", "gaussian"], 2))
def test_fast_samplers_have_their_order(name, data):
    """End states from near the prior (where the first steps' low orders cost nothing) to near the data, in float64."""
    rows, order = FAST[name]
    with jax.enable_x64(True):
        path, keys, ns = VP(), example_keys(0, jnp.arange(8)), np.array([96, 216])
        denoiser, x, exact = mixture_or_gaussian(path, data)
        errors = []
        for n in ns:
            table = rows(path, karras(path, int(n), 1e-3, 0.99))
            end = jax.jit(lambda x, table=table: recur(keys, denoiser, x, rows=table))(x)
            errors.append(float(jnp.sqrt(jnp.mean((end - exact) ** 2))))
    assert abs(slope(ns, errors) - order) < 0.2


@pytest.mark.parametrize("path", thinned(DEFAULTS.values(), 3), ids=DEFAULTS)
def test_first_order_is_ddim_on_every_path(path):
    """DPM-Solver-1 from t = 1, where alpha may be 0, to t = 0, where sigma may be: the same samples as DDIM."""
    with jax.enable_x64(True):
        keys, times = example_keys(0, jnp.arange(8)), uniform(path, 20, 0.0, 1.0)
        denoiser = MixtureDenoiser(path, jnp.asarray(np.random.default_rng(0).normal(size=(4, 3))), 0.3)

        @jax.jit
        def both(x):
            kernels = chain(keys, denoiser, x, kernels=[ddim.predictor()], intervals=intervals(times))
            return recur(keys, denoiser, x, rows=dpm_solver(path, times, 1)), kernels

        ours, theirs = both(path.sigma(jnp.asarray(1.0)) * jax.random.normal(jax.random.key(0), (8, 3)))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def variance(rows, denoiser) -> float:
    """Variance after a recursion on Gaussian data, where estimates are affine in x: no Monte Carlo."""
    k = rows.weights.shape[1]
    spread = np.zeros((k, k))  # covariance of x and the estimates of the last k - 1 calls
    spread[0, 0] = denoiser.marginal(float(rows.t[0]))[1] ** 2
    zero, one = (denoiser.x0(jnp.full((len(rows.t), 1), value), jnp.asarray(rows.t))[:, 0] for value in (0.0, 1.0))
    for slope_x0, scale, weights, std in zip(np.asarray(one - zero), *rows[1:], strict=True):
        move = np.eye(k, k=-1)
        if k > 1:
            move[1] = np.eye(k)[0] * slope_x0
        move[0] = np.append(scale + weights[0] * slope_x0, weights[1:])
        spread = move @ spread @ move.T
        spread[0, 0] += std**2
    return float(spread[0, 0])


def test_the_sde_variant_has_weak_order_one_and_its_second_order_errs_less():
    with jax.enable_x64(True):
        path, ns = VP(), np.array([80, 160, 320])
        denoiser = GaussianDenoiser(path)
        exact = denoiser.marginal(1e-2)[1] ** 2

        def error(order, n):
            return abs(
                variance(dpm_solver(path, karras(path, int(n), 1e-2, 0.99), order, variant="sde"), denoiser) - exact
            )

        first, second = ([error(order, n) for n in ns] for order in (1, 2))
    assert abs(slope(ns, first) - 1) < 0.2
    assert (np.array(second) < 0.1 * np.array(first)).all()
