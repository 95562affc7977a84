"""Which global batch fits a machine, and what makes one fit that does not: found by compiling."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

from score_flow.config.options import Config

MOST = 2**24  # config.training.batch_size
TRIES = 3  # compilations of a guess


class Fit(NamedTuple):
    """The largest batch seen to fit, 0: none; by how many programs; too_much: the least batch that does not fit."""

    batch: int
    compiled: int
    too_much: int | None


def fitting(total_of: Callable[[int], int | None], limit: int, known: tuple[int, int | None], n: int) -> Fit:
    """Return about the largest batch, a multiple of n, of which a program needs at most `limit` bytes of a device.

    The need of two batches is drawn through by a line, and what it promises is compiled; where that does not fit, the
    line is drawn again. total_of: the bytes of a batch, None: too much, and it is not known how much. known: a batch
    and its need.
    """
    needs, compiled = dict([known]), 0

    def fits(batch: int) -> bool:
        return needs[batch] is not None and needs[batch] <= limit

    batch, need = known
    far = need is not None and 4 * need <= limit  # a line through points that lie close does not reach far
    guess = 4 * batch if far else max(batch // 2 // n * n, n) if batch > n else 2 * n
    for _ in range(1 + TRIES):
        if guess in needs:
            break
        needs[guess], compiled = total_of(guess), compiled + 1
        if compiled > 1 and fits(guess):
            break
        guess = promised(needs, limit, n)
    best = max((batch for batch in needs if fits(batch)), default=0)
    return Fit(best, compiled, min((batch for batch in needs if not fits(batch)), default=None))


def promised(needs: dict[int, int | None], limit: int, n: int) -> int:
    """Return the multiple of n that the line through the needs around the limit promises, n at least.

    Where it promises what was seen not to fit, the middle of what is still open.
    """
    said = sorted((batch, need) for batch, need in needs.items() if need is not None)
    below, above = [each for each in said if each[1] <= limit], [each for each in said if each[1] > limit]
    best = max((batch for batch, _ in below), default=0)
    least = min((batch for batch, need in needs.items() if need is None or need > limit), default=MOST + n)
    guess = (best + least) // 2
    if len(said) > 1:
        (a, low), (b, high) = [below[-1], above[0]] if below and above else (below[-2:] or above[:2])
        line = a + (limit - low) * (b - a) // (high - low) if high > low else MOST
        guess = line if best <= line < least else guess
    return max(min(guess, MOST) // n * n, n)


class Remedy(NamedTuple):
    """The flags that a person would give, and the config with them."""

    flags: str
    config: Config


def remedies(
    config: Config, remat: str | bool | None, n: int, *, sliceable: bool = True, state_fits: bool = True
) -> Iterator[Remedy]:
    """Yield what may make a step on n devices fit, the cheapest first: microbatches, remat, fsdp, then some of them.

    remat: the network's field (score_flow/networks/blocks/remat.py); None: it has none. sliceable: whether the loss has
    microbatches. state_fits: whether what a step is given does: else only what splits it helps.
    """
    training = config.training
    slices = _doubled(training.microbatches, training.batch_size // n) if sliceable else []
    can_remat, can_split = remat not in (None, True, "full"), n > 1 and training.fsdp is not True
    most = slices[-1:]
    tried = [(n, False, False) for n in slices]
    tried += [(0, True, False), (0, False, True), *((n, True, False) for n in most), *((n, False, True) for n in most)]
    tried += [(0, True, True), *((n, True, True) for n in most)]
    for k, full, split in tried:
        if full <= can_remat and split <= can_split and (split or state_fits):
            yield _changed(config, k, remat=full, split=split)


def _doubled(now: int, each: int) -> list[int]:
    """Return what microbatches may be instead: twice, four and eight times as many, of so many of a device."""
    return [now * 2**i for i in range(1, 4) if each % (now * 2**i) == 0]


def _changed(config: Config, microbatches: int, *, remat: bool, split: bool) -> Remedy:
    """Return a config with another number of microbatches, if it is not 0, with remat and fsdp if told so."""
    given = ({"microbatches": microbatches} if microbatches else {}) | ({"fsdp": True} if split else {})
    flags = [*(["--config.network.remat=full"] * remat), *(f"--config.training.{name}={given[name]}" for name in given)]
    network = config.network.with_arguments(remat="full") if remat else config.network
    training = dataclasses.replace(config.training, **given)
    return Remedy(" ".join(flags), dataclasses.replace(config, network=network, training=training))
