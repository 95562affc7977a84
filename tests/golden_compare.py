"""Compares every array of a golden file with a value of ours, and says which key has none."""

import re
from typing import NamedTuple

import numpy as np

from tests.paths.variants import EPS


class Ours(NamedTuple):
    """A value of ours, the source's own rounding of it (relative, absolute), and the tolerance in float64."""

    value: object
    relative: object = 0.0
    absolute: object = 0.0
    rtol: float = 1e-9


def split_precision(key: str) -> tuple[str, bool]:
    """(name, whether it is a float64 run): names end in 64, or in _64 after a digit."""
    short = re.sub(r"(_64|(?<=\D)64)$", "", key)
    return short, short != key


def size(reference):
    """What errors are relative to: the largest number of a row; a row is a time (or an example)."""
    magnitude = np.abs(np.where(np.isfinite(reference), reference, 0.0))
    return magnitude.max(axis=tuple(range(1, reference.ndim)), keepdims=True) if reference.ndim > 1 else magnitude


def worst_relative(difference, reference, noise=0.0) -> float:
    """The largest relative error; a reference that is 0 but for noise has none."""
    scale = size(reference)
    error = np.where(scale > noise, np.abs(difference) / np.where(scale > 0, scale, 1.0), 0.0)
    return float(np.max(error, initial=0.0))


def compare(case: str, arrays: dict, ours: dict, given: str) -> None:
    """Compare every array but the given ones (a regular expression) with ours[name, x64]."""
    names = {key: split_precision(key) for key in arrays}
    doubles = {name: np.asarray(arrays[key], np.float64) for key, (name, x64) in names.items() if x64}
    worst, off, unmapped = [], [], []
    for key, (name, x64) in names.items():
        if re.fullmatch(given, key):
            continue
        if (name, x64) not in ours:
            unmapped.append(key)
            continue
        value, own_relative, own_absolute, rtol = ours[name, x64]
        reference, value = np.broadcast_arrays(*(np.asarray(a, np.float64) for a in (arrays[key], value)))
        finite = np.isfinite(reference)
        difference = np.where(finite, value - np.where(finite, reference, 0.0), 0.0)
        if x64:
            allowed = rtol
        else:  # three times what float32 cost the source, and a few roundings of ours
            double = doubles.get(name, reference)
            cost = np.where(np.isfinite(reference) & np.isfinite(double), reference - double, 0.0)
            allowed = 3 * worst_relative(cost, double) + 16 * EPS[False]
        within = np.abs(difference) <= (allowed + own_relative) * size(reference) + own_absolute
        error = worst_relative(difference, reference, own_absolute)
        print(f"{error:9.1e}  {key}")
        if x64:
            worst.append((error, key))
        if np.isnan(value).any() or not within.all():
            off.append(f"{key}: {error:.1e}, allowed {np.max(allowed + own_relative):.1e}")
    error, key = max(worst, default=(0.0, "no array"))
    print(f"{case}: {len(arrays)} arrays, {len(off)} off; worst relative error in float64 {error:.1e} ({key})")
    assert not unmapped, unmapped
    assert not off, off
