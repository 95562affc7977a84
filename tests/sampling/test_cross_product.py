"""Every path x prediction x sampler x its settings, on perfect networks for Gaussian data: finite, with the right law.

One jit runs a sampler for all predictions. Its first N examples see the exact posterior means: the sample mean and
standard deviation of every pixel are those of the data, within 3 standard errors and the bias of the steps. The first K
keys come again for the perfect network of each prediction: those samples differ from the first by roundings alone.

Means and deviations of all pixels make one chi-squared statistic a run. The chance that any run of the whole product
is out of bounds is that of one Gaussian beyond 3 standard errors, 0.0027 (Bonferroni).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from sampling import reverse_sde, sde
from sampling.base import example_keys
from score_flow.model import Denoiser
from score_flow.paths.base import Path
from score_flow.process.grid import STEEP, intervals, uniform
from score_flow.process.prediction import PREDICTIONS, Estimate
from score_flow.types import Condition
from tests.discover import builds
from tests.exact import GaussianDenoiser
from tests.paths.variants import DEFAULTS, EPS
from tests.sampling.variants import VARIANTS

SHAPE, N, K = (2, 4, 1), 512, 8
MEAN = np.linspace(-0.6, 0.9, 8, dtype=np.float32).reshape(SHAPE)
STD = np.array([0.5, 0.2, 0.7, 0.4, 0.8, 0.6, 0.3, 0.45], np.float32).reshape(SHAPE)


@dataclasses.dataclass(frozen=True)
class PerfectNetworks(Denoiser):
    """Readout 0: the exact posterior means; readout k: what prediction k - 1 decodes of its own target."""

    path: Path
    condition: Condition
    spans = True

    def given(self, condition):
        return dataclasses.replace(self, condition=condition)

    def estimate(self, x, t):
        exact, c = GaussianDenoiser(self.path, MEAN, STD, self.condition).estimate(x, t), self.path.at(t).expand(x)
        decoded = [exact, *(p.decode(p.target(exact, c), x, c) for p in PREDICTIONS.values())]
        readout = self.condition["readout"].reshape(-1, *(1,) * (x.ndim - 1))
        chosen = [readout == k for k in range(len(decoded))]
        return Estimate(jnp.select(chosen, [e.x0 for e in decoded]), jnp.select(chosen, [e.noise for e in decoded]))


READOUTS = 1 + len(PREDICTIONS)
INDEX = jnp.concatenate([jnp.arange(N), jnp.tile(jnp.arange(K), len(PREDICTIONS))])
CONDITION = {"readout": jnp.concatenate([jnp.zeros(N, int), jnp.repeat(jnp.arange(1, READOUTS), K)])}


def draw(sampler, path):
    """The samples of every readout, and what the sampler says of them."""
    return sampler(example_keys(0, INDEX), PerfectNetworks(path, CONDITION), SHAPE)


FIRST, HIGHER = 250, 200  # steps of order 1 and of higher orders
METHODS = tuple(reverse_sde.METHODS)
NORMS = (1.0, 2.0)
FORMS = [(form, norm) for form in reverse_sde.DIFFUSIONS.values() for norm in NORMS]


def product():
    """(path name, sampler name, settings, order, whether it is the one of its sampler that always runs)."""
    for i, name in enumerate(name for name in builds("sampling") if name != "sde"):
        variants = VARIANTS.get(name, [({}, 1)])
        for j, (fields, order) in enumerate(variants):
            for k, path_name in enumerate(DEFAULTS):
                few = j == i % len(variants) and (i + j) % len(DEFAULTS) == k
                yield path_name, name, fields, order, few


RUNS = len(list(product())) + len(DEFAULTS) * len(METHODS) * len(FORMS) * len(reverse_sde.LAST_STEPS)
BOUND = scipy.stats.chi2.isf(2 * scipy.stats.norm.sf(3) / RUNS, 2 * MEAN.size)


def check_law(x, mean, std, bias):
    """The chi-squared statistic of the exact readout's means and deviations; bias, in units of std, is allowed."""
    x = np.asarray(x, np.float64)[:N]
    standard = (x - np.broadcast_to(mean, SHAPE)) / std
    off = np.stack([standard.mean(0), np.sqrt(np.mean(standard**2, axis=0) - standard.mean(0) ** 2) - 1])
    beyond = np.maximum(np.abs(off) - bias, 0) * np.sqrt([[N], [2 * N]]).reshape(2, 1, 1, 1)
    assert np.sum(beyond**2) < BOUND, (np.sum(beyond**2), BOUND, off)


def check_predictions(x, tolerance):
    """Every prediction's K samples are the exact readout's."""
    x = np.asarray(x, np.float64)
    for name, ours in zip(PREDICTIONS, x[N:].reshape(-1, K, *SHAPE), strict=True):
        np.testing.assert_allclose(ours, x[:K], rtol=0, atol=tolerance, err_msg=name)


@functools.cache
def at(path, *times):
    """The coefficients at some times."""
    return jax.tree.map(np.asarray, jax.jit(path.at)(jnp.asarray(times)))


def data_end(path):
    """The first time with a velocity."""
    return 0.0 if np.isfinite(at(path, 0.0).dsigma[0]) else 1e-5


def undecided(path):
    """Where alpha = 0 networks of the noise say nothing of x0, which counts as 0: what the first step makes of it.

    Its size is 1/n or, in log SNR, to grid.STEEP.
    """
    c = at(path, 1 - 1 / HIGHER, 1.0)
    return np.abs(MEAN).max() * max(c.alpha[0], np.exp(-STEEP / 2)) if c.alpha[1] == 0 else 0.0


def cases():
    for path_name, name, fields, order, few in product():
        label = "-".join([path_name, name, *(f"{k}={v}" for k, v in fields.items())])
        yield pytest.param(path_name, name, fields, order, id=label, marks=[] if few else pytest.mark.slow)


@pytest.mark.parametrize("path_name, name, fields, order", list(cases()))
def test_samplers(path_name, name, fields, order):
    path, build = DEFAULTS[path_name], builds("sampling")[name]
    n = FIRST if order == 1 else HIGHER
    t_min = fields.get("t_min", data_end(path))
    sampler = build(**{"t_min": t_min, "t_max": 1.0} | ({"n_steps": n} if order else {}) | fields)
    result = jax.jit(lambda: draw(sampler, path))()
    assert np.asarray(result.ok).all()
    # Of an adaptive solver, a hundred times its tolerance; else a step is about 10/n long in half log SNR.
    bias = 100 * fields["rtol"] if order is None else (10 / n) ** order
    c = at(path, 1.0)
    forgotten = c.alpha[0] * np.abs(MEAN).max() / c.sigma[0]  # the prior knows nothing of the data, x a little
    mean, std = GaussianDenoiser(path, MEAN, STD).marginal(t_min)
    check_law(result.x, mean, std, bias + forgotten)
    roundings = 8 * EPS[False] * int(result.n_evaluations) * float(jnp.abs(result.x).max())
    check_predictions(result.x, roundings + undecided(path) + (bias if order is None else 0))


def euler_laws(path, times):
    """last step -> (mean, std) of every form, (forms, 2, *SHAPE), after Euler-Maruyama's steps, which are affine."""
    rows = np.append(intervals(times), [[0.0, times[-1]]], axis=0)

    @jax.jit
    def coefficients(s, t):
        c = path.at(t)
        return c, [reverse_sde.stable(form(c, t, norm), c, t - s) for form, norm in FORMS]

    c, w = jax.tree.map(lambda a: np.asarray(a, np.float64), coefficients(*jnp.asarray(rows, jnp.float32).T))

    def move(i, mean, var, w):
        """The mean and variance after the drift of row i, w being its diffusion."""
        step, alpha = rows[i, 1] - rows[i, 0], c.alpha[i]
        rate = (c.dalpha[i] * alpha * STD**2 + c.dsigma[i] * c.sigma[i] + w / 2) / spread(i)
        return mean - step * (c.dalpha[i] * MEAN + rate * (mean - alpha * MEAN)), (1 - step * rate) ** 2 * var

    def spread(i):
        """The variance of x_t."""
        return (c.alpha[i] * STD) ** 2 + c.sigma[i] ** 2

    w = np.array(w).reshape(len(FORMS), -1, 1, 1, 1)
    mean, var = np.zeros((len(FORMS), *SHAPE)), np.full((len(FORMS), *SHAPE), c.sigma[0] ** 2)
    for i in range(len(times) - 1):
        mean, var = move(i, mean, var, w[:, i])
        var = var + w[:, i] * (rows[i, 1] - rows[i, 0])
    shrink = c.alpha[-1] * STD**2 / spread(-1)
    laws = {
        "none": (mean, var),
        "mean": move(-1, mean, var, w[:, -1]),
        "tweedie": (MEAN + shrink * (mean - c.alpha[-1] * MEAN), shrink**2 * var),
        "euler": move(-1, mean, var, 0.0),
    }
    return {name: np.stack([mean, np.sqrt(var)], axis=1) for name, (mean, var) in laws.items()}


def sde_cases():
    for k, path_name in enumerate(DEFAULTS):
        for j, method in enumerate(METHODS):
            marks = pytest.mark.slow if j or k else ()
            yield pytest.param(path_name, method, id=f"{path_name}-{method}", marks=marks)


@pytest.mark.parametrize("path_name, method", list(sde_cases()))
def test_reverse_sdes(path_name, method):
    """Every diffusion at every norm (a vmap), each with every last step, from t = 1 (where g2 may be infinite)."""
    path, t_min, denoiser = DEFAULTS[path_name], 1e-5, PerfectNetworks(DEFAULTS[path_name], CONDITION)

    def run(k):
        def w(c, t, norm):
            return jnp.stack([form(c, t, norm) for form, norm in FORMS])[k]

        result = draw(sde.build(t_min, 1.0, FIRST, method=method, diffusion=w, last_step="none"), path)
        ends = [
            reverse_sde.last(denoiser, result.x, t_min, step=t_min, kind=kind, w=lambda c, t: w(c, t, 1.0))
            for kind in reverse_sde.LAST_STEPS
        ]
        return result.ok, result.n_evaluations, ends

    ok, calls, x = jax.jit(jax.vmap(run))(jnp.arange(len(FORMS)))
    assert np.asarray(ok).all()
    roundings = 8 * EPS[False] * int(calls[0]) * max(float(jnp.abs(end).max()) for end in x)
    exact = np.stack(np.broadcast_arrays(*GaussianDenoiser(path, MEAN, STD).marginal(t_min)))
    laws = euler_laws(path, uniform(path, FIRST, t_min, 1.0))
    for last_step, end in zip(reverse_sde.LAST_STEPS, x, strict=True):
        for k, law in enumerate(laws[last_step]):
            # Of Euler's steps the law is known; the other methods are off by no more than they.
            bias = np.zeros_like(law) if method == "euler" else np.abs(law - exact) / STD
            check_law(end[k], *(law if method == "euler" else exact), bias)
            check_predictions(end[k], roundings + undecided(path))
