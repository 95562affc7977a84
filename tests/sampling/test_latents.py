"""Latents: encoded, decoded, interpolated, found again by DDIM; and the temperature of what samples start from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling.base import example_keys
from sampling.encoding import ddim_flow, decode, encode, invert, slerp
from sampling.flow import Solver
from sampling.guidance import guide
from sampling.guided import Tempered
from sampling.heun import build as heun
from score_flow.paths.linear import Linear
from score_flow.paths.vp import VP
from score_flow.process.grid import log_snr, uniform
from tests.discover import builds
from tests.exact import GaussianDenoiser, MixtureDenoiser

T_MIN, T_MAX = 1e-5, 1.0  # of config.eval
RNG = np.random.default_rng(0)


def except_slow(*slow):
    """Every path; most of a test is compilation, and one path is much like another."""
    marked = [pytest.param(n, marks=[pytest.mark.slow] * (n in slow)) for n in builds("score_flow.paths")]
    return pytest.mark.parametrize("name", marked)


def there_and_back(path, solver):
    """(x0, z, decoded x0) of data from a mixture of Gaussians, each example on its own steps."""
    rng = np.random.default_rng(0)
    means = jnp.asarray(rng.normal(size=(3, 2)), float)
    denoiser = MixtureDenoiser(path, means, 0.3)
    x0 = jnp.asarray(means[np.arange(6) % 3] + 0.3 * rng.normal(size=(6, 2)), float)

    @jax.jit
    def run(x0):
        z, there = encode(denoiser, x0, solver, t_min=T_MIN, t_max=T_MAX)
        back, again = decode(denoiser, z, solver, t_min=T_MIN, t_max=T_MAX)
        return z, back, there.ok & again.ok

    z, back, ok = run(x0)
    assert np.asarray(ok).all()
    return x0, z, back


@except_slow("ve", "subvp", "gvp", "ddpm", "vp")
def test_a_round_trip_returns_the_data(name):
    x0, z, back = there_and_back(builds("score_flow.paths")[name](), Solver(rtol=1e-5, atol=1e-5))
    assert np.abs(back - x0).max() < 1e-3
    assert np.abs(z - x0).max() > 0.1


@except_slow("vp", "ve", "subvp", "gvp", "ddpm")
def test_a_round_trip_is_exact_in_float64(name):
    with jax.enable_x64(True):
        # The derivatives of a chain's path jump at each of its thousand knots: many steps.
        solver = Solver("dopri8", rtol=1e-11, atol=1e-11, max_steps=2**16)
        x0, _, back = there_and_back(builds("score_flow.paths")[name](), solver)
        assert np.abs(back - x0).max() < 1e-8


def test_latents_of_gaussian_data_are_the_exact_ones():
    with jax.enable_x64(True):
        denoiser, x0 = GaussianDenoiser(VP()), jnp.linspace(-0.5, 1.5, 8).reshape(2, 4)
        z, _ = encode(denoiser, x0, Solver("dopri8", rtol=1e-10, atol=1e-10), t_min=T_MIN, t_max=T_MAX)
        (m0, s0), (m1, s1) = denoiser.marginal(T_MIN), denoiser.marginal(T_MAX)
        np.testing.assert_allclose(z, m1 + s1 / s0 * (x0 - m0), atol=1e-8)


def test_slerp_keeps_length_and_divides_the_angle():
    with jax.enable_x64(True):
        angle, share = np.array([0.1, 1.0, 2.5]), jnp.array([0.25, 0.5, 0.9])
        z0, z1 = (jnp.asarray(np.stack([np.cos(a), np.sin(a)], axis=-1)) for a in (0 * angle, angle))
        expected = np.stack([np.cos(share * angle), np.sin(share * angle)], axis=-1)
        np.testing.assert_allclose(slerp(3 * z0, 3 * z1, share), 3 * expected, rtol=1e-12)
        np.testing.assert_allclose(slerp(z0, z1, 0.5)[1], [np.cos(0.5), np.sin(0.5)], rtol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1.0 + 1e-6, 2.0, -1.0, -0.5])
def test_slerp_of_parallel_vectors_is_linear(scale):
    z = jnp.asarray(RNG.normal(size=(2, 3, 4)), jnp.float32)
    np.testing.assert_allclose(slerp(z, scale * z, 0.25), (0.75 + 0.25 * scale) * z, rtol=1e-5, atol=1e-6)


def test_slerp_of_nothing_is_finite():
    zero = jnp.zeros((2, 3))
    np.testing.assert_array_equal(slerp(zero, zero, 0.3), zero)
    assert np.isfinite(slerp(zero, zero + 1, 0.3)).all()


def test_slerp_ends_at_its_ends():
    z0, z1 = jnp.asarray(RNG.normal(size=(2, 5, 4, 4, 1)), jnp.float32)
    np.testing.assert_array_equal(slerp(z0, z1, 0.0), z0)
    np.testing.assert_allclose(slerp(z0, z1, 1.0), z1, atol=1e-6)


@pytest.mark.parametrize("path", [VP(), Linear()], ids=["vp", "linear"])
@pytest.mark.parametrize("grid", [uniform, log_snr])
def test_inverted_ddim_returns_the_data_to_first_order(path, grid):
    """Halving the steps halves the error of x0, and that of the latents beside the flow's."""
    with jax.enable_x64(True):
        denoiser, x0, ends = GaussianDenoiser(path), jnp.linspace(-0.5, 1.5, 8).reshape(2, 4), (1e-2, 0.95)
        (m0, s0), (m1, s1) = denoiser.marginal(ends[0]), denoiser.marginal(ends[1])
        errors = []
        for n in (100, 200):
            times = grid(path, n, *ends)
            z = invert(denoiser, x0, times)
            off = z - (m1 + s1 / s0 * (x0 - m0)), ddim_flow(denoiser, z, times) - x0
            errors.append([float(jnp.abs(error).max()) for error in off])
    np.testing.assert_allclose(np.divide(*errors), 2.0, atol=0.15)


def test_temperature_scales_what_samples_start_from():
    denoiser, keys = GaussianDenoiser(VP()), example_keys(0, jnp.arange(3))
    cool = guide(0, 1, (-1.0, 1.0), temperature=0.5)(denoiser)
    np.testing.assert_array_equal(cool.start(keys, (4,), 0.9), 0.5 * denoiser.start(keys, (4,), 0.9))
    assert guide(0, 1, (-1.0, 1.0), temperature=1.0)(denoiser) is denoiser
    # At 0 all samples of a deterministic sampler are the one that the prior's mean becomes.
    x = jax.jit(lambda keys: heun(n_steps=4)(keys, Tempered(denoiser, 0.0), (4,)).x)(keys)
    np.testing.assert_allclose(x, np.broadcast_to(x[0, 0], x.shape), atol=1e-6)
