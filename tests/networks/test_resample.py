"""Resampling by 2: the reference numbers, the same filters as plain convolutions, and what they do to simple images."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.networks.blocks import resample
from tests.golden_data import golden_dir

EPS = float(jnp.finfo("float32").eps)
KERNELS = [(1, 3, 3, 1), (1, 2, 5), (2, -1, 3, 4, 1), (3,)]
X = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
W = jax.random.normal(jax.random.key(1), (3, 3, 3, 5))


OPERATIONS = ("upsample", "downsample", "upsample_conv", "conv_downsample")
JITTED = {name: jax.jit(getattr(resample, name), static_argnames="kernel") for name in OPERATIONS}
upsample, downsample, upsample_conv, conv_downsample = JITTED.values()


def relative_error(a, b):
    return np.linalg.norm(np.subtract(a, b)) / np.linalg.norm(b)


def rounding(kernel, channels=None):
    """Of a sum of n terms, each rounded by at most eps / 2 independently, in both of the numbers compared."""
    n = len(kernel or (1, 1)) ** 2 * (1 if channels is None else 9 * channels)
    return EPS * math.sqrt(2 * n)


# --- Reference numbers ---


CASE = re.compile(r"(naive_)?(" + "|".join(OPERATIONS) + r")_2d(?:_(\d+))?(?:_PATCHED)?")
FILES = sorted((golden_dir() / "score_sde/ops").glob("ops_*.npz"))
CASES = [(path, name) for path in FILES for name in np.load(path, allow_pickle=False) if CASE.fullmatch(name)]


@pytest.mark.parametrize("path, name", CASES, ids=[f"{path.stem}-{name}" for path, name in CASES])
def test_resampling_is_that_of_score_sde(path, name):
    arrays = np.load(path, allow_pickle=False)
    nchw = "w_oihw" in arrays
    x, expected = (arrays[key].transpose(0, 2, 3, 1) if nchw else arrays[key] for key in ("x", name))
    w = arrays["w_oihw"].transpose(2, 3, 1, 0) if nchw else arrays["w_hwio"]
    naive, operation, digits = CASE.fullmatch(name).groups()
    kernel = None if naive else tuple(map(int, digits))
    given = (x, w) if "conv" in operation else (x,)
    output = JITTED[operation](*given, kernel)
    tolerance = rounding(kernel, x.shape[-1] if "conv" in operation else None)
    assert output.shape == expected.shape
    assert relative_error(output, expected) < tolerance


# --- Other ways to say the same ---


def plain_conv(x, w, padding=(1, 1), stride=1, **options):
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, (stride,) * 2, (padding,) * 2, dimension_numbers=dimensions, **options)


def filtered(x, kernel, gain, padding, **options):
    """Every channel convolved with the outer product of the kernel: one depthwise convolution."""
    taps = np.array(kernel, float)[::-1] / sum(kernel)  # lax correlates
    c = x.shape[-1]
    w = np.broadcast_to(gain * np.outer(taps, taps)[:, :, None, None], (len(taps), len(taps), 1, c))
    return plain_conv(x, jnp.asarray(w), padding, feature_group_count=c, **options)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_filters_are_depthwise_convolutions(kernel):
    k = len(kernel)
    with jax.enable_x64(True):
        x = jnp.asarray(X, float)
        up = filtered(x, kernel, 4, ((k + 1) // 2, k // 2), lhs_dilation=(2, 2))
        down = filtered(x, kernel, 1, ((k - 1) // 2, (k - 2) // 2), stride=2)
        assert relative_error(upsample(x, kernel), up) < 1e-14
        assert relative_error(downsample(x, kernel), down) < 1e-14


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_fused_forms_are_both_steps_on_an_image_without_end(kernel):
    margin = 2 * len(kernel)  # zeros around the image: as far as any filter reaches
    with jax.enable_x64(True):
        x, w = jnp.asarray(X, float), jnp.asarray(W, float)
        endless = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        up = plain_conv(upsample(endless, kernel), w)[:, 2 * margin : -2 * margin, 2 * margin : -2 * margin]
        down = downsample(plain_conv(endless, w), kernel)[:, margin // 2 : -margin // 2, margin // 2 : -margin // 2]
        assert relative_error(upsample_conv(x, w, kernel), up) < 1e-14
        assert relative_error(conv_downsample(x, w, kernel), down) < 1e-14


def test_without_a_kernel_pixels_are_repeated_and_averaged():
    assert jnp.array_equal(upsample(X), jnp.repeat(jnp.repeat(X, 2, axis=1), 2, axis=2))
    assert jnp.array_equal(downsample(upsample(X)), X)
    tolerance = 4 * EPS  # a mean of four
    np.testing.assert_allclose(downsample(X)[:, 1, 2], X[:, 2:4, 4:6].mean(axis=(1, 2)), atol=tolerance)
    # The filter (1, 1) does the same.
    assert relative_error(upsample(X, (1, 1)), upsample(X)) < rounding((1, 1))
    assert relative_error(downsample(X, (1, 1)), downsample(X)) < rounding((1, 1))


def test_without_a_kernel_convolutions_see_zeros():
    assert relative_error(upsample_conv(X, W), plain_conv(upsample(X), W)) < rounding(None, 3)
    # Stride 2: below and to the right only, so that the first window starts at the first pixel.
    padded = jnp.pad(X, ((0, 0), (0, 1), (0, 1), (0, 0)))
    windows = [[padded[:, i : i + 3, j : j + 3] for j in range(0, 6, 2)] for i in range(0, 4, 2)]
    expected = jnp.stack([jnp.stack([jnp.einsum("bhwc,hwcd->bd", v, W) for v in row], 1) for row in windows], 1)
    assert relative_error(conv_downsample(X, W), expected) < rounding(None, 3)


@pytest.mark.parametrize("kernel", [(1, 3, 3, 1), (4, 2, 1, 3), (1, 1, 1, 1)], ids=str)
def test_filters_keep_constants_inside_and_fade_at_the_border(kernel):
    # Of these kernels the even and the odd taps weigh the same, so that both phases of the larger image do.
    x = jnp.full((1, 16, 16, 1), 3.0)
    for image in (upsample(x, kernel), downsample(x, kernel)):
        inside = image[:, 3:-3, 3:-3] if image.shape[1] > 16 else image[:, 2:-2, 2:-2]
        np.testing.assert_allclose(inside, 3.0, rtol=len(kernel) * EPS)
        assert float(jnp.abs(image[:, 0]).max()) < 3.0


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dtype_is_kept(dtype):
    x, w = X.astype(dtype), W.astype(dtype)
    for kernel in (None, (1, 3, 3, 1)):
        outputs = [f(x, kernel) for f in (upsample, downsample)]
        outputs += [f(x, w, kernel) for f in (upsample_conv, conv_downsample)]
        assert {output.dtype for output in outputs} == {jnp.dtype(dtype)}
