"""The plots of a report, as transparent PNG bytes in colours that read on white and on black."""

import io
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Real
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

TEXT, GRID = "#7d8590", "#7d859040"
BLUE, ORANGE = "#4a8df0", "#ee8434"
CYCLE = (BLUE, ORANGE, "#3fb68b", "#b45fd6", "#d64f6f", "#c9a227", "#2aa9c9", "#8a8f98", "#7bbf3a", "#e07bb5")
LOGGED = "loss", "test_loss"  # the curves of training, by their names in metrics.jsonl
SIZE, DPI = (5.2, 3.1), 200  # twice the pixels that a page shows: sharp on dense screens


def loss_curves(
    step: Real[np.ndarray, "n"],
    loss: Float[np.ndarray, "n"],
    test_step: Real[np.ndarray, "m"],
    test_loss: Float[np.ndarray, "m"],
) -> bytes:
    """Plot training losses with their running mean, and test losses; either may be empty, both finite."""
    figure, axes = _axes("step", "loss")
    smooth = running_mean(loss, max(1, len(loss) // 50))
    axes.plot(step, loss, color=BLUE, alpha=0.35, linewidth=0.8)
    axes.plot(step, smooth, color=BLUE, linewidth=1.6, label="training (running mean)" if len(step) else None)
    if len(test_step):
        axes.plot(test_step, test_loss, color=ORANGE, linewidth=1.4, marker="o", markersize=3, label="test")
    _log_y(axes, np.concatenate([smooth, test_loss]), ratio=5.0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.legend(frameon=False, labelcolor=TEXT, fontsize=9)
    return _png(figure)


def loss_by_time(values: Sequence[float | None]) -> bytes:
    """Plot the mean loss in equal bins of [0, 1]; None where a bin is empty."""
    figure, axes = _axes("time t  (0 = data, 1 = noise)", "loss")
    heights = np.array([np.nan if value is None else value for value in values], float)
    n = len(heights)
    axes.bar((np.arange(n) + 0.5) / n, heights, width=0.9 / n, color=BLUE)
    _log_y(axes, heights[np.isfinite(heights)], ratio=20.0)
    axes.set_xlim(0, 1)
    return _png(figure)


def histogram(values: Float[np.ndarray, "n"], xlabel: str) -> bytes:
    """Plot how finite values are distributed, with their mean."""
    figure, axes = _axes(xlabel, "images")
    axes.hist(values, bins=int(np.clip(2 * np.sqrt(len(values)), 8, 60)), color=BLUE)
    axes.axvline(values.mean(), color=ORANGE, linewidth=1.6, label=f"mean {values.mean():.3f}")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, labelcolor=TEXT, fontsize=9)
    return _png(figure)


def quality_by_calls(curves: dict[str, list[tuple[int, float]]], reference: float | None, ylabel: str) -> bytes:
    """Plot a line of (network calls, quality) for each sampler, and what data themselves would get."""
    figure, axes = _axes("network calls", ylabel)
    for color, (name, points) in zip(itertools.cycle(CYCLE), curves.items(), strict=False):
        calls, quality = zip(*points, strict=True)
        axes.plot(calls, quality, color=color, linewidth=1.3, marker="o", markersize=3, label=name)
    if reference is not None:
        axes.axhline(reference, color=TEXT, linewidth=1.0, linestyle="--", label="training images")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _log_y(axes, np.array([y for points in curves.values() for _, y in points]), ratio=5.0)
    axes.legend(frameon=False, labelcolor=TEXT, fontsize=7, ncols=2)
    return _png(figure)


def by_scale(scales: Sequence[float], values: Sequence[float], ylabel: str) -> bytes:
    """Plot a quality over scales of guidance."""
    figure, axes = _axes("guidance scale", ylabel)
    axes.plot(scales, values, color=BLUE, linewidth=1.4, marker="o", markersize=4)
    _log_y(axes, np.asarray(values, float), ratio=20.0)
    return _png(figure)


def over_steps(curves: dict[str, list[tuple[int, float, float]]], ylabel: str) -> bytes:
    """Plot a line of (step, figure) with its standard errors, where they are known, for each name."""
    figure, axes = _axes("step", ylabel)
    for color, (name, points) in zip(itertools.cycle(CYCLE), curves.items(), strict=False):
        steps, values, errors = np.array(points).T
        style = {"color": color, "linewidth": 1.3, "marker": "o", "markersize": 3, "capsize": 2}
        axes.errorbar(steps, values, np.nan_to_num(errors), label=name, **style)
    _log_y(axes, np.array([value for points in curves.values() for _, value, _ in points]), ratio=20.0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.legend(frameon=False, labelcolor=TEXT, fontsize=9)
    return _png(figure)


def over_runs(
    curves: dict[str, tuple[Real[np.ndarray, "n"], Float[np.ndarray, "n"]]],
    colors: dict[str, str],
    ylabel: str,
    *,
    smooth: bool = False,
    linear: bool = False,
) -> bytes:
    """Plot a line of (steps, finite values) for each run, or their running mean; none may be empty."""
    figure, axes = _axes("step", ylabel)
    drawn = {
        name: (steps, running_mean(values, max(1, len(values) // 50)) if smooth else values)
        for name, (steps, values) in curves.items()
    }
    for name, (steps, values) in drawn.items():
        axes.plot(steps, values, color=colors[name], linewidth=1.4, label=name)
    if not linear:
        _log_y(axes, np.concatenate([values for _, values in drawn.values()]), ratio=5.0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.legend(frameon=False, labelcolor=TEXT, fontsize=9)
    return _png(figure)


def running_mean(values: Float[np.ndarray, "n"], half: int) -> Float[np.ndarray, "n"]:
    """Average over the neighbours at most `half` away, fewer at the ends: nothing is drawn towards zero."""
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    start, end = (
        np.maximum(np.arange(len(values)) - half, 0),
        np.minimum(np.arange(len(values)) + half + 1, len(values)),
    )
    return (total[end] - total[start]) / (end - start)


def _axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Make empty axes in the style of the page; no pyplot, so no state is shared with the caller."""
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(xlabel, color=TEXT, fontsize=9)
    axes.set_ylabel(ylabel, color=TEXT, fontsize=9)
    axes.tick_params(colors=TEXT, labelsize=9, length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(TEXT)
    return figure, axes


def _log_y(axes: Axes, values: Float[np.ndarray, "n"], ratio: float) -> None:
    """Set a logarithmic y axis when positive values differ by more than `ratio`."""
    if not len(values) or values.min() <= 0 or values.max() / values.min() < ratio:
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", transparent=True, metadata={"Software": None})
    return buffer.getvalue()
