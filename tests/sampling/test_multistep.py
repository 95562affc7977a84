"""DPM-Solver++ and UniPC are the published formulas, and run to the ends of every path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling.base import chain_sampler, example_keys, normal
from sampling.exponential import dpm_solver, exponential_weights, step_orders
from sampling.kernels.ancestral import ancestral
from sampling.kernels.ddim import predictor as ddim
from sampling.multistep import build
from sampling.recursion import recur
from sampling.unipc import build as build_unipc
from sampling.unipc import unipc
from score_flow.errors import UserError
from score_flow.paths.gvp import GVP
from score_flow.paths.linear import Linear
from score_flow.paths.ve import VE
from score_flow.paths.vp import VP
from score_flow.process.grid import intervals, log_snr, uniform
from tests.exact import GaussianDenoiser, MixtureDenoiser

T_MIN, T_MAX, N = 1e-3, 0.99, 17
PATHS = [VP(), VE(), Linear()]
every_path = pytest.mark.parametrize("path", PATHS, ids=[type(path).__name__ for path in PATHS])
SHAPE = (3,)


def mixture(path):
    return MixtureDenoiser(path, jnp.asarray(np.random.default_rng(0).normal(size=(4, 3))), 0.3)


def start(path):
    return path.sigma(jnp.asarray(T_MAX)) * jax.random.normal(jax.random.key(0), (8, 3))


def test_first_order_is_ddim_and_ancestral_sampling():
    """The same samples from the same keys: "ode" is DDIM with eta = 0, "sde" ancestral sampling, DDIM with eta = 1."""
    with jax.enable_x64(True):
        denoiser, keys = mixture(VP()), example_keys(0, jnp.arange(16))

        def rows(path):
            return intervals(uniform(path, N, T_MIN, T_MAX))

        for variant, kernels in ("ode", [ddim(0.0)]), ("sde", [ancestral("small"), ddim(1.0)]):
            sampler = build(T_MIN, T_MAX, N, grid="uniform", order=1, variant=variant)
            x = jax.jit(lambda keys, s=sampler: s(keys, denoiser, SHAPE).x)(keys)
            for kernel in kernels:
                same = chain_sampler([kernel], rows)
                expected = jax.jit(lambda keys, s=same: s(keys, denoiser, SHAPE).x)(keys)
                np.testing.assert_allclose(x, expected, atol=1e-9)


def published_2m(denoiser, x, times, noise=None):
    """DPM-Solver++(2M), alg. 2 of arXiv:2211.01095, and with noise SDE-DPM-Solver++(2M), as a plain loop."""
    c = denoiser.path.at(jnp.asarray(times))
    lam, previous, n = np.log(c.alpha / c.sigma), None, len(times) - 1
    for i in range(n):
        h, rate = lam[i + 1] - lam[i], 1 if noise is None else 2
        m = d = denoiser.x0(x, jnp.asarray(times[i]))
        if previous is not None:
            r = (lam[i] - lam[i - 1]) / h
            d = (1 + 1 / (2 * r)) * m - previous / (2 * r)
        scale = c.sigma[i + 1] / c.sigma[i] * np.exp(-h * (rate - 1))
        x, previous = scale * x + c.alpha[i + 1] * (1 - np.exp(-rate * h)) * d, m
        if noise is not None and i < n - 1:
            x = x + c.sigma[i + 1] * np.sqrt(1 - np.exp(-2 * h)) * noise[i]
    return x


@every_path
@pytest.mark.parametrize("variant", ["ode", "sde"])
def test_second_order_is_the_published_step(path, variant):
    with jax.enable_x64(True):
        denoiser, keys, x = mixture(path), example_keys(0, jnp.arange(8)), start(path)
        times = uniform(path, N, T_MIN, T_MAX)
        noise = None
        if variant == "sde":
            noise = jnp.stack([normal(keys, SHAPE, i) for i in range(N)])
        ours = jax.jit(lambda x: recur(keys, denoiser, x, rows=dpm_solver(path, times, 2, variant=variant)))(x)
        np.testing.assert_allclose(ours, published_2m(denoiser, x, times, noise), atol=1e-9)


def published_unipc(denoiser, x, times, order, b_of_h):
    """UniPC with data prediction (arXiv:2302.04867, alg. 1 and 2) as a plain loop: correct, evaluate, predict."""
    c = denoiser.path.at(jnp.asarray(times))
    lam, values, n = np.asarray(np.log(c.alpha / c.sigma)), [denoiser.x0(x, jnp.asarray(times[0]))], len(times) - 1
    for i in range(n):
        h, p = lam[i + 1] - lam[i], min(order, i + 1)
        b = {"bh1": h, "bh2": 1 - np.exp(-h)}[b_of_h]
        r = np.array([(lam[i - j] - lam[i]) / h for j in range(1, p)] + [1.0])
        differences = [(values[-1 - j] - values[-1]) / r[j - 1] for j in range(1, p)]
        # sum_m a_m r_m^(k-1) = int of u^k's weight / B(h), k = 1..p, by 20000 trapezia.
        u = np.linspace(0, 1, 20001)
        g = [np.trapezoid(h * np.exp(-h * (1 - u)) * u**k, u) / b for k in range(1, p + 1)]

        def solve(r, g):
            return np.array([0.5]) if len(r) == 1 else np.linalg.solve(np.vander(r, increasing=True).T, g)

        base = c.sigma[i + 1] / c.sigma[i] * x + c.alpha[i + 1] * (1 - np.exp(-h)) * values[-1]
        a = solve(r[:-1], g[:-1]) if p > 1 else []
        x = base + c.alpha[i + 1] * b * sum(w * d for w, d in zip(a, differences, strict=True))
        if i < n - 1:
            values.append(denoiser.x0(x, jnp.asarray(times[i + 1])))
            a = solve(r, g)
            x = base + c.alpha[i + 1] * b * sum(
                w * d for w, d in zip(a, [*differences, values[-1] - values[-2]], strict=True)
            )
    return x


@every_path
@pytest.mark.parametrize("order, b", [(1, "bh1"), (2, "bh1"), (2, "bh2"), (3, "bh2")])
def test_unipc_is_the_published_predictor_and_corrector(path, order, b):
    with jax.enable_x64(True):
        denoiser, x, times = mixture(path), start(path), log_snr(path, N, T_MIN, T_MAX)
        keys = example_keys(0, jnp.arange(8))
        ours = jax.jit(lambda x: recur(keys, denoiser, x, rows=unipc(path, times, order, b=b)))(x)
        expected = published_unipc(denoiser, x, times, order, b)
        # h^2/12/20000^2 of quadrature, times |x| and the condition of the Vandermonde system, stay below 1e-7.
        np.testing.assert_allclose(ours, expected, atol=1e-7 * float(jnp.abs(x).max()))


def test_weights_integrate_polynomials_exactly():
    nodes, h, u = np.array([1.0, 0.0, -0.7, -2.2]), 0.8, np.linspace(0, 1, 20001)
    for k in (1, 3, 4):
        for j in range(k):
            exact = np.trapezoid(h * np.exp(-h * (1 - u)) * u**j, u)
            assert abs(exponential_weights(nodes[:k], h) @ nodes[:k] ** j - exact) < 1e-8
    # Weights sum to the weight of a constant at two nodes too, and stay exact as h -> infinity.
    assert np.isclose(exponential_weights(nodes[1:3], h).sum(), -np.expm1(-h), rtol=1e-14)
    np.testing.assert_array_equal(exponential_weights(np.zeros(1), np.inf), [1.0])


def test_orders_rise_as_estimates_come_in_and_fall_in_short_runs():
    assert step_orders(np.arange(21.0), 3) == [1, 2] + [3] * 18
    assert step_orders(np.arange(7.0), 3) == [1, 2, 3, 3, 2, 1]
    assert step_orders(np.array([-np.inf, *range(19), np.inf]), 3) == [1, 1, 2] + [3] * 15 + [2, 1]


@pytest.mark.parametrize("make", [build, build_unipc])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("path", [GVP(), Linear()], ids=["gvp", "linear"])
def test_a_grid_may_reach_both_ends(make, order, path):
    """From alpha = 0 to sigma = 0 the last step returns E[x0 | x_t]: for a point mass, the point."""
    sampler = make(grid=tuple(np.linspace(1, 0, 21)), order=order)
    x = sampler(example_keys(0, jnp.arange(2)), GaussianDenoiser(path, 0.7, 0.0), (4,)).x
    np.testing.assert_allclose(x, 0.7, rtol=1e-6)


@pytest.mark.parametrize("make", [build, build_unipc])
def test_given_times_replace_the_named_grid(make):
    denoiser, keys = GaussianDenoiser(VP()), example_keys(0, jnp.arange(2))
    times = tuple(float(t) for t in log_snr(VP(), 12, T_MIN, T_MAX))
    named = make(T_MIN, T_MAX, 12)(keys, denoiser, (4,))
    for grid in times, str(times):
        given = make(grid=grid)(keys, denoiser, (4,))
        assert int(given.n_evaluations) == 12
        np.testing.assert_array_equal(given.x, named.x)


@pytest.mark.parametrize(
    "make, fields",
    [(build, {"order": 4}), (build, {"variant": "sd"}), (build_unipc, {"order": 0}), (build_unipc, {"b": "bh3"})],
)
def test_mistakes_are_one_line(make, fields):
    with pytest.raises(UserError, match=f"config.sampling.{next(iter(fields))} is .*(allowed|must be)") as caught:
        make(**fields)
    assert "\n" not in str(caught.value)
