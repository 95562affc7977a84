"""The stack of bits: what is pushed comes out, costs what its law says, and is drawn by that law from random bits."""

import math

import numpy as np
import pytest

from evaluation.coding.stack import TOTAL, Grid, Stack, exact_tail, tanh_tail
from score_flow.errors import UserError

LEVELS = Grid(0.125, -1.0, levels=17)
GRIDS = {
    "fine": Grid(0.01), "coarse": Grid(0.5), "levels": LEVELS, "published levels": LEVELS._replace(tail=tanh_tail)
}  # fmt: skip


def laws(n, seed=0):
    rng = np.random.default_rng(seed)
    return (0.5 * rng.normal(size=n)).tolist(), np.exp(rng.normal(size=n) - 2).tolist()


def probability(grid, k, mean, std):
    """P(k), as numbers of TOTAL."""
    low, high = grid._ends(mean)
    return (grid._below(k + 1, low, high, mean, std) - grid._below(k, low, high, mean, std)) / TOTAL


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_what_is_pulled_is_given_back_and_what_is_pushed_comes_out(grid):
    """Off the initial bits, and onto them: in between each symbol has cost log2 1/p."""
    stack, (means, stds) = Stack(seed=3, lane=1), laws(100)
    symbols = grid.pull(stack, means, stds)
    assert len(set(symbols)) > 3 and not stack.untouched()
    others, before = laws(100, seed=1), stack.bits
    grid.push(stack, symbols, *others)
    cost = -sum(math.log2(probability(grid, k, *law)) for k, *law in zip(symbols, *others, strict=True))
    assert abs(stack.bits - before - cost) < 1e-3 * cost
    assert grid.pull(stack, *others) == symbols
    grid.push(stack, symbols, means, stds)
    assert stack.untouched()


@pytest.mark.parametrize("grid", [GRIDS["fine"], LEVELS], ids=["fine", "levels"])
def test_probabilities_are_those_of_the_normal_law(grid):
    """Cell by cell, the outer levels with all beyond; every symbol has one part in TOTAL at least."""
    mean, std = 0.31, 0.2
    low, high = grid._ends(mean)
    k = range(max(low, -300), min(high, 301))
    edges = [((i + j) * grid.width + grid.base - mean) / std for i in (*k, k[-1] + 1) for j in (-0.5,)]
    if grid.levels:
        edges[0], edges[-1] = -math.inf, math.inf
    cumulative = [0.5 * math.erfc(-u / math.sqrt(2)) for u in edges]
    np.testing.assert_allclose([probability(grid, i, mean, std) for i in k], np.diff(cumulative), atol=2e-8)
    far = [probability(grid, i, mean, std) for i in (low, high - 1)] if not grid.levels else []
    assert all(p >= 1 / TOTAL for p in far)


def test_draws_are_normal():
    """No symbol is drawn off its law, and mean, variance and kurtosis are a normal one's."""
    n, grid, stack = 3000, Grid(0.01, window=4000), Stack(seed=0, lane=0)
    means, stds = laws(n)
    u = (np.array(grid.pull(stack, means, stds)) * grid.width - means) / stds
    assert np.abs(u).max() < 5
    assert abs(u.mean()) < 4 / math.sqrt(n)
    assert abs((u**2).mean() - 1) < 4 * math.sqrt(2 / n) + grid.width**2 / 12 * np.mean(np.array(stds) ** -2.0)
    assert abs((u**4).mean() - 3) < 4 * math.sqrt(96 / n) + 0.02


def test_the_published_tail_is_that_of_the_bound():
    u = np.linspace(0, 6, 50)
    tanh = 0.5 * (1 - np.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
    np.testing.assert_allclose([tanh_tail(x) for x in u], tanh, atol=1e-15)
    np.testing.assert_allclose([tanh_tail(x) for x in u], [exact_tail(x) for x in u], atol=4e-4)


def test_what_is_beyond_the_window_is_refused():
    with pytest.raises(UserError, match=r"is to be coded by N\(0, 0.1"):
        Grid(1e-3, window=100).push(Stack(0, 0), [101], [0.0], [0.1])
