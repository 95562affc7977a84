"""Which image files are under a folder, in an order that does not depend on the file system; of big ones it is kept."""

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from score_flow.data.formats import index

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
RACY = 2_000_000_000  # ns: a folder that changed so shortly before it was read may have changed after
LOOKED_AT = 1000  # files whose size and time say that the others are as they were


@dataclasses.dataclass(frozen=True)
class Paths(Sequence[Path]):
    """Files under a folder: of a million, a million Path objects would be a wait of seconds."""

    root: Path
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Path:
        return self.root / self.names[i]

    def kept(self, kind: str, scan: Callable[[], index.Arrays]) -> index.Arrays:
        """Return scan(), or what it returned before of these files, if those looked at are what they were."""
        if len(self) <= index.FEW:
            return scan()
        spread = np.unique(np.linspace(0, len(self) - 1, LOOKED_AT).astype(int)).tolist()
        digest = hashlib.sha256("\0".join(self.names).encode("utf-8", "surrogateescape")).hexdigest()
        about = (str(self.root.resolve()), digest, [_state(self[i])[::2] for i in spread])
        return index.kept_about(about, kind, scan)


def walk(root: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Find the image files under root, and what was not followed: a link to a folder that was read already.

    Of a big folder what was found is kept (formats/index.py), and used again while no folder has changed.
    """
    where = str(root.resolve())
    found = index.kept_about(where, "walk", lambda: _scan(root), valid=lambda old: _is_as_it_was(root, old))
    return tuple(index.unpacked(found["files"])), tuple(index.unpacked(found["notes"]))


def _is_as_it_was(root: Path, old: index.Arrays) -> bool:
    folders, states = index.unpacked(old["folders"]), old["states"]
    if not (folders and len(states) == len(folders) and states[:, 0].max() < int(old["began"][0]) - RACY):
        return False
    return all(_state(root / name) == tuple(state) for name, state in zip(folders, states.tolist(), strict=True))


def _state(path: Path) -> tuple[int, int, int]:
    """(time of the last change in ns, inode, size) of a file or folder; zeros where it is gone."""
    try:
        about = path.stat()
    except OSError:
        return 0, 0, 0
    return about.st_mtime_ns, about.st_ino, about.st_size


def _scan(root: Path) -> index.Arrays:
    found, notes, seen, states, began = [], [], {}, {}, time.time_ns()
    folders, links = [root], []
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        about = folder.stat()
        first = seen.setdefault((about.st_dev, about.st_ino), folder)
        if first is not folder:
            notes.append(f"{folder} is {first} by another name and is not read again")
            continue
        states[relative(folder, root)] = _state(folder)
        with os.scandir(folder) as entries:
            shown = sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
        inside = [entry for entry in shown if is_folder(entry)]
        folders += [folder / entry.name for entry in reversed(inside) if not entry.is_symlink()]
        links += [folder / entry.name for entry in inside if entry.is_symlink()]
        under = "" if folder == root else f"{relative(folder, root)}/"
        found += [under + e.name for e in shown if e.name.lower().endswith(EXTENSIONS) and not is_folder(e)]
    return {
        "files": index.packed(sorted(found)), "notes": index.packed(notes), "folders": index.packed(list(states)),
        "states": np.array(list(states.values()), np.int64), "began": np.array([began]),
    }  # fmt: skip


def relative(folder: Path, root: Path) -> str:
    """The name of a folder under root, with slashes."""
    return folder.relative_to(root).as_posix()


def folders_in(root: Path) -> list[Path]:
    """Find the folders in a folder, sorted; hidden ones are left out."""
    with os.scandir(root) as entries:
        return sorted(root / e.name for e in entries if is_folder(e) and not e.name.startswith("."))


def is_folder(entry: os.DirEntry) -> bool:
    """Say whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def any_image(folder: Path) -> bool:
    """Say whether there is an image in a folder, or below it."""
    return any(is_image(name) for _, _, names in os.walk(folder) for name in names)


def is_image(name: str) -> bool:
    """Say whether a file's name is one of an image."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")
