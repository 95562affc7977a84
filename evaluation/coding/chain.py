"""Bits-back coding by a chain of latents (Townsend et al. 2019, arXiv:1901.04866; Kingma, F. et al., arXiv:1905.06845).

A chain x_0, z_1, ..., z_n costs -log p(x_0, z_1..n) + log q(z_1..n | x_0) bits, whose mean is its variational bound:
bits of the message itself draw the latents, and come out of them again. One latent at a time is on its way: z_i is
pulled by q(z_i | z_{i-1}), then z_{i-1} is pushed by p(z_{i-1} | z_i), so that few initial bits are needed.

Latents are points of grids, one a time, whose cells are a share of the smallest deviation that they are coded by. q and
p share the cells, so that their size costs nothing but that latents are rounded to them.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from evaluation.coding.stack import TOTAL, Grid, Stack, exact_tail, tanh_tail
from score_flow.process.bound import VariationalBound, tables

WIDE = 16  # standard deviations within which q draws


class Step(NamedTuple):
    """What the model says at one step of each lane: p(z_{i-1} | z_i), and the bound's term of a known image."""

    mean: Float[np.ndarray, "lanes d"]
    std: Float[np.ndarray, "lanes d"]
    bits: Float[np.ndarray, "lanes"] | None


# (z (lanes, d), number of the step, x0 (lanes, d) or None) -> what p says
Model = Callable[[Float[np.ndarray, "lanes d"], int, Float[np.ndarray, "lanes d"] | None], Step]


@dataclasses.dataclass(frozen=True)
class Chain:
    """The laws of a chain but for the model's, in numbers that every machine makes alike.

    Step i carries z_{i-1} to z_i = scale_i z_{i-1} + std_i noise; z_0 is x_0.
    """

    scales: tuple[float, ...]
    stds: tuple[float, ...]
    grids: tuple[Grid, ...]  # of z_0, the levels, to z_n
    last: float  # standard deviation of p(z_n)

    def encode(
        self, stacks: list[Stack], images: UInt8[np.ndarray, "lanes d"], model: Model, number: int
    ) -> Float[np.ndarray, "b"]:
        """Push an image onto each stack; returns the sum of the bound's terms at the latents drawn, bits per dimension.

        number: of the image in its lane. Fewer stacks than images: the last images are the model's batch's alone.
        """
        symbols, bits = images.astype(np.int64).tolist(), np.zeros(len(stacks))
        x0 = z = self._points(0, symbols)
        for i in range(len(self.stds)):
            laws = [self._law(i, row, stack, number) for stack, row in zip(stacks, z, strict=False)]
            drawn = [self._drawn(i).pull(stack, *law) for stack, law in zip(stacks, laws, strict=True)]
            z = self._points(i + 1, drawn, len(images))
            step = model(z, i, x0)
            self._push(stacks, i, symbols, step.mean, step.std)
            symbols, bits = drawn, bits + step.bits[: len(stacks)]
        zeros = np.zeros(images.shape)
        self._push(stacks, len(self.stds), symbols, zeros, zeros + self.last)
        return bits

    def decode(
        self, stacks: list[Stack], shape: tuple[int, int], model: Model, number: int
    ) -> UInt8[np.ndarray, "b d"]:
        """Pull the image that was pushed last off each stack, and give the bits back that drew its latents.

        shape: (lanes, d) of the model's batch.
        """
        n, zeros = len(self.stds), np.zeros(shape)
        symbols = self._pull(stacks, n, zeros, zeros + self.last)
        for i in reversed(range(n)):
            step = model(self._points(i + 1, symbols, len(zeros)), i, None)
            earlier = self._pull(stacks, i, step.mean, step.std)
            for stack, drawn, row in zip(stacks, symbols, self._points(i, earlier), strict=True):
                self._drawn(i).push(stack, drawn, *self._law(i, row, stack, number))
            symbols = earlier
        return np.array(symbols, np.uint8)

    def _points(self, i: int, symbols: list[list[int]], lanes: int = 0) -> Float[np.ndarray, "lanes d"]:
        """Return points of the grid of z_i, and points at 0 for lanes that have none."""
        points = np.asarray(symbols, np.float64) * self.grids[i].width + self.grids[i].base
        return np.pad(points, ((0, max(0, lanes - len(points))), (0, 0)))

    def _law(
        self, i: int, z: Float[np.ndarray, "d"], stack: Stack, number: int
    ) -> tuple[list[float], list[float], list[int]]:
        """Return means and deviations of q(z_{i+1} | z_i), and the keys of its draws."""
        keys = np.random.default_rng((stack.seed, stack.lane, number, i)).integers(TOTAL, size=len(z))
        return (self.scales[i] * z).tolist(), [self.stds[i]] * len(z), keys.tolist()

    def _drawn(self, i: int) -> Grid:
        """Return the grid of z_{i+1} as q draws on it: nowhere beyond what a normal law reaches."""
        grid = self.grids[i + 1]
        return grid._replace(window=math.ceil(WIDE * self.stds[i] / grid.width))

    def _push(self, stacks: list[Stack], i: int, symbols: list[list[int]], mean: np.ndarray, std: np.ndarray) -> None:
        for j, (stack, row) in enumerate(zip(stacks, symbols, strict=False)):
            self.grids[i].push(stack, row, mean[j].tolist(), std[j].tolist())

    def _pull(self, stacks: list[Stack], i: int, mean: np.ndarray, std: np.ndarray) -> list[list[int]]:
        return [self.grids[i].pull(stack, mean[j].tolist(), std[j].tolist()) for j, stack in enumerate(stacks)]


def chain_of(bound: VariationalBound, cells: int) -> Chain:
    """Return the chain of a bound, with so many cells in the smallest standard deviation by which a latent is coded."""
    rows = tables(bound.path, bound.times)
    stds = np.exp(rows.log_large / 2)
    # z_i is coded by q(z_i | z_{i-1}) and, but the last, by p(z_i | z_{i+1}), as wide as the posterior or wider.
    later = np.append(np.exp(rows.log_small[1:] / 2), np.inf)
    widths = np.minimum(stds, later) / cells
    tail = {"exact": exact_tail, "tanh": tanh_tail}[bound.decoder]
    levels = Grid((bound.high - bound.low) / (bound.levels - 1), bound.low, levels=bound.levels, tail=tail)
    grids = (levels, *(Grid(width) for width in widths.tolist()))
    return Chain(tuple(rows.on_x_s.tolist()), tuple(stds.tolist()), grids, float(rows.sigma[-1]))
