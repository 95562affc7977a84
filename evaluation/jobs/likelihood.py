"""Likelihood by the probability-flow ODE: bits per dimension of every image of a split."""

import numpy as np
from jaxtyping import Float, Int

from evaluation.jobs import bits
from evaluation.report import page

N_EXTREMES = 16


def section(record: page.Record) -> str:
    """Show how bits per dimension are distributed; which images are the most and the least likely."""
    from evaluation.report import figures  # matplotlib: mistakes are answered without waiting for it

    arrays = record.arrays("likelihood", "bits.npz")
    values = arrays.get("bits", np.empty((0, 0)))
    if not values.size or not np.isfinite(values).all():
        return ""
    values = values.mean(axis=0)
    caption = f"Bits per dimension of {len(values):,} images"
    plot = page.picture(figures.histogram(values, "bits / dim"), "Histogram of bits per dimension over images", caption)
    split = record.results["likelihood"].get("split")
    # Bits of another split say nothing about the images that we have.
    index = arrays.get("index", np.arange(len(values)))
    sheets = extremes(record, values, index) if split == (record.split or split) else ""
    return page.section("Likelihood", page.pair(plot, sheets))


def extremes(record: page.Record, values: Float[np.ndarray, "n"], index: Int[np.ndarray, "n"]) -> str:
    """Show the most and the least likely of the first images of the split; index: the number of each value's image."""
    n = int((index < len(record.real)).sum())
    order, k = np.argsort(values[:n]), min(N_EXTREMES, n // 2)
    sheets = []
    for which, chosen in (("most", order[:k]), ("least", order[::-1][:k])):
        if k:
            low, high = sorted((values[chosen[0]], values[chosen[-1]]))
            caption = f"The {k} {which} likely of {n:,} test images: {low:.2f} to {high:.2f} bits / dim"
            alt = f"The {which} likely images"
            sheets.append(page.sheet(record.real[index[chosen]], record.levels, caption, alt=alt, columns=8))
    return "".join(sheets)


def cards(record: page.Record) -> list[str]:
    """Show the mean."""
    result = record.results["likelihood"]
    if "bits_per_dim" not in result:
        return []
    return [
        page.card(
            "bits / dim", f"{result['bits_per_dim']:.3f}", error=page.error_of(result), note=page.images_of(result)
        )
    ]


job = bits.job_of(section=section, cards=cards, place=70)
