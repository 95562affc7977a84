"""Compiled programs, kept for the next start in a folder that is this user's alone: loading one runs what it holds.

The folder is $XDG_CACHE_HOME/score_flow/programs/MACHINE, or that of ~/.cache. jax's own variables have the last word:
JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.
"""

import contextlib
import errno
import hashlib
import os
import platform
import stat
import tempfile
from pathlib import Path

import jax
from jax._src import compilation_cache
from jax._src.compilation_cache_interface import CacheInterface

from score_flow.runs.files import reason

MOST = 8 << 30  # bytes of all programs together
LEAST_SECONDS = 0.1  # what compiles faster is not worth a file
DIGEST = hashlib.sha256().digest_size
SECONDS = "jax_persistent_cache_min_compile_time_secs"


def keep() -> str | None:
    """Have jax keep what it compiles, and load what it compiled before; what is said of it, None where jax was told.

    Never ends a run: where nothing can be kept, everything is compiled, and the line says why.
    """
    if not jax.config.jax_enable_compilation_cache:
        return None
    if there := jax.config.jax_compilation_cache_dir:
        return f"compiled programs: {there}"
    try:
        place = private(folder())
    except OSError as error:
        return f"compiled programs are not kept: {reason(error)}: {error.filename}"
    except RuntimeError as error:  # of a user without a home
        return f"compiled programs are not kept: {error}"
    compilation_cache.get_file_cache = lambda path: (Programs(Path(path)), path)
    jax.config.update("jax_compilation_cache_dir", str(place))
    if SECONDS.upper() not in os.environ:
        jax.config.update(SECONDS, LEAST_SECONDS)
    return f"compiled programs: {place}"


def folder() -> Path:
    """Where programs are kept, by the machine: one compiled for a processor may not run on another of the same home."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        about = sorted({line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part"))})
        return Path(cache) / "score_flow/programs" / _name([platform.machine(), *about])
    return Path(cache) / "score_flow/programs" / _name([platform.machine(), platform.processor()])


def _name(about: list[str]) -> str:
    return hashlib.sha256("\n".join(about).encode()).hexdigest()[:12]


def private(path: Path) -> Path:
    """Make a folder that nobody else can read, write or replace, and return its full name; raises OSError.

    What another user could put in its place would be run: it is this user's, those above it are this user's or root's,
    and others cannot write there, but where, as in /tmp, each changes only what is his own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    path, me = path.resolve(), os.getuid()
    for each in (path, *path.parents):
        about = each.stat()
        for_others = about.st_mode & 0o022 and each != path and not about.st_mode & stat.S_ISVTX
        if for_others or about.st_uid not in ((me,) if each == path else (me, 0)):
            raise PermissionError(errno.EPERM, "other users may write there (chmod go-w)", str(each))
    path.chmod(0o700)
    with tempfile.TemporaryFile(dir=path):  # raises where it cannot be written
        return path


class Programs(CacheInterface):
    """jax's cache in a folder that several processes use: entries are whole or not there, and the oldest go."""

    def __init__(self, path: Path):
        self._path = path

    def get(self, key: str) -> bytes | None:
        """What was kept under a key; None where there is nothing, or it is damaged, and then it goes."""
        file = self._path / key
        try:
            entry = file.read_bytes()
            if hashlib.sha256(entry[DIGEST:]).digest() == entry[:DIGEST]:
                os.utime(file)
                return entry[DIGEST:]
            file.unlink()
        except OSError:
            pass
        return None

    def put(self, key: str, value: bytes) -> None:
        """Keep a value; a disk that is full keeps nothing, and stops nothing."""
        with contextlib.suppress(OSError):
            self._drop_the_oldest(MOST - len(value))
            with tempfile.NamedTemporaryFile(dir=self._path, prefix=".", delete=False) as file:
                try:
                    file.write(hashlib.sha256(value).digest() + value)
                    file.flush()
                    os.replace(file.name, self._path / key)
                except OSError:
                    os.unlink(file.name)

    def _drop_the_oldest(self, most: int) -> None:
        entries = [(entry.path, entry.stat()) for entry in os.scandir(self._path) if entry.is_file()]
        files = [(about.st_mtime, about.st_size, path) for path, about in entries]
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= most:
                return
            with contextlib.suppress(OSError):
                os.unlink(path)
            total -= size
