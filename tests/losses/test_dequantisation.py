"""Dequantisers bound the likelihood of levels: against exact probabilities, offsets and entropies."""

import math
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import norm

from sampling.base import example_keys
from sampling.flow import Solver
from sampling.likelihood import bits_per_dim, log_likelihood
from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.data.pipeline import indices
from score_flow.data.scaling import Scaling
from score_flow.errors import UserError
from score_flow.losses.dequantisation import (
    DecoderDequantiser,
    Dequantisation,
    TruncatedNormalDequantiser,
    UniformDequantiser,
    VariationalDequantiser,
)
from score_flow.model import Model, Preconditioning
from score_flow.networks.flowpp import FlowppDequantiser
from score_flow.numerics import expand
from score_flow.paths.linear import Linear
from score_flow.paths.vp import VP
from score_flow.process.grid import noisy_end
from score_flow.process.prediction import PREDICTIONS
from score_flow.process.times import log_snr
from score_flow.training.dequantiser import NETWORKS, build_network, dequantisation
from tests.exact import GaussianDenoiser, MixtureDenoiser
from tests.launch import TINY
from tests.toy_losses import as_given, denoising

N, EPS = 4000, np.finfo(np.float32).eps
KEYS = example_keys(0, jnp.arange(N))
SCALINGS = [Scaling(), Scaling(0.0, 1.0), Scaling(-1.0, 1.0, 17), Scaling(0.0, 50.0, 3), Scaling(-3.0, -1.0, 2)]


class Identity(nn.Module):
    """u uniform on the cube, in a flow's words."""

    @nn.compact
    def __call__(self, x, noise, *, deterministic=True):
        return jax.scipy.special.ndtr(noise), jnp.zeros(len(x))


class Skewed(nn.Module):
    """u with density (1 + a) u^a, elementwise, a by the level."""

    @nn.compact
    def __call__(self, x, noise, *, deterministic=True):
        a = 0.5 + x
        u = jax.scipy.special.ndtr(noise) ** (1 / (1 + a))
        return u, jnp.sum(jnp.log1p(a) + a * jnp.log(u), axis=(1, 2, 3))


def dequantizers(scaling):
    return {
        "uniform": UniformDequantiser(scaling),
        "variational": VariationalDequantiser(Skewed(), scaling, {}),
        "uniform around levels": UniformDequantiser(replace(scaling, centred=True)),
        "variational around levels": VariationalDequantiser(Skewed(), replace(scaling, centred=True), {}),
        "decoder of points": DecoderDequantiser(Linear(), scaling, 0.3, False),
        "decoder of cells": DecoderDequantiser(Linear(), scaling, 0.05, True),
        "truncated normal": TruncatedNormalDequantiser(Linear(), scaling, 0.3, False),
    }


def images(levels, shape=(2, 2, 1), n=N):
    return jnp.asarray(np.random.default_rng(0).integers(0, levels, (n, *shape)), jnp.uint8)


@jax.jit
def drawn(dequantizer, keys, levels):
    return dequantizer(keys, levels)


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_uniform_offset_is_exact(scaling):
    """Under a density that is flat over the whole range every image has log2(levels) bits a dimension."""
    levels = images(scaling.levels, n=64)
    x, bits = drawn(UniformDequantiser(scaling), KEYS[:64], levels)
    log_p = -levels[0].size * math.log(scaling.high - scaling.low)
    got = bits_per_dim(np.full(64, log_p), levels[0].size, np.asarray(bits, np.float64))
    np.testing.assert_allclose(got, math.log2(scaling.levels), rtol=0, atol=16 * EPS)
    # A cell's end may round to the next cell's start.
    off = np.abs(np.asarray(scaling.quantise(x, True), int) - np.asarray(levels, int))
    assert off.max() <= 1 and off.mean() < scaling.levels * 8 * EPS


def test_variational_identity_is_uniform():
    """Bit by bit the uniform figure of the same u."""
    scaling = Scaling(-1.0, 1.0, 17)
    levels = images(17, n=64)
    noise = jax.vmap(lambda key: jax.random.normal(key, (2, 2, 1)))(KEYS[:64])
    x, bits = VariationalDequantiser(Identity(), scaling, {})(KEYS[:64], levels)
    np.testing.assert_array_equal(x, scaling.dequantise(levels, jax.scipy.special.ndtr(noise)))
    np.testing.assert_array_equal(bits, UniformDequantiser(scaling)(KEYS[:64], levels).bits)


def gaussian(x):
    return norm.logpdf(np.asarray(x, np.float64), 0.1, 0.4).reshape(len(x), -1).sum(1)


@pytest.mark.parametrize("kind", dequantizers(SCALINGS[0]))
def test_each_estimates_the_probability_of_the_levels(kind):
    """E_q[p(x) P(v | x) / q(x | v)] = int p(x) P(v | x) dx, and the bound is above its -log2, by Jensen."""
    scaling = Scaling(-1.0, 1.0, 3)
    level = jnp.asarray([[[0], [2]], [[1], [1]]], jnp.uint8)
    x, bits = drawn(dequantizers(scaling)[kind], KEYS, jnp.broadcast_to(level, (N, 2, 2, 1)))
    log_ratio = gaussian(x) - np.asarray(bits, np.float64) * 4 * math.log(2)
    grid = np.linspace(-4, 4, 200_001)
    p, v = np.exp(norm.logpdf(grid, 0.1, 0.4)), np.arange(3)[:, None]
    if kind == "decoder of points":
        q = norm.pdf(grid, 0.7 * (v - 1), 0.3)
    elif kind == "decoder of cells":
        low = 0.95 * (-1 + 2 * v / 3)
        q = norm.cdf((grid - low) / 0.05) - norm.cdf((grid - low - 0.95 * 2 / 3) / 0.05)
    elif kind == "truncated normal" or kind.endswith("around levels"):
        width = 0.7 if kind == "truncated normal" else 1.0
        q = (abs(grid - width * (v - 1)) < width / 2).astype(float)
    else:
        q = ((grid >= -1 + 2 * v / 3) & (grid < -1 + 2 * (v + 1) / 3)).astype(float)
    total = q.sum(0)
    read = np.where(total > 0, q / np.where(total > 0, total, 1), 0)
    each = (p * read).sum(1) * (grid[1] - grid[0])
    expected = math.prod(each[int(k)] for k in np.ravel(level))
    estimate = np.exp(log_ratio)
    error = estimate.std(ddof=1) / math.sqrt(N)
    assert abs(estimate.mean() - expected) < 4 * error and error < 0.12 * expected
    bound = -log_ratio
    assert bound.mean() > -math.log(expected) - 4 * bound.std(ddof=1) / math.sqrt(N)


# A data set of four images of two pixels with three levels, and how often each is seen.
DATA, SHARES = np.array([[0, 0], [0, 2], [1, 1], [2, 0]], np.uint8), np.array([4, 2, 1, 1]) / 8
ENTROPY = -(SHARES * np.log2(SHARES)).sum() / 2  # bits a dimension
TINY_SCALING = Scaling(-1.0, 1.0, 3)


def exact_log_p(x, t, dequantised):
    """log density of x_t on the linear path, of the points or of the cells of DATA."""
    x, alpha = np.asarray(x, np.float64).reshape(len(x), 1, 2), 1 - t
    if not dequantised:
        each = norm.pdf(x, alpha * (DATA - 1.0), t)
    else:
        low, width = -1 + 2 * DATA / 3, 2 / 3
        inside = (x >= low) & (x < low + width)
        each = inside / width if t == 0 else _cells(x, alpha, low, width, t)
    return np.log(each.prod(2) @ SHARES)


def _cells(x, alpha, low, width, t):
    return (norm.cdf((x - alpha * low) / t) - norm.cdf((x - alpha * (low + width)) / t)) / (alpha * width)


def seen(n=N):
    chosen = np.random.default_rng(1).choice(len(DATA), n, p=SHARES)
    return jnp.asarray(DATA[chosen].reshape(n, 1, 2, 1)), -np.log2(SHARES[chosen]) / 2


def test_all_agree_with_the_entropy_of_discrete_data():
    """With the exact density: uniform has no gap, the decoder's is a bound's and closes with t."""
    levels, exact = seen()
    uniform = drawn(UniformDequantiser(TINY_SCALING), KEYS, levels)
    identity = drawn(VariationalDequantiser(Identity(), TINY_SCALING, {}), KEYS, levels)
    for x, bits in (uniform, identity):
        got = bits_per_dim(exact_log_p(x, 0.0, True), 2, np.asarray(bits, np.float64))
        np.testing.assert_allclose(got, exact, rtol=0, atol=16 * EPS)
    assert abs(exact.mean() - ENTROPY) < 4 * exact.std() / math.sqrt(N)
    for dequantised, times in ((False, (0.25, 0.15)), (True, (0.02, 0.002))):
        gaps = []
        for t in times:
            x, bits = drawn(DecoderDequantiser(Linear(), TINY_SCALING, t, dequantised), KEYS, levels)
            gap = bits_per_dim(exact_log_p(x, t, dequantised), 2, np.asarray(bits, np.float64)) - exact
            error = gap.std(ddof=1) / math.sqrt(N)
            print(f"dequantised {dequantised}, t = {t}: {gap.mean():.5f} +- {error:.5f} bits/dim above the entropy")
            assert gap.mean() > -4 * error
            gaps.append(gap.mean())
        assert gaps[1] < gaps[0] / 2 and gaps[1] < 0.05


def test_decoder_on_the_flow_is_the_closed_form():
    """The ODE from the decoder's time with the exact score: log p to 1e-3 nats."""
    n, t = 16, 0.15
    levels, exact = seen(n)
    x, bits = drawn(DecoderDequantiser(Linear(), TINY_SCALING, t, False), KEYS[:n], levels)
    points = np.repeat(DATA, (SHARES * 8).astype(int), axis=0) - 1.0
    denoiser = MixtureDenoiser(Linear(), jnp.asarray(points, jnp.float32), 0.0)
    flat, solver = x.reshape(n, 2), Solver("dopri5", 1e-5, 1e-5, per_example=False)
    result = jax.jit(lambda x: log_likelihood(KEYS[:n], denoiser, x, solver=solver, t_min=t, probe="exact"))(flat)
    np.testing.assert_allclose(result.log_prob, exact_log_p(flat, t, False), rtol=0, atol=1e-3)
    gap = bits_per_dim(np.asarray(result.log_prob, np.float64), 2, np.asarray(bits, np.float64)) - exact
    assert abs(gap.mean()) < 0.1


class ExactNoise(nn.Module):
    """E[noise | x_t] of data N(mean, 0.3^2 I) on the linear path; the mean is its parameter."""

    num_classes: int = 0

    @nn.compact
    def __call__(self, x, time, condition=None, *, deterministic=True):
        mean = self.param("mean", nn.initializers.constant(0.5), ())
        alpha, sigma = (expand(f(time), x) for f in (Linear().alpha, Linear().sigma))
        return sigma * (x - alpha * mean) / ((alpha * 0.3) ** 2 + sigma**2)


T_MIN, T_MAX = 1e-3, noisy_end(Linear(), 1.0)


def loss_of(network, scaling, score):
    model = Model(ExactNoise(), Linear(), PREDICTIONS["noise"], Preconditioning(time_scale=1.0))
    matching = denoising(model, log_snr(Linear(), T_MIN, T_MAX), "likelihood", "sum")
    return Dequantisation(network, scaling, as_given, matching, t_min=T_MIN, t_max=T_MAX, score=score)


def test_the_bound_of_an_exact_model_is_its_cross_entropy():
    """-E log p(x_{t_min}), to the standard error, and the share of N(m, s^2 I) takes most of the noise out."""
    loss = loss_of(Identity(), Scaling(), {"mean": jnp.asarray(0.5)})
    x = 0.5 + 0.3 * jax.random.normal(jax.random.key(1), (N, 2, 2, 1))
    looked_at = jax.jit(lambda loss: loss.look(jax.random.key(0), x.shape))(loss)
    nats, t = jax.jit(type(loss).bound)(loss, x, *looked_at), looked_at[0]
    mean, std = GaussianDenoiser(Linear()).marginal(T_MIN)
    x = np.asarray(x, np.float64)
    squares = ((1 - T_MIN) * x - mean) ** 2 + T_MIN**2
    expected = (0.5 * squares / std**2 + 0.5 * math.log(2 * math.pi * std**2)).sum(axis=(1, 2, 3))
    difference = np.asarray(nats, np.float64) - expected
    error = difference.std(ddof=1) / math.sqrt(N)
    plain = 0.5 * (loss.score_matching.model.path.log_snr(jnp.asarray(T_MIN)) + 10) * math.sqrt(2 * 4 / N)
    print(f"{difference.mean():.4f} +- {error:.4f} nats; the deviation of |n|^2 alone would be {plain:.4f}")
    assert abs(difference.mean()) < 4 * error and error < plain / 2
    assert t.min() >= T_MIN * (1 - 8 * EPS) and t.max() <= 1


def test_the_loss_is_the_bound_in_bits_per_dimension():
    """And of a worse model it is larger; weights of the model are an argument of what is compiled."""
    scaling, levels = Scaling(-1.0, 1.0, 17), images(17)
    good = loss_of(Identity(), scaling, {"mean": jnp.asarray(0.0)})
    worse = good.replace(score={"mean": jnp.asarray(0.5)})
    traced = []

    @jax.jit
    def program(loss, key):
        traced.append(loss)
        return loss({}, (), key, {"image": levels}, train=False)[1].losses

    first, second = (program(loss, jax.random.key(0)) for loss in (good, worse))
    assert [isinstance(loss.score["mean"], jax.core.Tracer) for loss in traced] == [True]  # no constant of the program
    assert second.mean() > first.mean() + 4 * np.std(np.asarray(second - first)) / math.sqrt(N)
    flow_key, _, bound_key = jax.random.split(jax.random.key(0), 3)
    bits = UniformDequantiser(scaling)(jax.random.split(flow_key, N), levels).bits
    u = jax.scipy.special.ndtr(jax.vmap(lambda k: jax.random.normal(k, (2, 2, 1)))(jax.random.split(flow_key, N)))
    x = scaling.dequantise(levels, u)
    nats = jax.jit(lambda loss, key: loss.bound(x, *loss.look(key, x.shape)))(good, bound_key)
    np.testing.assert_allclose(first, bits + nats / (4 * math.log(2)), rtol=1e-5, atol=1e-5)


def test_times_end_where_the_signal_does():
    assert noisy_end(VP(), 1.0) == 1.0 and noisy_end(Linear(), 0.9) == 0.9
    assert float(Linear().log_snr(jnp.asarray(noisy_end(Linear(), 1.0)))) == pytest.approx(-10, abs=1e-3)


def settings(*flags):
    return load("configs/digits.py", [*TINY[1:], *flags])


def test_networks_by_name_and_by_size():
    for side, name in ((8, "small"), (32, "cifar10"), (64, "imagenet64")):
        assert build_network(settings().dequantizer, (side, side, 3)) == NETWORKS[name]
    config = settings("--config.dequantizer.name=imagenet32", "--config.dequantizer.blocks=2")
    assert build_network(config.dequantizer, (8, 8, 1)) == NETWORKS["imagenet32"].clone(blocks=2)
    for flag, word in (("name=cifar", "'cifar10'"), ("widht=3", "'width'"), ("width=many", "int")):
        with pytest.raises(UserError, match=word):
            build_network(settings(f"--config.dequantizer.{flag}").dequantizer, (8, 8, 1))


class Remembering(nn.Module):
    """Its parameters are what it is initialised with."""

    @nn.compact
    def __call__(self, x, noise, *, deterministic=True):
        self.param("x", lambda _: x), self.param("noise", lambda _: noise)
        return x, jnp.zeros(len(x))


def test_initial_parameters_are_made_of_the_first_images():
    """Those of the batch of step 0, in [0, 1], beside standard normal noise."""
    config = settings()
    run = experiment(config)
    loss = dequantisation(run, config, {})
    assert isinstance(loss.network, FlowppDequantiser) and loss.produces == "dequantiser"
    first = run.train_source.read(indices(len(run.train_source), 16, seed=run.seed, step=0))
    params = jax.jit(loss.replace(network=Remembering()).init)(jax.random.key(0), first)
    np.testing.assert_allclose(params["x"], first["image"] / 16.0, rtol=EPS)
    noise = np.asarray(params["noise"])
    assert abs(noise.mean()) < 4 / math.sqrt(noise.size) and abs(noise.std() - 1) < 4 / math.sqrt(2 * noise.size)


@pytest.mark.slow
def test_a_trained_dequantiser_is_below_uniform_and_above_the_probability_of_the_cells():
    scaling = Scaling(-1.0, 1.0, 5)
    x0 = 0.5 + 0.3 * jax.random.normal(jax.random.key(3), (N, 2, 2, 1))
    levels = scaling.quantise(x0, True)
    network = NETWORKS["small"].clone(width=16, context_width=8, couplings=2)
    loss = loss_of(network, scaling, {"mean": jnp.asarray(0.5)})
    unit = levels[:256] / 4.0
    params = jax.jit(network.init)(
        jax.random.key(0, impl="rbg"), unit, jax.random.normal(jax.random.key(1), unit.shape)
    )
    params, optimiser = params["params"], optax.adam(3e-3)

    @jax.jit
    def step(params, moments, i):
        batch = jax.lax.dynamic_slice_in_dim(levels, 256 * (i % 15), 256)
        grads = jax.grad(lambda p: loss(p, (), jax.random.key(i), {"image": batch})[0])(params)
        updates, moments = optimiser.update(grads, moments)
        return optax.apply_updates(params, updates), moments

    moments = optimiser.init(params)
    for i in range(400):
        params, moments = step(params, moments, i)
    bits = {}
    kinds = {"uniform": UniformDequantiser(scaling), "variational": VariationalDequantiser(network, scaling, params)}
    for name, dequantizer in kinds.items():
        x, offset = drawn(dequantizer, KEYS, levels)
        log_p = norm.logpdf(np.asarray(x, np.float64), 0.5, 0.3).sum(axis=(1, 2, 3))
        bits[name] = bits_per_dim(log_p, 4, np.asarray(offset, np.float64))
    low = -1 + 0.4 * np.asarray(levels, np.float64)
    cells = -np.log2(norm.cdf(low + 0.4, 0.5, 0.3) - norm.cdf(low, 0.5, 0.3)).mean(axis=(1, 2, 3))
    gain, gap = bits["uniform"] - bits["variational"], bits["variational"] - cells
    print(f"uniform - exact {(bits['uniform'] - cells).mean():.4f}, variational - exact {gap.mean():.4f} bits/dim")
    assert gain.mean() > 4 * gain.std(ddof=1) / math.sqrt(N) and gap.mean() > -4 * gap.std(ddof=1) / math.sqrt(N)
    assert gap.mean() < 0.5 * (bits["uniform"] - cells).mean()
