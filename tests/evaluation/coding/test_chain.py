"""A chain codes images in as many bits as its bound says, and gives images and initial bits back."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from evaluation.coding import file
from evaluation.coding.chain import Step, chain_of
from evaluation.coding.stack import Stack
from score_flow.errors import UserError
from score_flow.paths.linear import Linear
from score_flow.paths.log_snr import LogSNR
from score_flow.process.bound import VariationalBound, tables

LEVELS, D = 5, 6
X0 = np.linspace(-1, 1, LEVELS)


def setup(path, n, lanes, cells=16, scale=1.0):
    """The chain of a path and its exact model of evenly distributed levels, whose noise may be taken `scale` times."""
    times = tuple((0.98 * np.arange(1, n + 1) / n).tolist())
    bound = VariationalBound(path, times, "small", decoder="exact", levels=LEVELS)
    rows = tables(path, times)
    alpha = np.cumprod(rows.on_x_s)

    def model(z, i, x0):
        weights = np.exp(-((z[..., None] - alpha[i] * X0) ** 2) / (2 * scale * rows.sigma[i] ** 2))
        guess = (weights * X0).sum(-1) / weights.sum(-1)
        mean = rows.on_x_t[i] * z + rows.on_x0[i] * guess
        std = np.full(z.shape, math.exp(rows.log_fixed_large[i] / 2) if i == 0 else math.exp(rows.log_small[i] / 2))
        bits = None
        if x0 is not None and i:
            bits = ((rows.on_x0[i] * (x0 - guess)) ** 2 / (2 * np.exp(rows.log_small[i]))).mean(1)
        elif x0 is not None:
            float32 = [jnp.asarray(a, jnp.float32) for a in (x0, mean, np.log(std))]
            bits = -np.asarray(bound.log_likelihood(*float32), np.float64).mean(1)
        return Step(mean, std, None if bits is None else bits / math.log(2))

    return chain_of(bound, cells), model, bound, [Stack(7, lane) for lane in range(lanes)]


def images(n, lanes, seed=0):
    return np.random.default_rng(seed).integers(0, LEVELS, (n, lanes, D), np.uint8)


@pytest.mark.parametrize("path", [LogSNR(log_snr_max=6.0), Linear()], ids=["log_snr", "linear"])
def test_images_and_initial_bits_come_back(path):
    """Of two lanes, the last round of which one only has; through the words of a file."""
    chain, model, _, stacks = setup(path, 6, lanes=2)
    data = images(4, 2)
    for i, pair in enumerate(data):
        chain.encode(stacks[: 1 if i == 3 else 2], pair, model, i)
    words, borrowed = file.packed(stacks), [stack.borrowed for stack in stacks]
    stacks = file.unpacked(words, 7, borrowed)
    assert not any(stack.untouched() for stack in stacks)
    for i in (3, 2, 1, 0):
        found = chain.decode(stacks[: 1 if i == 3 else 2], (2, D), model, i)
        np.testing.assert_array_equal(found, data[i][: len(found)])
    assert all(stack.untouched() for stack in stacks)


def test_length_is_that_of_the_bound():
    """The mean excess over the terms at the very latents that were drawn is 0 within its error: no bits are lost."""
    chain, model, bound, stacks = setup(LogSNR(log_snr_max=6.0), 12, lanes=20, scale=1.3)
    excess, terms = [], []
    for i, batch in enumerate(images(4, 20)):
        before = np.array([stack.bits for stack in stacks])
        x0 = -1 + 2 * batch / (LEVELS - 1)
        terms.append(chain.encode(stacks, batch, model, i) + np.asarray(bound.prior(jnp.asarray(x0, jnp.float32))))
        excess.append((np.array([stack.bits for stack in stacks]) - before) / D - terms[-1])
    excess, bits = np.ravel(excess), np.mean(terms)
    error = excess.std(ddof=1) / math.sqrt(len(excess))
    assert abs(excess.mean()) < 4 * error and error < 0.06 * bits
    assert bits > math.log2(LEVELS)  # the entropy, which no model undercuts


def test_other_bits_of_the_model_are_noticed():
    """A model that answers otherwise in decoding, if by a rounding, leaves no initial bits behind."""
    chain, model, _, stacks = setup(LogSNR(log_snr_max=6.0), 6, lanes=1)
    data = images(3, 1)
    for i in range(3):
        chain.encode(stacks, data[i], model, i)
    other = lambda *args: (step := model(*args))._replace(mean=np.nextafter(step.mean, 9, dtype=np.float64) + 1e-7)  # noqa: E731
    for i in (2, 1, 0):
        chain.decode(stacks, (1, D), other, i)
    assert not stacks[0].untouched()


@pytest.mark.parametrize("cut", [lambda w: w[:-1], lambda w: np.append(w, 1).astype(np.uint32), lambda w: w[:0]])
def test_half_a_code_is_refused(cut):
    stack = Stack(0, 0)
    chain_words = file.packed([stack])
    with pytest.raises(UserError, match="not the whole of a code"):
        file.unpacked(cut(chain_words), 0, [2])
