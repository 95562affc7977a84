"""The emoji of the npm package emoji-datasource-twitter: 3 747 colour signs of nine categories, no download here."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from score_flow.data import splits
from score_flow.data.base import PATH, Source
from score_flow.data.encoded import open_files, takes_reader
from score_flow.data.images import ImageReader
from score_flow.data.walking import Paths
from score_flow.errors import UserError, check_choice, one_line
from score_flow.runs.files import existing_path, regular_file

PACKAGE = "emoji-datasource-twitter"
TABLE, PICTURES = "emoji.json", "img/twitter/64"
LEFT_OUT = "Component"  # five plain squares: the skin tones themselves
# Code points by which pictures of one thing differ: man, woman, person; their signs; skin tones; joiners; direction
VARIANTS = {"1F468", "1F469", "1F9D1", "2640", "2642", *(f"1F3F{i}" for i in "BCDEF"), "200D", "FE0F", "27A1"}
ONE_IN = 10


class Picture(NamedTuple):
    """A picture of the package, its category, and the sign that it is a variant of."""

    file: str
    category: str
    sign: str


@takes_reader
def build(split: splits.Split = "train", path: str = f"node_modules/{PACKAGE}", *, reader: ImageReader) -> Source:
    """The pictures of emoji-datasource-twitter, by file name; the class is the category, `path` the package's folder.

    They are 64 x 64 with alpha. Signs that differ by skin tone, gender or direction alone stay in one split, which a
    hash of the sign decides: one in ten is a test sign, in every release. Of equal files one is read. Raises UserError.
    """
    check_choice("split", split, splits.NAMES)
    base = _package(path)
    pictures, classes, equal = _pictures(base)
    chosen = [picture for picture in pictures if _is_test(picture.sign) == (split == "test")]
    if not chosen:
        raise UserError(f"{PATH}: {base} has no pictures for {split}; is the package whole?")
    label = np.array([classes.index(picture.category) for picture in chosen], np.int32)
    notes = (f"{equal} pictures are equal to others, and left out",) if equal else ()
    files = Paths(base / PICTURES, tuple(picture.file for picture in chosen))
    return open_files(f"emoji/{split}", files, reader, "stop", label=label, classes=classes, notes=notes)


def _package(path: str) -> Path:
    try:
        base = existing_path(path, PATH)
    except UserError as error:
        raise UserError(f"{error}; to install it: npm install {PACKAGE}") from error
    if not ((base / TABLE).is_file() and (base / PICTURES).is_dir()):
        raise UserError(f"{PATH}: {path} has no {TABLE} and {PICTURES}; allowed: the folder of {PACKAGE}")
    return base


def _pictures(base: Path) -> tuple[list[Picture], tuple[str, ...], int]:
    """Return the pictures by name, one of each content, all categories, sorted, and how many are left out as equal."""
    table = regular_file(base / TABLE, PATH)
    try:
        found = sorted(picture for entry in json.loads(table.read_bytes()) for picture in _of_sign(entry))
    except Exception as error:  # hostile bytes raise almost anything
        raise UserError(f"{table}: no table of emoji; cut off or damaged? ({one_line(error)})") from error
    first: dict[str, Picture] = {}
    for picture in found:
        content = regular_file(base / PICTURES / picture.file, PATH).read_bytes()
        first.setdefault(hashlib.sha256(content).hexdigest(), picture)
    return list(first.values()), tuple(sorted({picture.category for picture in found})), len(found) - len(first)


def _of_sign(entry: dict[str, Any]) -> Iterator[Picture]:
    if entry["category"] == LEFT_OUT:
        return
    sign = "-".join(point for point in entry["unified"].split("-") if point not in VARIANTS)
    for variant in (entry, *entry.get("skin_variations", {}).values()):
        if variant["has_img_twitter"]:
            yield Picture(Path(variant["image"]).name, entry["category"], sign)


def _is_test(sign: str) -> bool:
    return int.from_bytes(hashlib.sha256(sign.encode()).digest()[:4]) % ONE_IN == 0
