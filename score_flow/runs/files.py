"""Files: written whole or not at all, read without trusting them, and the one line that says why that cannot be."""

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from etils import epath
from numpy.lib.npyio import NpzFile

from score_flow.errors import UserError, one_line, printable
from score_flow.runs import stores
from score_flow.runs.places import Place, local, on_store, place_of, read

# What a file system answers; libraries that are not Python repeat it as text.
CODES = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE, errno.EFBIG, errno.ENOENT
)  # fmt: skip
REASONS = tuple(os.strerror(code) for code in CODES)
LARGEST = 16 << 30  # bytes that an array from a file may take, unless its reader allows less
MAX_RATIO, SMALL = 250, 64 << 20  # an array above SMALL bytes may be packed so tightly: zeros pack 1000 times


def write_whole(path: Place, content: bytes | str | Callable[[BinaryIO], object]) -> None:
    """Write a file so that a kill or a full disk at any moment leaves the old one or the new one; raises UserError.

    content: what is written, or a function that writes it into an open file.
    """
    if on_store(path):
        return _put(path, content)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content if isinstance(content, bytes) else content.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _put(path: epath.Path, content: bytes | str | Callable[[BinaryIO], object]) -> None:
    if callable(content):
        content(stream := io.BytesIO())
        content = stream.getvalue()
    try:
        stores.put(path, content if isinstance(content, bytes) else content.encode())
    except OSError as error:
        raise cannot_write(path, error) from error


def write_json(path: Place, value: Any) -> None:
    """Write a tree of plain values and numpy's as JSON, as `write_whole` does."""
    write_whole(path, json_of(value, indent=1) + "\n")


def json_of(value: Any, indent: int | None = None) -> str:
    """Return a tree of plain values and numpy's as JSON."""
    return json.dumps(value, indent=indent, default=lambda leaf: leaf.tolist())


def json_at(path: Place) -> dict[str, Any] | None:
    """Read the object in a JSON file; None where it is not there, or was written only half."""
    try:
        found = json.loads(read(path))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_arrays(path: Place, **arrays: np.ndarray) -> None:
    """Write an .npz, compressed, as `write_whole` does."""
    write_whole(path, lambda file: np.savez_compressed(file, **arrays))


def arrays_of(file: Place, names: Iterable[str] | None = None, most: int = LARGEST) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz, or those of some names that it has; together of at most `most` bytes.

    Raises UserError as `opened_arrays` does.
    """
    with opened_arrays(file, most) as archive:
        wanted = [name for name in archive.files if names is None or name in set(names)]
        sizes = {entry.filename.removesuffix(".npy"): entry.file_size for entry in archive.zip.infolist()}
        if (size := sum(sizes[name] for name in wanted)) > most:
            raise UserError(f"{file}: its arrays unpack to {size} bytes; allowed: at most {most}")
        return {name: archive[name] for name in wanted}


def array_of(file: Place, name: str, most: int = LARGEST) -> np.ndarray:
    """Read the array of an .npy, or of an .npz the one called `name`, or its only one.

    Raises UserError as `opened_arrays` does.
    """
    file = local(file)
    if file.suffix == ".npz" or zipfile.is_zipfile(file):
        with opened_arrays(file, most) as archive:
            only = archive.files[0] if len(archive.files) == 1 else name
            if only not in archive.files:
                raise UserError(f"{file} holds {', '.join(archive.files) or 'nothing'}; allowed: {name}")
            return archive[only]
    if (size := file.stat().st_size) > most:
        raise UserError(f"{file} holds {size} bytes; allowed: {most}")
    try:
        with file.open("rb") as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)
    except Exception as error:  # hostile bytes raise almost anything
        raise UserError(f"{file}: not a readable .npy of a plain array ({one_line(error)})") from error


@contextlib.contextmanager
def opened_arrays(file: Place, most: int = LARGEST, allowed: str = "at most") -> Iterator[NpzFile]:
    """Open an .npz whose arrays are read as they are asked for; they are plain ones: nothing is ever unpickled.

    Raises UserError, also for what goes wrong while the file is open: for bytes that are no .npz, for two arrays of one
    name, and, before it is read, for an array of more than `most` bytes (`allowed` says where that is set), or packed
    more tightly than images are.
    """
    try:
        file = local(file)
        with zipfile.ZipFile(file) as archive:
            _refuse_bombs(file, archive, most, allowed)
        with np.load(file, allow_pickle=False) as archive:
            if len(set(archive.files)) < len(archive.files):
                raise UserError(f"{file}: two arrays of one name; got {named(archive)}")
            yield archive
    except UserError:
        raise
    except Exception as error:  # hostile bytes raise almost anything: zip, zlib, header, memory and value errors
        raise UserError(f"{file}: not a readable .npz of plain arrays ({one_line(error)})") from error


def names_in(file: Path, most: int = LARGEST, allowed: str = "at most") -> list[str]:
    """Return the names of the arrays of an .npz. Raises UserError as `opened_arrays` does."""
    with opened_arrays(file, most, allowed) as archive:
        return archive.files


def named(archive: NpzFile) -> str:
    """Return the names of the arrays of an .npz, as they may be shown."""
    return ", ".join(printable(name) for name in archive.files[:10]) or "nothing"


def _refuse_bombs(file: Path, archive: zipfile.ZipFile, most: int, allowed: str) -> None:
    for entry in archive.infolist():
        packed = min(entry.compress_size, file.stat().st_size)
        got = f"{file}: {printable(entry.filename)} unpacks from {packed} to {entry.file_size} bytes"
        if entry.file_size > most:
            raise UserError(f"{got}; allowed: {allowed} {most}")
        if entry.file_size > max(SMALL, MAX_RATIO * packed):
            raise UserError(f"{got}; allowed: {MAX_RATIO} times (such arrays go into an uncompressed .npz, np.savez)")


def sha256_of(file: Place) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def md5_of(file: Place) -> str:
    """Return the MD5 of a file's bytes, in hexadecimal: what stores know their objects by."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def existing_path(path: str, key: str) -> Path:
    """Return a path of this machine, ~ expanded, or a copy of what is on a store.

    Raises UserError, which names the key that it came from, when nothing is there.
    """
    if not path:
        raise UserError(f"{key}: got nothing; give a file or a folder")
    found = local(place_of(path))
    try:
        found.stat()
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: no such file or folder: {path}{_unless_missing(error)}") from error
    return found


def regular_file(path: str | Place, key: str) -> Path:
    """Return a path of this machine, as `existing_path` does.

    Raises UserError unless a regular file is there: to open a pipe or a device may hang.
    """
    if not str(path):
        raise UserError(f"{key}: got nothing; give a file")
    found = local(place_of(path))
    try:
        mode = found.stat().st_mode
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: no such file: {path}{_unless_missing(error)}") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise UserError(f"{key}: {path} is {kind}; allowed: a regular file")
    return found


def _unless_missing(error: Exception) -> str:
    return "" if isinstance(error, FileNotFoundError) else f" ({getattr(error, 'strerror', None) or error})"


def sync(path: Path) -> None:
    """Have what is written to a file, or the names in a folder, on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(path: Place, error: BaseException, needed: int = 0) -> UserError:
    """Return the error that says what could not be written, why, and how much space there is."""
    space = ""
    if is_full(error) and not on_store(path):
        left = free(path)
        space = f" ({said(left)} free{f', {said(needed)} needed' if needed > left else ''})"
    return UserError(f"cannot write {path}: {reason(error) or first_line(error)}{space}.")


def reason(error: BaseException | None) -> str | None:
    """Find what the file system answered in an error, or in what it came from; None if it was nothing of that kind."""
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
    """Say whether an error comes from a disk that is full."""
    return reason(error) in (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))


def of_system(error: BaseException, folder: str) -> str:
    """Say an error of the file system in one line: what, where, and the free space if there is none."""
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
    """Return the bytes that are free where a path is, or would be."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def said(n: int | float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} GB"


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
