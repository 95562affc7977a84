"""Every predictor and corrector keeps the contract of sampling.base.Kernel; a file of sampling/kernels/ is tested so.

The data are Gaussian. Of particles whose noise has mean 0, variance 1 and no correlation with them, example by example,
an affine kernel moves the moments as it moves those of the law: without Monte Carlo error.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling.base import Kernel
from score_flow.config import registries
from score_flow.config.hints import parameters_of
from score_flow.paths.gvp import GVP
from score_flow.paths.vp import VP
from score_flow.process.grid import intervals, uniform
from tests.discover import builds
from tests.exact import GaussianDenoiser
from tests.paths.variants import DEFAULTS, EPS

PREDICTORS, CORRECTORS = builds(registries.PREDICTORS), builds(registries.CORRECTORS)
SNR = 0.05


def short(build) -> Kernel:
    """A corrector whose steps are short."""
    return build(snr=SNR) if "snr" in parameters_of(build) else build()


KERNELS = {f"predictor-{name}": build() for name, build in PREDICTORS.items()}
KERNELS |= {f"corrector-{name}": short(build) for name, build in CORRECTORS.items()}
every_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


def law_of(kernel, denoiser, x, s, t, noise):
    """(mean, std) of a kernel's law, of the noise where it asks for it."""
    law = kernel(denoiser, x, s, t)
    return law(noise) if callable(law) else law


def matched(key, x):
    """Noise of mean 0 and variance 1 that does not correlate with x, each example alone."""
    flat = x.reshape(len(x), -1) - x.reshape(len(x), -1).mean(axis=1, keepdims=True)
    z = jax.random.normal(key, flat.shape, x.dtype)
    z = z - z.mean(axis=1, keepdims=True)
    square = jnp.sum(flat**2, axis=1, keepdims=True)
    z = z - jnp.where(square > 0, jnp.sum(z * flat, axis=1, keepdims=True) / square, 0.0) * flat
    return (z / z.std(axis=1, keepdims=True)).reshape(x.shape)


def particles(denoiser, t):
    """Of mean and variance of the marginal at t."""
    mean, std = denoiser.marginal(t)
    return mean + std * matched(jax.random.key(0), jnp.zeros((2, 64)))


@every_kernel
def test_finite_on_every_path(kernel):
    """Also from t = 1, where alpha may be 0, and down to s = 0, where sigma may be."""
    for name, path in DEFAULTS.items():
        x, noise = (path.sigma(jnp.asarray(1.0)) * jax.random.normal(jax.random.key(i), (3, 2, 2, 1)) for i in (0, 1))
        for s, t in ((0.999, 1.0), (0.5, 0.6), (0.0, 1e-3), (0.0, 1.0)):
            mean, std = law_of(kernel, GaussianDenoiser(path), x, jnp.asarray(s), jnp.asarray(t), noise)
            assert mean.shape == x.shape and mean.dtype == x.dtype, name
            assert np.isfinite(mean).all() and np.isfinite(std).all() and (np.asarray(std) >= 0).all(), (name, s, t)
            assert jnp.broadcast_shapes(std.shape, x.shape) == x.shape, name


@every_kernel
def test_each_example_has_its_own_law(kernel):
    """At times of its own, among others and alone: the same, to a few roundings."""
    denoiser, t = GaussianDenoiser(VP()), jnp.asarray([0.2, 0.5, 0.9])
    x, noise = (jax.random.normal(jax.random.key(i), (3, 2, 2, 1)) for i in (0, 1))
    together = [jnp.broadcast_to(part, x.shape) for part in law_of(kernel, denoiser, x, t - 0.05, t, noise)]
    for i in range(3):
        one = slice(i, i + 1)
        alone = law_of(kernel, denoiser, x[one], t[i] - 0.05, t[i], noise[one])
        for ours, whole in zip(alone, together, strict=True):
            np.testing.assert_allclose(jnp.broadcast_to(ours, (1, 2, 2, 1)), whole[one], rtol=1e-5, atol=1e-6)


@every_kernel
def test_one_network_call_at_x_and_t(kernel):
    seen = []

    class Recording(GaussianDenoiser):
        def estimate(self, x, t):
            seen.append((x, t))
            return super().estimate(x, t)

    x, t = jax.random.normal(jax.random.key(0), (3, 4)), jnp.asarray(0.5)
    law_of(kernel, Recording(VP()), x, jnp.asarray(0.45), t, x)
    assert len(seen) == 1
    np.testing.assert_array_equal(seen[0][0], x)
    np.testing.assert_array_equal(jnp.broadcast_to(seen[0][1], 3), jnp.broadcast_to(t, 3))


@pytest.mark.parametrize("path", [VP(), GVP()], ids=["vp", "gvp"])
@pytest.mark.parametrize("name", PREDICTORS)
def test_a_predictor_arrives_at_the_marginal(name, path):
    """Errors of mean and deviation, in units of the latter, stay below 10/n and halve where n doubles, or vanish."""
    start, end, ns = 0.9, 0.05, (100, 200)
    with jax.enable_x64(True):
        denoiser, kernel = GaussianDenoiser(path), PREDICTORS[name]()

        begin = particles(denoiser, start)

        @jax.jit
        def arrived(rows):
            def step(x, row):
                index, (s, t) = row
                noise = matched(jax.random.fold_in(jax.random.key(1), index), x)
                mean, std = law_of(kernel, denoiser, x, s, t, noise)
                return mean + std * noise, None

            x = jax.lax.scan(step, begin, (jnp.arange(len(rows)), rows))[0]
            return jnp.mean(x), jnp.std(x)

        mean, std = denoiser.marginal(end)
        found = [arrived(jnp.asarray(intervals(uniform(path, n, end, start)))) for n in ns]
        errors = np.array([(abs(m - mean), abs(s - std)) for m, s in found]) / std
    assert (errors < 10 / np.array(ns)[:, None]).all()
    assert (errors[1] < np.maximum(0.6 * errors[0], EPS[True] * 1e4)).all()


@pytest.mark.parametrize("path", DEFAULTS.values(), ids=DEFAULTS)
@pytest.mark.parametrize("name", CORRECTORS)
def test_a_corrector_keeps_the_marginal(name, path):
    """It moves x by m, in units of the deviation, and the moments by no more than m^4: Langevin's variance by m^4/4."""
    with jax.enable_x64(True):
        denoiser, t = GaussianDenoiser(path), 0.5
        x, (_, std) = particles(denoiser, t), denoiser.marginal(t)
        noise = matched(jax.random.key(1), x)
        mean, deviation = law_of(short(CORRECTORS[name]), denoiser, x, jnp.asarray(t - 1e-3), jnp.asarray(t), noise)
        after = mean + deviation * noise
        m4 = float(jnp.mean((after - x) ** 2) / std**2) ** 2
        assert m4 > 0
        assert abs(after.mean() - x.mean()) < m4 * std
        assert abs(after.var() - x.var()) < m4 * std**2
