"""Places: paths of a disk or of an object store, which have the methods of pathlib alike.

What a disk alone can do (`open(path)`, to append, to rename) and what a store alone can do (stores.py) is asked for
here, so that nobody else asks which of them a path is on.
"""

import os
import re
import shutil
from pathlib import Path

from etils import epath

from score_flow.errors import UserError
from score_flow.runs import stores

Place = Path | epath.Path  # on a disk, on a store


def place_of(path: str | os.PathLike) -> Place:
    """Return the path that a person names, ~ expanded; raises UserError for a store that cannot be reached."""
    text = os.fspath(path)
    return stores.opened(text) if stores.scheme_of(text) else Path(text).expanduser()


def resolved(path: str | os.PathLike) -> Place:
    """Return the same by its full name, links resolved; as `place_of` otherwise."""
    found = place_of(path)
    return found if on_store(found) else found.resolve()


def path_of(folder: str) -> Place:
    """Return the folder that a person names, on a disk (~ expanded) or a store; raises UserError for any other."""
    if not folder.strip():
        raise UserError("--workdir is empty; give the folder of the run.")
    try:
        path = resolved(folder)
    except UserError as error:
        raise UserError(f"--workdir: {error}") from error
    if on_store(path):
        return path
    if re.match(r"[A-Za-z][\w+.-]*:/", folder):
        raise UserError(f"--workdir is {folder!r}; give a folder of this machine, gs://BUCKET/... or s3://BUCKET/...")
    if re.search(r"[][\\]", str(path)):  # orbax reads them as a pattern, and then does not find what it saved
        raise UserError(f"--workdir is {str(path)!r}; a run can not be resumed from a path with [, ] or \\ in it.")
    return path


def on_store(path: Place) -> bool:
    """Say whether a path is on an object store."""
    return isinstance(path, epath.Path)


def local(path: Place) -> Path:
    """Return a path of this machine: the same, or a copy of what is on a store; raises UserError without that."""
    if not on_store(path):
        return path
    try:
        return stores.fetch(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error


def make_folder(path: Place) -> None:
    """Make a folder and those above it, unless they are there; a store needs none."""
    if not on_store(path):
        path.mkdir(parents=True, exist_ok=True)


def remove(path: Place) -> None:
    """Remove a file, or a folder with all below it, as far as it is there and that can be done."""
    if on_store(path):
        stores.remove(path)
    elif path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def move(path: Place, target: Place) -> None:
    """Give a file another name; on a store it has both for a while."""
    if on_store(path):
        stores.put(target, read(path))
        stores.remove(path)
    else:
        os.replace(path, target)


def read(path: Place) -> bytes:
    """Read a file as it was at one moment; raises OSError, FileNotFoundError without it."""
    return stores.get(path) if on_store(path) else path.read_bytes()
