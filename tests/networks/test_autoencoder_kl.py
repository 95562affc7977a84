"""The latents' Gaussian against closed forms and reference numbers; the autoencoder's sizes and shapes."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.errors import UserError
from score_flow.model import count_parameters
from score_flow.networks.autoencoder_kl import AutoencoderKL, DiagonalGaussian
from tests.golden_data import golden_dir

GAUSSIAN = golden_dir() / "autoencoder_kl" / "diagonal_gaussian.npz"
SMALL = AutoencoderKL(channels=(4, 8), layers_per_block=1, latent_channels=3, in_channels=2, out_channels=5, groups=2)
MEAN, LOG_VARIANCE, OTHER_MEAN, OTHER_LOG_VARIANCE = np.random.default_rng(0).normal(size=(4, 2, 3, 5, 2))


def shapes(network, x_shape, method=None):
    """(output, parameters) of a batch; nothing is computed."""
    init = partial(network.init_with_output, method=method)
    output, variables = jax.eval_shape(init, jax.random.key(0), jnp.zeros(x_shape))
    return output, variables["params"]


def nhwc(x):
    return jnp.asarray(x.transpose(0, 2, 3, 1), jnp.float64)


@pytest.mark.skipif(not GAUSSIAN.exists(), reason="no reference numbers here")
def test_gaussian_is_the_references():
    with jax.enable_x64(True), np.load(GAUSSIAN, allow_pickle=False) as arrays:
        given = {name: nhwc(arrays[name]) for name in ("parameters", "parameters2", "eps", "nll_at")}
        third = nhwc(arrays["parameters2"] * np.float32(0.5) + np.float32(0.1))
        moments = (given["parameters"], given["parameters2"], third)
        law, law2, law3 = (DiagonalGaussian.from_moments(m) for m in moments)
        ours = {
            "mean64": law.mean,
            "logvar64": law.log_variance,
            "std64": law.std,
            "var64": law.variance,
            "sample64": law.sample(given["eps"]),
            "mode64": law.mode,
            "kl64": law.kl(),
            "nll2_64": law2.nll(given["nll_at"]),
            "kl_2_vs_3_64": law2.kl(law3),
        }
        assert set(ours) | set(given) == set(arrays)
        for name, value in ours.items():
            reference = arrays[name]
            value = value.transpose(0, 3, 1, 2) if value.ndim == 4 else value
            # Elementwise: exponents reach 30, whose rounding an exponential passes on.
            np.testing.assert_allclose(value, reference, rtol=1e-13, err_msg=name)


def test_kl_is_the_mean_difference_of_log_densities():
    law, other = DiagonalGaussian(MEAN, LOG_VARIANCE), DiagonalGaussian(OTHER_MEAN, OTHER_LOG_VARIANCE)
    n = 20_000
    with jax.enable_x64(True):
        x = jax.vmap(law.sample)(np.random.default_rng(1).normal(size=(n, *MEAN.shape)))
        standard = DiagonalGaussian(jnp.zeros_like(MEAN), jnp.zeros_like(MEAN))
        for q, kl in ((other, law.kl(other)), (standard, law.kl())):
            ratios = jax.vmap(lambda x, q=q: q.nll(x) - law.nll(x))(x)
            standard_error = ratios.std(axis=0) / math.sqrt(n)
            assert (jnp.abs(ratios.mean(axis=0) - kl) < 4 * standard_error).all()
        np.testing.assert_allclose(law.kl(law), 0.0, atol=1e-12)
        np.testing.assert_allclose(law.kl(standard), law.kl(), rtol=1e-12)


def test_log_variance_is_clamped():
    law = DiagonalGaussian.from_moments(
        jnp.concatenate([jnp.full((1, 1, 1, 2), 50.0), jnp.array([[[[-99.0, 99.0]]]])], -1)
    )
    assert law.mean.tolist() == [[[[50.0, 50.0]]]]
    assert law.log_variance.tolist() == [[[[-30.0, 20.0]]]]


def test_published_size():
    # Stable Diffusion's, as counted by the project that publishes it.
    latent, params = shapes(AutoencoderKL(), (1, 256, 256, 3), "encode")
    assert latent.mean.shape == (1, 32, 32, 4)
    _, params = shapes(AutoencoderKL(), (1, 64, 64, 3))
    assert count_parameters(params) == 83_653_863


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shapes(dtype):
    network = SMALL.clone(dtype=dtype)
    latent, _ = shapes(network, (2, 6, 10, 2), "encode")
    image, _ = shapes(network, (2, 3, 5, 3), "decode")
    assert latent.mean.shape == latent.log_variance.shape == (2, 3, 5, 3)
    assert image.shape == (2, 6, 10, 5)
    assert image.dtype == latent.mean.dtype == jnp.float32


def test_quant_convs_are_two_maps_of_channels():
    with_maps, without = (shapes(SMALL.clone(quant_convs=q), (1, 2, 2, 2))[1] for q in (True, False))
    assert set(with_maps) - set(without) == {"quant_conv", "post_quant_conv"}
    assert count_parameters(with_maps) - count_parameters(without) == 6 * 7 + 3 * 4


@pytest.mark.slow
def test_examples_do_not_mix_and_bfloat16_is_near():
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((3, 4, 6, 2)), jnp.float32)
    params = jax.tree.map(lambda leaf: 0.2 * random.standard_normal(leaf.shape, np.float32), shapes(SMALL, x.shape)[1])
    run = jax.jit(lambda x, dtype: SMALL.clone(dtype=dtype).apply({"params": params}, x), static_argnames="dtype")
    out = run(x, "float32")
    alone = run(x.at[1:].set(7.0), "float32")
    # About ten layers, each of which rounds by half an eps.
    np.testing.assert_allclose(alone[0], out[0], rtol=0, atol=10 * np.finfo("float32").eps * jnp.abs(out).max())
    error = jnp.linalg.norm(run(x, "bfloat16") - out) / jnp.linalg.norm(out)
    assert 0 < error < 10 * jnp.finfo("bfloat16").eps


@pytest.mark.parametrize(
    "fields, shape, message",
    [
        ({}, (1, 5, 4, 2), r"multiples of 2, got shape \(1, 5, 4, 2\)"),
        ({}, (1, 4, 4, 3), r"\(b, h, w, 2\)"),
        ({"groups": 3}, (1, 4, 4, 2), r"groups=3, got \(4, 8\)"),
    ],
)
def test_impossible_ones_are_refused(fields, shape, message):
    with pytest.raises(UserError, match=message):
        shapes(SMALL.clone(**fields), shape)


@pytest.mark.slow
def test_pixels_in_other_units_are_the_same_network():
    """centered = False: it is shown (x + 1)/2, and what it makes is of those."""
    x = jax.random.uniform(jax.random.key(0), (1, 4, 4, 2), minval=-1.0)
    params = jax.jit(SMALL.init)(jax.random.key(1, impl="rbg"), x)["params"]

    def apply(centered, value, method):
        return SMALL.clone(centered=centered).apply({"params": params}, value, method=method)

    np.testing.assert_allclose(apply(False, x, "encode").mean, apply(True, (x + 1) / 2, "encode").mean, rtol=1e-6)
    z = jax.random.normal(jax.random.key(2), (1, 2, 2, 3))
    np.testing.assert_allclose(apply(False, z, "decode"), 2 * apply(True, z, "decode") - 1, rtol=1e-6)
