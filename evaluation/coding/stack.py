"""A stack of bits by asymmetric numeral systems, and normal laws of whole numbers by which it is coded.

rANS (Duda 2013, arXiv:1311.2540): a whole number holds the message; pushing a symbol of probability p makes it 1/p
times as large, pulling undoes that, and pulling from other bits draws the symbol. Probabilities are multiples of 2^-48,
and each symbol has one at least: in the 24 bits of the usual coders those would draw latents far off their laws.
"""

import functools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from score_flow.errors import UserError

PRECISION = 48
TOTAL = 1 << PRECISION  # probabilities are multiples of 1/TOTAL
WORD = 32
LEAST = 1 << 64  # a state is from LEAST to below LEAST << WORD
PAGE = 1024  # initial words that are made at once
ROOT = math.sqrt(0.5)
quantile = statistics.NormalDist().inv_cdf
Tail = Callable[[float], float]  # u >= 0 -> P(z > u), z ~ N(0, 1)


@functools.lru_cache(maxsize=64)
def _initial(seed: int, lane: int, page: int) -> list[int]:
    """Draw words that stand for bits that are to be sent anyway."""
    return np.random.default_rng((seed, lane, page)).integers(0, 1 << WORD, PAGE, dtype=np.uint64).tolist()


class Stack:
    """Bits, of which the last pushed come first; one that runs empty goes on with initial bits, of a seed and a lane.

    state and words hold the message, `borrowed` counts the initial words that it took, the first two for its state:
    they lie at its bottom again when all that was pushed is pulled.
    """

    def __init__(self, seed: int, lane: int, state: int = 0, words: Iterable[int] = (), borrowed: int = 2):
        self.seed, self.lane, self.words, self.borrowed = seed, lane, list(words), borrowed
        self.state = state or self._first()

    @property
    def bits(self) -> float:
        """How many bits it holds beyond the initial ones; differences are what was pushed between."""
        return math.log2(self.state) + WORD * (len(self.words) - self.borrowed)

    def untouched(self) -> bool:
        """Say whether it holds the initial bits alone, in their order, as before the first image."""
        words = [self._word(i) for i in reversed(range(2, self.borrowed))]
        return self.state == self._first() and self.words == words

    def push(self, start: int, size: int) -> None:
        """Add a symbol that has the numbers from `start` on, `size` of TOTAL."""
        state = self.state
        while state >= size << PRECISION:  # LEAST << WORD over TOTAL is TOTAL
            self.words.append(state & ((1 << WORD) - 1))
            state >>= WORD
        self.state = (state // size << PRECISION) + state % size + start

    def number(self) -> int:
        """Return the number below TOTAL that the next symbol has."""
        return self.state & (TOTAL - 1)

    def pull(self, start: int, size: int) -> None:
        """Remove the symbol that has this number."""
        state = size * (self.state >> PRECISION) + self.number() - start
        while state < LEAST:
            state = state << WORD | self._pop()
        self.state = state

    def _pop(self) -> int:
        if self.words:
            return self.words.pop()
        self.borrowed += 1
        return self._word(self.borrowed - 1)

    def _first(self) -> int:
        return LEAST | self._word(0) << WORD | self._word(1)

    def _word(self, i: int) -> int:
        return _initial(self.seed, self.lane, i // PAGE)[i % PAGE]


def exact_tail(u: float) -> float:
    return 0.5 * math.erfc(u * ROOT)


def tanh_tail(u: float) -> float:
    """The published approximation, 1 less (1 + tanh(sqrt(2/pi) (u + .044715 u^3))) / 2."""
    return 1 / (1 + math.exp(min(2 * math.sqrt(2 / math.pi) * (u + 0.044715 * u**3), 700.0)))


class Grid(NamedTuple):
    """Points base + k width, each with a cell of this width; the law of k is a normal one's, cell by cell.

    levels: k is in [0, levels), the outer cells reach to infinity; 0: k is within `window` cells of the mean's.
    Every k has 1/TOTAL at least.
    """

    width: float
    base: float = 0.0
    window: int = 1 << 20
    levels: int = 0
    tail: Tail = exact_tail

    def push(
        self, stack: Stack, symbols: list[int], means: list[float], stds: list[float], keys: Sequence[int] = ()
    ) -> None:
        """Push symbols, the last first, so that they are pulled in their order, with the same keys.

        Raises UserError for one that is farther from its mean than the window.
        """
        keys = keys or [0] * len(symbols)
        for k, mean, std, key in zip(*map(reversed, (symbols, means, stds, keys)), strict=True):
            low, high = self._ends(mean)
            if not low <= k < high:
                raise UserError(
                    f"job code: {k * self.width + self.base:.4g} is to be coded by N({mean:.4g}, {std:.3g}^2), too far "
                    "from it: the model is none of these images."
                )
            start = self._below(k, low, high, mean, std)
            stack.push(start, self._below(k + 1, low, high, mean, std) - start)
            stack.state ^= key

    def pull(self, stack: Stack, means: list[float], stds: list[float], keys: Sequence[int] = ()) -> list[int]:
        """Pull a symbol for each mean.

        keys: random numbers below TOTAL, one a symbol. By them symbols are drawn from the laws whatever the bits are:
        those of a message are evenly distributed only as far as the model that pushed them was right.
        """
        symbols = []
        for mean, std, key in zip(means, stds, keys or [0] * len(means), strict=True):
            stack.state ^= key
            (low, high), number = self._ends(mean), stack.number()
            u = quantile((number + 0.5) / TOTAL)
            k = min(max(round((mean + std * u - self.base) / self.width), low), high - 1)
            start, end = self._below(k, low, high, mean, std), self._below(k + 1, low, high, mean, std)
            if not start <= number < end:
                k, start, end = self._search(number, low, high, mean, std)
            stack.pull(start, end - start)
            symbols.append(k)
        return symbols

    def _ends(self, mean: float) -> tuple[int, int]:
        if self.levels:
            return 0, self.levels
        centre = round((mean - self.base) / self.width)
        return centre - self.window, centre + self.window

    def _below(self, k: int, low: int, high: int, mean: float, std: float) -> int:
        """Return how many of TOTAL numbers belong to what is below k; it grows by 1 at least from k to k."""
        if k <= low:
            return 0
        if k >= high:
            return TOTAL
        u, n = ((k - 0.5) * self.width + self.base - mean) / std, TOTAL - (high - low)
        # Each half by its own tail, small numbers: there differences of the other's would be lost.
        return k - low + (int(n * self.tail(-u)) if u < 0 else n - int(n * self.tail(u)))

    def _search(self, number: int, low: int, high: int, mean: float, std: float) -> tuple[int, int, int]:
        first, last = low, high  # below(first) <= number < below(last)
        while last - first > 1:
            middle = (first + last) // 2
            if self._below(middle, low, high, mean, std) <= number:
                first = middle
            else:
                last = middle
        return first, self._below(first, low, high, mean, std), self._below(last, low, high, mean, std)
