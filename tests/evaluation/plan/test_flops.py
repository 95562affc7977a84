"""The jaxpr counter against closed forms."""

import jax
import jax.numpy as jnp
import pytest

from evaluation.plan.flops import flops
from score_flow.networks.sit import SiT

M, K, N = 6, 10, 14
X, W = jnp.ones((M, K)), jnp.ones((K, N))
IMAGES, KERNEL = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))


def conv(x, w, stride=1, groups=1):
    layout = ("NHWC", "HWIO", "NHWC")
    strides = (stride, stride)
    return jax.lax.conv_general_dilated(x, w, strides, "SAME", dimension_numbers=layout, feature_group_count=groups)


def squares(f):
    return lambda *args: jnp.sum(f(*args) ** 2)


def test_matmul():
    assert flops(jnp.matmul, X, W) == 2 * M * K * N
    assert flops(jnp.matmul, jnp.ones((4, M, K)), jnp.ones((4, K, N))) == 4 * 2 * M * K * N
    assert flops(jnp.matmul, jax.ShapeDtypeStruct((M, K), float), jax.ShapeDtypeStruct((K, N), float)) == 2 * M * K * N
    assert flops(lambda x: jnp.sin(x) + x**2, X) == 0


@pytest.mark.parametrize(
    ("kwargs", "kernel", "taps"),
    [
        ({}, KERNEL, 8 * 8 * 9 * 3),
        ({"stride": 2}, KERNEL, 4 * 4 * 9 * 3),
        ({"groups": 3}, jnp.ones((3, 3, 1, 6)), 8 * 8 * 9 * 1),
    ],
    ids=["plain", "strided", "depthwise"],
)
def test_convolution_and_its_gradients(kwargs, kernel, taps):
    """2 x batch x outputs x taps x channels; each of the two gradients costs the same again."""

    def f(x, w):
        return conv(x, w, **kwargs)

    expected = 2 * len(IMAGES) * taps * kernel.shape[-1]
    assert flops(f, IMAGES, kernel) == expected
    assert flops(jax.value_and_grad(squares(f), (0, 1)), IMAGES, kernel) == 3 * expected


def test_scan_counts_every_round():
    square = jnp.ones((K, K))

    def f(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=7)[0]

    assert flops(f, X, square) == 7 * 2 * M * K * K
    # Backwards: the gradients of x and of w, in each round.
    assert flops(jax.value_and_grad(squares(f), (0, 1)), X, square) == 3 * 7 * 2 * M * K * K


def test_gradient_of_a_matmul():
    """Forward, weight gradient and input gradient cost the same; the last is not computed when nobody asks."""
    assert flops(jax.value_and_grad(squares(jnp.matmul), (0, 1)), X, W) == 3 * 2 * M * K * N
    assert flops(jax.value_and_grad(squares(jnp.matmul), 1), X, W) == 2 * 2 * M * K * N


def test_through_jit_remat_and_custom_rules():
    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))
    one = 2 * M * K * N
    assert flops(jax.jit(product), X, W) == one
    assert flops(jax.value_and_grad(squares(jax.jit(product)), (0, 1)), X, W) == 3 * one
    remat = jax.checkpoint(lambda x, w: jnp.sin(x @ w))
    assert flops(remat, X, W) == one
    assert flops(jax.value_and_grad(squares(remat), (0, 1)), X, W) == 4 * one  # the product once more, for cos of it


def test_branches_and_loops():
    branches = [lambda x: x @ x.T, lambda x: (x @ x.T) @ (x @ x.T), lambda x: jnp.zeros((M, M))]
    assert flops(lambda i, x: jax.lax.switch(i, branches, x), 0, X) == 2 * 2 * M * K * M + 2 * M**3
    with pytest.raises(ValueError, match="while"):
        flops(lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ x, x), jnp.ones((K, K)))
    assert flops(lambda x: jax.lax.while_loop(lambda x: x < 1, lambda x: 2 * x, x), 0.1) == 0


SIZES = {"S": (384, 12, 6, 6.06e9), "XL": (1152, 28, 16, 118.64e9)}


@pytest.mark.parametrize("size", SIZES)
def test_published_counts(size):
    """DiT-S/2 and XL/2 on 32 x 32 x 4 latents (Peebles & Xie 2022, tables 1 and 4, which count multiply-adds)."""
    width, depth, heads, multiply_adds = SIZES[size]
    network = SiT(2, width, depth, heads, num_classes=1000, out_channels=8)
    x, t, label = jnp.zeros((1, 32, 32, 4)), jnp.zeros(1), {"label": jnp.zeros(1, jnp.int32)}
    params = jax.eval_shape(network.init, jax.random.key(0), x, t, label)
    assert flops(network.apply, params, x, t, label) / 2 == pytest.approx(multiply_adds, rel=2e-3)
