"""The parts that a report's page is set from: plain strings of HTML, every text escaped, every picture inline."""

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from evaluation.report.pictures import grid, picture_of
from score_flow.runs.places import Place, local

Images = UInt8[np.ndarray, "n h w c"]


class Record(NamedTuple):
    """What there is of a run; what is missing is empty."""

    name: str
    config: dict[str, Any]  # flat: {"path.name": "vp", ...}
    rows: list[dict[str, Any]]  # of metrics.jsonl
    parameters: str
    results: dict[str, dict[str, Any]]  # by job
    split: str | None  # that `real` is from
    evaluation: Place
    real: Images
    levels: int
    facts: dict[str, str]
    starts: list[dict[str, Any]]  # of training, from runs.jsonl
    history: dict[str, str] = {}  # noqa: RUF012 - never changed

    def arrays(self, job: str, file: str) -> dict[str, np.ndarray]:
        """Read the arrays of a job, {} without them."""
        path = self.evaluation / job / file
        if not path.exists():
            return {}
        with np.load(local(path), allow_pickle=False) as arrays:
            return dict(arrays)


def images_of(result: dict[str, Any]) -> str:
    """Say "297 images of digits/test"."""
    return f"{result.get('n_images', 0):,} images of {result.get('split', 'the data')}"


def error_of(result: dict[str, Any]) -> str:
    """Write ± the standard error of a result, where it has one."""
    error = result.get("standard_error", math.nan)
    return f"± {error:.2g}" if math.isfinite(error) else ""


COLUMN = 534  # pixels of half the page
SHEET = 640  # pixels that a sheet may be wide: the images of a wider one are reduced


def document(title: str, subtitle: str, *, cards: Sequence[str], body: str) -> str:
    """Set a whole page."""
    figures = f'<div class="cards">{"".join(cards)}</div>' if cards else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{CSS}</style>
</head>
<body>
<main>
<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>
{figures}
{body}</main>
</body>
</html>
"""


def card(name: str, value: str, *, error: str = "", note: str = "") -> str:
    """Set one headline figure."""
    spread = f" <small>{escape(error)}</small>" if error else ""
    foot = f"<p>{escape(note)}</p>" if note else ""
    return f'<div class="card"><p>{escape(name)}</p><p class="value">{escape(value)}{spread}</p>{foot}</div>\n'


def section(title: str, *parts: str, note: str = "") -> str:
    """Set parts under a heading; nothing without any part."""
    if not any(parts):
        return ""
    foot = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{''.join(parts)}{foot}\n</section>\n"


def pair(*parts: str) -> str:
    """Set parts side by side where the screen is wide enough."""
    return f'<div class="pair">{"".join(f"<div>{part}</div>" for part in parts)}</div>' if any(parts) else ""


def two_columns(*parts: str) -> str:
    """Set parts of unequal height that flow into two columns where the screen is wide enough."""
    return f'<div class="columns">{"".join(parts)}</div>' if any(parts) else ""


def picture(png: bytes, alt: str, caption: str) -> str:
    """Set a plot."""
    return _figure(f'<img class="plot" src="{_uri(png)}" alt="{escape(alt)}">', caption)


def sheet(
    images: Images, levels: int, caption: str, *, alt: str = "", heads: Sequence[str] = (), columns: int = 0
) -> str:
    """Set a sheet of images, small ones enlarged by a whole factor; with heads, one column under each.

    alt: what it shows, where the caption does not say it all.
    """
    columns = columns or len(heads) or math.ceil(math.sqrt(len(images)))
    pixels = grid(reduced(images, SHEET // columns), levels, columns=columns)
    buffer = io.BytesIO()
    picture_of(pixels).save(buffer, "PNG", optimize=True)
    zoom = max(1, COLUMN // pixels.shape[1])
    height, width = zoom * pixels.shape[0], zoom * pixels.shape[1]
    above = "".join(f"<span>{escape(head)}</span>" for head in heads)
    above = f'<div class="heads" style="width:{width}px">{above}</div>' if heads else ""
    enlarged = ' class="pixels"' if zoom > 1 else ""
    size = f'width="{width}" height="{height}"'
    return _figure(
        f'{above}<img{enlarged} {size} src="{_uri(buffer.getvalue())}" alt="{escape(alt or caption)}">', caption
    )


def reduced(images: Images, most: int) -> UInt8[np.ndarray, "n H W c"]:
    """Reduce images to at most `most` pixels wide: means of square blocks, the remainder at the edges cut off."""
    n, h, w, c = images.shape
    k = min(-(-w // most), h)
    blocks = images[:, : h // k * k, : w // k * k].reshape(n, h // k, k, w // k, k, c)
    return blocks.mean(axis=(2, 4)).round().astype(np.uint8)


def table(rows: dict[str, Any], caption: str = "") -> str:
    """Set names and values."""
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    body = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th><td>{escape(text(value))}</td></tr>\n'
        for name, value in rows.items()
    )
    return f"<table>{title}<tbody>\n{body}</tbody></table>\n"


def note(said: str) -> str:
    """Set a remark."""
    return f'<p class="note">{escape(said)}</p>\n'


def matrix(heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """Set a table with a head above each column."""
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    return f'<table class="matrix">{title}<thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>\n'


def details(summary: str, inner: str) -> str:
    """Set something long, folded."""
    return f"<details><summary>{escape(summary)}</summary>{inner}</details>\n"


def preformatted(lines: str) -> str:
    """Set text as it is laid out."""
    return f"<pre>{escape(lines)}</pre>"


def text(value: Any) -> str:
    """Write a value out for reading: six digits, lists with commas."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value)) or "none"
    return "none" if value is None or value == "" else str(value)


def duration(seconds: float) -> str:
    """Write seconds as 45 s, 3 min 20 s, 5 h 12 min, 2 d 3 h."""
    whole = round(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    first = next((i for i, (value, _) in enumerate(parts) if value), 3)
    return " ".join(f"{value} {unit}" for value, unit in parts[first : first + 2])


def compact(n: int) -> str:
    """Write 327873 as 328 k."""
    for unit, size in ((" G", 10**9), (" M", 10**6), (" k", 10**3)):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return str(n)


def _figure(inner: str, caption: str) -> str:
    return f"<figure>{inner}<figcaption>{escape(caption)}</figcaption></figure>\n"


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


CSS = """
:root { --page: #fff; --ink: #1c2127; --soft: #626b76; --line: #e4e7eb; --card: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171b; --ink: #e6e9ed; --soft: #98a1ac; --line: #2b3037; --card: #1c2026; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font-variant-numeric: tabular-nums;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 56px 32px 96px; }
h1 { font-size: 2.4rem; line-height: 1.15; letter-spacing: -0.02em; margin: 0; overflow-wrap: anywhere; }
header p { color: var(--soft); font-size: 1.05rem; margin: 8px 0 0; }
section { margin-top: 64px; }
section > h2 { font-size: 1.35rem; letter-spacing: -0.01em; border-bottom: 1px solid var(--line);
  margin: 0 0 20px; padding-bottom: 10px; }
.note, figcaption { color: var(--soft); font-size: 0.875rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(166px, 1fr)); gap: 14px; margin-top: 36px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 16px; }
.card p { color: var(--soft); font-size: 0.8125rem; line-height: 1.3; margin: 0; }
.card .value { color: var(--ink); font-size: 1.45rem; font-weight: 600; letter-spacing: -0.02em; margin: 4px 0; }
.card small { color: var(--soft); font-size: 0.875rem; font-weight: 400; letter-spacing: 0; white-space: nowrap; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr));
  gap: 36px 48px; align-items: start; }
.columns { columns: 440px 2; column-gap: 48px; }
.columns > * { break-inside: avoid; margin-bottom: 32px; }
figure { margin: 0 0 20px; }
figcaption { margin-top: 10px; }
img { display: block; max-width: 100%; height: auto; }
img.plot { width: 100%; }
img.pixels { image-rendering: pixelated; }
.heads { display: flex; max-width: 100%; color: var(--soft); font-size: 0.75rem; margin-bottom: 4px; }
.heads span { flex: 1 1 0; min-width: 0; overflow: hidden; text-align: center; }
table { border-collapse: collapse; table-layout: fixed; width: 100%; font-size: 0.9rem; }
caption { text-align: left; padding-bottom: 6px; font-weight: 600; }
th, td { border-top: 1px solid var(--line); padding: 6px 0; text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }
th { width: 17rem; padding-right: 20px; color: var(--soft); font-weight: 400; }
.matrix { table-layout: auto; }
.matrix + .matrix, .note + .matrix { margin-top: 32px; }
.matrix th { width: auto; }
.matrix th:not(:first-child), .matrix td:not(:first-child) { text-align: right; padding-left: 12px; }
details { margin-top: 20px; border-top: 1px solid var(--line); padding-top: 14px; }
summary { cursor: pointer; font-weight: 600; }
details > * + * { margin-top: 14px; }
pre { overflow-x: auto; font: 0.8rem/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media (max-width: 640px) { main { padding: 32px 18px 64px; } h1 { font-size: 1.8rem; } th { width: 50%; } }
@media print { figure, .card, tr { break-inside: avoid; } }
"""
