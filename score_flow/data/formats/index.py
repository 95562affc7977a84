"""What a scan of large files found, kept in a folder of the user's cache for the next start: arrays by name.

The folder is $XDG_CACHE_HOME/score_flow/index, or ~/.cache/score_flow/index; where it cannot be written, nothing is
kept. What was found of other files (another path, size or time) has another name, and can be deleted at any time.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from score_flow.errors import UserError
from score_flow.runs.files import arrays_of, regular_file, write_whole

VERSION = 1
FEW = 10_000  # entries that are scanned anew each time
Arrays = dict[str, np.ndarray]


def folder() -> Path:
    """Return where indices are kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(cache) / "score_flow/index"


def kept(files: Sequence[Path], kind: str, scan: Callable[[], Arrays]) -> Arrays:
    """Return scan(), or what it returned before for these files as they are now.

    kind: which scan it is, with all that its result depends on beside the files.
    """
    about = [
        (str(file.resolve()), (stat := regular_file(file, "data").stat()).st_size, stat.st_mtime_ns) for file in files
    ]
    return kept_about(about, kind, scan)


def kept_about(
    about: object, kind: str, scan: Callable[[], Arrays], valid: Callable[[Arrays], bool] = lambda found: True
) -> Arrays:
    """Return scan(), or what it returned before about the same, if that is still valid; about: plain values."""
    place = folder() / f"{hashlib.sha256(repr((VERSION, kind, about)).encode()).hexdigest()[:32]}.npz"
    if place.is_file():
        try:
            if valid(found := arrays_of(place)):
                return found
        except (UserError, LookupError, ValueError):  # damaged: made anew
            pass
    found = scan()
    if max(map(_entries, found.values()), default=0) > FEW:
        _keep(place, found)
    return found


def _entries(array: np.ndarray) -> int:
    return int((array == 0).sum()) + 1 if array.dtype == np.uint8 else len(array)  # bytes are names, as of `packed`


def _keep(place: Path, found: Arrays) -> None:
    mine = place.with_name(f"{place.stem}-{os.getpid()}.npz")  # of processes that scan at once each writes its own
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(mine, lambda file: np.savez(file, **found))
        mine.replace(place)
    except (OSError, UserError) as error:
        print(f"data: the index is not kept, the next start scans again: {error}", file=sys.stderr)


def packed(names: Sequence[str]) -> np.ndarray:
    """Return names as an array of bytes: text of any length needs no pickle."""
    return np.frombuffer("\0".join(names).encode("utf-8", "surrogateescape"), np.uint8)


def unpacked(names: np.ndarray) -> list[str]:
    """Return the names that `packed` was given."""
    return names.tobytes().decode("utf-8", "surrogateescape").split("\0") if len(names) else []
