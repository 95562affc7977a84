"""Which files a data set in several files has, and for which split each is, by their names."""

import collections
import glob
import re
from pathlib import Path
from typing import NamedTuple

from score_flow.data.base import PATH
from score_flow.data.splits import NAMES
from score_flow.errors import UserError
from score_flow.runs.files import existing_path

Files = list[Path]


class Kind(NamedTuple):
    """Which files are of a kind: by a pattern of their names, and how a person calls them."""

    names: re.Pattern[str]
    said: str

    def has(self, file: Path) -> bool:
        return file.is_file() and not file.name.startswith(".") and bool(self.names.search(file.name.lower()))


def find(path: str, kind: Kind) -> tuple[Files, Files, tuple[str, ...]]:
    """Return the files of the training and of the test split, the latter maybe none, and what a person should know.

    path: a file; a folder, of which the files of a kind are read, or those in its sub-folders; or a pattern: *,
    {000..127}, {split}. Files are of the split that their name, else their folder's, has as a word ("val-00001",
    "imagenet_train_03"); those without any are training files. Raises UserError, also where one of "00001-of-00016" is
    missing.
    """
    found = _files(path, kind)
    if not found:
        raise UserError(f"{PATH}: {path} holds no {kind.said}")
    _refuse_missing(found)
    if len(found) == 1:
        return found, [], ()
    words = {file: _word(file.name) or _word(file.parent.name) for file in found}
    train = [file for file in found if words[file] in NAMES["train"]]
    name = next((name for name in NAMES["test"] if name in words.values()), None)
    test = [file for file in found if words[file] == name and name]
    if not train:
        train = [file for file in found if words[file] is None]
    if not train:
        return found, [], ()
    others = sorted({file.name for file in found} - {file.name for file in (*train, *test)})
    notes = (f"not read: {', '.join(others[:5])}{f' and {len(others) - 5} more' if others[5:] else ''}",)
    return train, test, notes if others else ()


def _files(path: str, kind: Kind) -> Files:
    if "{split}" in path:
        names = [name for names in NAMES.values() for name in names]
        return [file for name in names for file in _matching(path.replace("{split}", name))]
    if re.search(r"[*?\[{]", path) and not Path(path).expanduser().exists():
        return _matching(path)
    place = existing_path(path, PATH)
    if not place.is_dir():
        return [place]
    for inside in (place.iterdir(), *(place.glob("/".join("*" * depth)) for depth in (2, 3, 4))):  # 4: the hub's cache
        if found := sorted(file for file in inside if kind.has(file)):
            return found
    return []


def _matching(pattern: str) -> Files:
    found = [file for one in _spelt_out(str(Path(pattern).expanduser())) for file in sorted(glob.glob(one))]
    return [Path(file) for file in found if Path(file).is_file()]


def _spelt_out(pattern: str) -> list[str]:
    """Spell out {000..127}, as a shell does."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not match:
        return [pattern]
    width, numbers = len(match[1]), range(int(match[1]), int(match[2]) + 1)
    parts = [f"{pattern[: match.start()]}{number:0{width}d}{pattern[match.end() :]}" for number in numbers[:100_000]]
    return [whole for part in parts for whole in _spelt_out(part)]


def _refuse_missing(files: Files) -> None:
    """Raise UserError where a shard of those that count themselves is not there."""
    there = collections.defaultdict(set)
    for file in files:
        if match := re.search(r"-(\d{5})-of-(\d{5})(\D|$)", file.name):
            there[file.parent, file.name[: match.start()], int(match[2])].add(int(match[1]))
    for (folder, stem, n), numbers in there.items():
        missing = sorted(set(range(min(n, 100_000))) - numbers)
        if missing:
            raise UserError(
                f"{PATH}: {folder} lacks shard {missing[0]:05d} of {n:05d} of {stem} ({len(missing)} missing)"
            )


def _word(name: str) -> str | None:
    """Return the split that a name has as a word."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for names in NAMES.values() for split in names if split in words), None)
