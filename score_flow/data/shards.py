"""Which files a data set in several files has, and for which split each is, by their names."""

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from score_flow.data.base import PATH
from score_flow.data.splits import NAMES
from score_flow.runs.files import existing_path
from score_flow.types import UserError

Files = list[Path]


def find(path: str, endings: Sequence[str]) -> tuple[Files, Files, tuple[str, ...]]:
    """Return the files of the training and of the test split, the latter maybe none, and what a person should know.

    path: a file; a folder, of which the files of these endings are read, or those in its sub-folders; or a pattern: *,
    {000..127}, {split}. Files are of the split that their name, else their folder's, has as a word ("val-00001",
    "imagenet_train_03"); those without any are training files. Raises UserError.
    """
    found = _files(path, endings)
    if not found:
        raise UserError(f"{PATH}: {path} holds no file that ends in {', '.join(endings)}")
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


def _files(path: str, endings: Sequence[str]) -> Files:
    if "{split}" in path:
        names = [name for names in NAMES.values() for name in names]
        return [file for name in names for file in _matching(path.replace("{split}", name), [])]
    if re.search(r"[*?\[{]", path) and not Path(path).expanduser().exists():
        return _matching(path, endings)
    place = existing_path(path, PATH)
    if not place.is_dir():
        return [place]
    for inside in (place.iterdir(), place.glob("*/*"), place.glob("*/*/*")):
        if found := sorted(file for file in inside if _ends(file, endings)):
            return found
    return []


def _matching(pattern: str, endings: Sequence[str]) -> Files:
    found = [file for one in _spelt_out(str(Path(pattern).expanduser())) for file in sorted(glob.glob(one))]
    return [Path(file) for file in found if Path(file).is_file() and (not endings or _ends(Path(file), endings))]


def _spelt_out(pattern: str) -> list[str]:
    """Spell out {000..127}, as a shell does."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not match:
        return [pattern]
    width, numbers = len(match[1]), range(int(match[1]), int(match[2]) + 1)
    parts = [f"{pattern[: match.start()]}{number:0{width}d}{pattern[match.end() :]}" for number in numbers[:100_000]]
    return [whole for part in parts for whole in _spelt_out(part)]


def _ends(file: Path, endings: Sequence[str]) -> bool:
    return file.is_file() and not file.name.startswith(".") and file.name.lower().endswith(tuple(endings))


def _word(name: str) -> str | None:
    """Return the split that a name has as a word."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for names in NAMES.values() for split in names if split in words), None)
