"""Time grids, descending from t_max to t_min, in float64 on the host. A grid of n steps has n + 1 times.

Grids in log SNR reach an end where it is infinite (alpha = 0 or sigma = 0) in one of their steps, see `STEEP`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from score_flow.config import registries
from score_flow.config.limits import Limits
from score_flow.errors import UserError
from score_flow.paths.base import Path

Grid = Float[np.ndarray, "times"]
Intervals = Float[np.ndarray, "n 2"] | Float[Array, "n 2"]  # rows (s, t), s < t
GridFunction = Callable[[Path, int, float, float], Grid]  # (path, n_steps, t_min, t_max)


def uniform(path: Path, n_steps: int, t_min: float, t_max: float) -> Grid:
    """Equal steps in t."""
    return np.linspace(t_max, t_min, n_steps + 1)


def quadratic(path: Path, n_steps: int, t_min: float, t_max: float) -> Grid:
    """Equal steps in sqrt(t): finer near the data (Song et al. 2021, DDIM, arXiv:2010.02502)."""
    return _pin(np.linspace(t_max**0.5, t_min**0.5, n_steps + 1) ** 2, t_min, t_max)


def karras(path: Path, n_steps: int, t_min: float, t_max: float, rho: float = 7.0) -> Grid:
    """Equal steps in (sigma/alpha)^(1/rho) (Karras et al. 2022, eq. 5, arXiv:2206.00364)."""

    def spaced(noisy: float, clean: float, n: int) -> Grid:
        first, last = (math.exp(-value / (2 * rho)) for value in (noisy, clean))
        return -2 * rho * np.log(np.linspace(first, last, n))

    return _between(path, n_steps, t_min, t_max, spaced)


def log_snr(path: Path, n_steps: int, t_min: float, t_max: float) -> Grid:
    """Equal steps in log SNR (Lu et al. 2022, arXiv:2206.00927)."""
    return _between(path, n_steps, t_min, t_max, np.linspace)


def intervals(times: Grid) -> Float[np.ndarray, "times-1 2"]:
    """Return the rows (s, t) of a descending grid, s < t, contiguous and in the order of a sampler's visits."""
    return np.stack([times[1:], times[:-1]], axis=1)


GRIDS: dict[str, GridFunction] = {"uniform": uniform, "quadratic": quadratic, "karras": karras, "log_snr": log_snr}
"""The grids by name; whatever takes a `grid` takes module.function for one of another package.

A row is a function `row(path, n_steps, t_min, t_max) -> times`, computed on the host in float64: n_steps + 1 numbers
that descend from exactly t_max to exactly t_min. It may look at the path (`path.log_snr(t)` is infinite where alpha or
sigma is 0, see STEEP), and is called again for each number of steps.
"""

# What a `grid` may be: a name, or the times one by one.
Listed = Annotated[tuple[float, ...], Limits(least=0, most=1, fewest=2)]
GridChoice = Annotated[str, Limits(among=registries.GRIDS)] | Listed


def listed(grid: str | Sequence[float]) -> bool:
    """Say whether a grid is times given one by one, which its text may be too, and not a name."""
    return not isinstance(grid, str) or grid.startswith(("(", "["))


def choose(what: str, grid: str | Sequence[float]) -> GridFunction:
    """Return the grid of a name, or that of times given one by one, t_max first: (0.9, 0.4, 0.1), or the same as text.

    Given times are taken as they are, whatever n_steps, t_min and t_max say. Raises UserError unless they descend
    within [0, 1].
    """
    if not listed(grid):
        return registries.GRIDS.entry(grid, what)
    if isinstance(grid, str):
        grid = grid.strip("()[] ,").split(",")
    try:
        times = np.array([float(t) for t in grid])
    except ValueError:
        raise UserError(f"{what} is {grid!r}; allowed: a name, or numbers, (t_max, ..., t_min).") from None
    if len(times) < 2 or not (np.diff(times) < 0).all() or times[0] > 1 or times[-1] < 0:
        raise UserError(f"{what} is {tuple(grid)}; allowed: a name, or two or more descending times in [0, 1].")
    return lambda path, n_steps, t_min, t_max: times.copy()


def choose_in_chain(what: str, grid: str | Sequence[float], n_steps: int, respacing: str) -> GridFunction:
    """Return the grid that is chosen or, respaced, that of the kept steps of a chain of n_steps, down to t = 0.

    The chain's step i goes from the time (i + 1)/n_steps; of the kept ones each goes to the next, the last to t = 0, as
    in improved-diffusion. Its times are its own: a grid beside it is refused, t_min and t_max do not count.
    """
    times = choose(f"{what}.grid", grid)
    if not respacing:
        return times
    if grid != "uniform":
        raise UserError(f"{what}.respacing = {respacing} has its own times; grid must be uniform, got {grid!r}.")
    try:
        kept = np.array(sorted(respace(n_steps, respacing)), np.float64)
    except UserError as error:
        raise UserError(f"{what}.{error}") from None
    if not len(kept):
        raise UserError(f"{what}.respacing is {respacing!r}, which keeps no step; allowed: a count of 1 or more.")
    chain = np.append((kept[::-1] + 1) / n_steps, 0.0)
    return lambda path, n_steps, t_min, t_max: chain.copy()


def respace(n: int, spec: str | Sequence[int]) -> tuple[int, ...]:
    """Say which of the steps 0..n-1 of a chain to keep, in improved-diffusion's notation (arXiv:2102.09672, sec. 4).

    "10,10,30": that many, evenly spread, of each of so many equal sections; "ddim50": 50 by an integer stride from 0.
    Step i is the time (i + 1)/n. Raises UserError for a section with fewer steps, or a stride that does not exist.
    """
    if isinstance(spec, str) and spec.startswith("ddim"):
        strides = (range(0, n, i) for i in range(1, n))
        kept = next((steps for steps in strides if str(len(steps)) == spec.removeprefix("ddim")), None)
        if kept is None:
            raise UserError(f"respacing {spec!r}: no integer stride keeps that many of {n} steps.")
        return tuple(kept)
    try:
        counts = [int(count) for count in (spec.strip("()[] ,").split(",") if isinstance(spec, str) else spec)]
    except ValueError:
        counts = []
    if not counts:
        raise UserError(f"respacing is {spec!r}; allowed: counts such as '250' or '10,10,30', or 'ddim50'.")
    kept = []
    for count, section in zip(counts, np.array_split(np.arange(n), len(counts)), strict=True):
        if not 0 <= count <= len(section):
            raise UserError(f"respacing {spec!r}: cannot keep {count} of a section of {len(section)} steps.")
        stride, position = (len(section) - 1) / (count - 1) if count > 1 else 1.0, 0.0
        for _ in range(count):
            kept.append(int(section[round(position)]))
            position += stride  # a sum, not a product: its roundings decide ties as the published tables have them
    return tuple(kept)


def finite_log_snr(path: Path, t: float) -> float:
    """log SNR at a time, on the host even while a jit around it traces; UserError where it is infinite."""
    value = _log_snr(path, t)
    if not math.isfinite(value):
        raise UserError(f"log SNR of {type(path).__name__} is {value} at t = {t}: t_min or t_max must stop short.")
    return value


def noisy_end(path: Path, t_max: float) -> float:
    """t_max, or where alpha vanishes there (Linear, GVP) the time before it at which log SNR is -STEEP, as at VP's end.

    A variational bound is then one for samples that start there: a network that is off in pure noise still has a finite
    one.
    """
    if math.isfinite(_log_snr(path, t_max)):
        return t_max
    with jax.ensure_compile_time_eval():
        return float(path.inverse_log_snr(jnp.asarray(-STEEP, float), 0.0, t_max))


def _log_snr(path: Path, t: float) -> float:
    with jax.ensure_compile_time_eval():
        return float(path.log_snr(jnp.asarray(t, float)))


# Where log SNR is infinite at an end, the step there goes to this value: what it skips is a share e^-10 = 5e-5 of the
# variance, as much as VP leaves of the data (log SNR -10.05 at t = 1) and less than a pixel level of noise.
STEEP = 10.0


def _between(path: Path, n_steps: int, t_min: float, t_max: float, spaced: Callable[[float, float, int], Grid]) -> Grid:
    """n_steps steps from t_max to t_min, spaced(noisy, clean, n) in log SNR.

    At an end with alpha = 0 or sigma = 0, where log SNR is infinite, one of the steps goes to the finite rest.
    """
    noisy, clean = _log_snr(path, t_max), _log_snr(path, t_min)
    start, end = math.isinf(noisy), math.isinf(clean)
    noisy = min(-STEEP, STEEP if end else clean - STEEP) if start else noisy
    clean = max(STEEP, noisy + STEEP) if end else clean
    # A grid is a handful of numbers made once: the default float is ample for where to put its points.
    with jax.ensure_compile_time_eval():
        values = jnp.asarray(spaced(noisy, clean, max(n_steps + 1 - start - end, 0)), float)
        inside = np.array(path.inverse_log_snr(values, t_min, t_max), np.float64)
    return _pin(np.concatenate([[t_max] * start, inside, [t_min] * end]), t_min, t_max)


def _pin(times: Grid, t_min: float, t_max: float) -> Grid:
    # Roots and squares round; whoever asks for t_min and t_max gets them exactly.
    times[0], times[-1] = t_max, t_min
    return times
