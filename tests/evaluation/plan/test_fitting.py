"""The batch that fits, by few compilations, and what is tried where none does."""

import pytest

from evaluation.plan.fitting import fitting, remedies
from score_flow.config.loading import load


class Compiler:
    """Needs base + slope b + bend b^2; what is beyond `refuses` is refused, its need said or not."""

    def __init__(self, base=1000, slope=10.0, bend=0.0, refuses=None):
        self.base, self.slope, self.bend, self.refuses, self.asked = base, slope, bend, refuses, []

    def __call__(self, batch):
        self.asked.append(batch)
        need = int(self.base + self.slope * batch + self.bend * batch**2)
        return None if self.refuses and need > self.refuses else need


LIMIT = 9000


@pytest.mark.parametrize("known", [64, 800, 5000])
def test_a_line_is_followed_to_its_end(known):
    """From a batch that fits or not: exactly the largest multiple of 8, by two more programs."""
    compiler = Compiler()
    fit = fitting(compiler, LIMIT, (known, compiler(known)), 8)
    assert fit.batch == 800 and fit.compiled <= 2 and len(compiler.asked) == fit.compiled + 1


@pytest.mark.parametrize("bend", [-0.002, 0.002])
@pytest.mark.parametrize("refuses", [None, LIMIT])
def test_what_it_promises_was_compiled_and_fits(bend, refuses):
    """Where the need is no line; beyond the limit it may be unknown."""
    compiler = Compiler(bend=bend, refuses=refuses)
    fit = fitting(compiler, LIMIT, (128, compiler(128)), 8)
    assert fit.batch in compiler.asked and compiler(fit.batch) <= LIMIT and fit.batch % 8 == 0
    assert fit.batch > 0.6 * max(b for b in range(8, 2000, 8) if Compiler(bend=bend)(b) <= LIMIT)


def test_a_refused_batch_is_halved():
    compiler = Compiler(refuses=LIMIT)
    fit = fitting(compiler, LIMIT, (2048, compiler(2048)), 8)
    assert 0 < fit.batch <= 800 and compiler(fit.batch) <= LIMIT and fit.too_much > fit.batch


def test_none_fits():
    compiler = Compiler(base=LIMIT)
    fit = fitting(compiler, LIMIT, (64, compiler(64)), 8)
    assert fit.batch == 0 and fit.too_much == 8


def flags(*overrides, remat="none", n=8, **can):
    return [remedy.flags for remedy in remedies(load("configs/digits.py", list(overrides)), remat, n, **can)]


REMAT, FSDP = "--config.network.remat=full", "--config.training.fsdp=True"
ONE_EACH = "--config.training.batch_size=8"  # no slices of it on eight devices


def slices(*numbers):
    return [f"--config.training.microbatches={n}" for n in numbers]


def test_remedies():
    """The cheapest first; what is set already, or cannot be, is not tried; the config is that of the flags."""
    two, four, eight = slices(2, 4, 8)
    both = [f"{REMAT} {eight}", f"{eight} {FSDP}", f"{REMAT} {FSDP}", f"{REMAT} {eight} {FSDP}"]
    assert flags() == [two, four, eight, REMAT, FSDP, *both]
    assert flags(ONE_EACH) == [REMAT, FSDP, f"{REMAT} {FSDP}"]
    assert flags(ONE_EACH, remat="full") == flags(ONE_EACH, remat=None) == [FSDP]
    assert flags(ONE_EACH, FSDP) == [REMAT] and flags(ONE_EACH, FSDP, remat=None) == []
    assert flags(remat=None, n=1) == [two, four, eight]
    assert flags("--config.training.batch_size=96", two, remat=None, n=1) == slices(4, 8, 16)
    assert flags("--config.training.batch_size=96", two, remat=None) == [four, FSDP, f"{four} {FSDP}"]
    assert flags(sliceable=False) == [REMAT, FSDP, f"{REMAT} {FSDP}"]
    for remedy in remedies(load("configs/digits.py", []), "dots", 8):
        assert remedy.config == load("configs/digits.py", remedy.flags.split())


def test_what_does_not_split_a_state_that_is_too_large_is_not_compiled():
    assert flags(ONE_EACH, state_fits=False) == [FSDP, f"{REMAT} {FSDP}"]
    assert flags(n=1, state_fits=False) == flags(FSDP, state_fits=False) == []
