"""Files that are there whole or not at all, and the one line that says why one could not be written."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from score_flow.types import UserError

# What a file system answers; libraries that are not Python repeat it as text.
CODES = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE, errno.EFBIG, errno.ENOENT
)  # fmt: skip
REASONS = tuple(os.strerror(code) for code in CODES)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file so that a kill or a full disk at any moment leaves the old one or the new one; raises UserError."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def sync(path: Path) -> None:
    """Have what is written to a file, or the names in a folder, on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: BaseException, needed: int = 0) -> UserError:
    """The error that says what could not be written, why, and how much space there is."""
    space = ""
    if is_full(error):
        left = free(path)
        space = f" ({said(left)} free{f', {said(needed)} needed' if needed > left else ''})"
    return UserError(f"cannot write {path}: {reason(error) or first_line(error)}{space}.")


def reason(error: BaseException | None) -> str | None:
    """What the file system answered, found in an error or in what it came from; None if it was nothing of that kind."""
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        if found := next((text for text in REASONS if text in str(error)), None):
            return found
        if "NOT_FOUND" in str(error):  # as Google's libraries put it
            return os.strerror(errno.ENOENT)
        error = error.__cause__
    return None


def is_full(error: BaseException) -> bool:
    """Whether an error comes from a disk that is full."""
    return reason(error) in (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))


def of_system(error: BaseException, folder: str) -> str:
    """One line for an error of the file system: what, where, and the free space if there is none."""
    where = getattr(error, "filename", None) or folder
    space = f" ({said(free(Path(where)))} free)" if is_full(error) else ""
    return f"{reason(error) or first_line(error)}: {where}{space}."


def quiet(hook: Callable[[Any], None]) -> Callable[[Any], None]:
    """sys.unraisablehook without what orbax's writers say of a save that failed: it is raised where it belongs."""

    def said_once(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    return said_once


def free(path: Path) -> int:
    """The bytes that are free where a path is, or would be."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def said(n: int | float) -> str:
    """A number of bytes as people read it."""
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} GB"


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
