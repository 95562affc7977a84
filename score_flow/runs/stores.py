"""Object stores: gs://bucket/... and s3://bucket/..., by fsspec below etils.epath; all that is special to them.

On a store nothing is seen before it is whole, and one PUT replaces one object at once; but nothing can be appended to,
a rename is a copy, and there are no folders, only names that begin alike. A listing tells checksums of what is there.
"""

import atexit
import base64
import contextlib
import errno
import importlib.util
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from etils import epath

from score_flow.errors import UserError, one_line

PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
EXTRAS = {"gs": "gcs", "s3": "s3"}  # of this project
ANSWERS = ("gcsfs", "s3fs", "aiohttp", "botocore", "aiobotocore", "google")  # packages whose errors are a store's
EVERY, SHARE = 30.0, 0.05  # seconds between two writes of what grows; of the time that such writes may take
os.environ.setdefault("EPATH_USE_TF", "false")  # one client of a store, whatever else is installed


def scheme_of(path: str) -> str | None:
    """Return gs or s3 where a path is on a store; raises UserError, in one line, where its package is absent."""
    scheme = path.partition("://")[0]
    if "://" not in path or scheme not in PACKAGES:
        return None
    if importlib.util.find_spec(PACKAGES[scheme]) is None:
        extra = f'pip install "score-flow[{EXTRAS[scheme]}]"'
        raise UserError(f"{path} needs the package {PACKAGES[scheme]}: pip install {PACKAGES[scheme]}, or {extra}.")
    return scheme


def opened(path: str) -> epath.Path:
    """Return the path of something on a store; raises UserError for one that names no bucket, or holds a pattern."""
    _without_caches()
    if not re.fullmatch(r"\w+://[^/]+(/.*)?", path) or re.search(r"[][\\*?#]", path):
        raise UserError(f"{path!r} is no place on a store; allowed: gs://bucket/folder, without [ ] \\ * ? and #.")
    return epath.Path(path.rstrip("/"))


def system(path: epath.Path) -> Any:
    """Return fsspec's file system of a path."""
    import fsspec

    _without_caches()
    return fsspec.filesystem(str(path).partition("://")[0])


def kvstore(path: str) -> dict[str, Any]:
    """Return TensorStore's words for the place of a gs:// or s3:// path.

    AWS_ENDPOINT_URL leads to other stores that speak S3, as it does elsewhere.
    """
    scheme, _, rest = path.partition("://")
    bucket, _, key = rest.partition("/")
    found = {"driver": {"gs": "gcs"}.get(scheme, scheme), "bucket": bucket, "path": key}
    if scheme != "s3":
        return found
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        found |= {"endpoint": endpoint, "aws_region": region}
    if "AWS_ACCESS_KEY_ID" in os.environ:  # else it looks for files first, and says aloud that there are none
        found |= {"aws_credentials": {"type": "environment"}}
    return found


def put(path: epath.Path, content: bytes) -> None:
    """Write an object, whole or not at all; raises OSError."""
    try:
        system(path).pipe_file(str(path), content)
    except Exception as error:
        raise as_os_error(path, error) from error


def get(path: epath.Path) -> bytes:
    """Read an object by one request, so that one which is written meanwhile is the old or the new; raises OSError."""
    try:
        return system(path).cat_file(str(path))
    except Exception as error:
        raise as_os_error(path, error) from error


def create(path: epath.Path, content: bytes) -> bool:
    """Write an object unless it is there, and say whether it was written; of several who try at once one succeeds."""
    try:
        system(path).pipe_file(str(path), content, mode="create")
    except FileExistsError:
        return False
    except Exception as error:
        raise as_os_error(path, error) from error
    return True


def listed(folder: epath.Path) -> dict[str, dict[str, Any]]:
    """Return what a store says of every object below a folder, by its name there; {} where there is none.

    Raises OSError, FileNotFoundError for a bucket that is not there.
    """
    beginning = f"{folder}/".partition("://")[2]
    try:
        found = system(folder).find(str(folder), detail=True)
    except Exception as error:
        raise as_os_error(folder, error) from error
    return {
        name.removeprefix(beginning): about
        for name, about in sorted(found.items())
        if name.startswith(beginning) and not name.endswith("/") and about["type"] == "file"
    }


def checksum(about: dict[str, Any]) -> str:
    """Return what a store knows an object by, "kind:value": its MD5 in hexadecimal, else another sum and the size."""
    tag = str(about.get("ETag") or about.get("etag") or "").strip('"')
    if about.get("md5Hash"):
        return f"md5:{base64.b64decode(about['md5Hash']).hex()}"
    if about.get("crc32c"):
        return f"crc32c:{about['crc32c']}:{about['size']}"
    if re.fullmatch(r"[0-9a-f]{32}", tag):  # of an object that was written in one piece
        return f"md5:{tag}"
    return f"etag:{tag}:{about['size']}"


def fetch(path: epath.Path) -> Path:
    """Return a copy on this machine of a file or a folder, which goes with the process; made once for one content.

    Raises OSError, FileNotFoundError where nothing is there.
    """
    try:
        objects = listed(path) or {"": system(path).info(str(path))}
        key = str(path), tuple((name, checksum(about)) for name, about in objects.items())
        if key not in _COPIES:
            folder = Path(tempfile.mkdtemp(prefix="score_flow-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            names = [f"{path}/{name}".rstrip("/") for name in objects]
            system(path).get(names, [str(folder / path.name / name) for name in objects])
            _COPIES[key] = folder / path.name
    except Exception as error:
        raise as_os_error(path, error) from error
    return _COPIES[key]


def remove(path: epath.Path) -> None:
    """Remove an object, or all below a folder; nothing happens where there is none."""
    with contextlib.suppress(FileNotFoundError):
        names = [f"{path}/{name}" for name in listed(path)]
        if len(names) > 1:
            system(path).rm(names)
        else:
            system(path).rm_file(names[0] if names else str(path))


class Growing:
    """A file of lines on a store: kept here, written whole every EVERY seconds at most, at `flush` and at `close`."""

    def __init__(self, path: epath.Path, content: bytes):
        self._path, self._content, self._written = path, bytearray(content), None
        self._next = 0.0
        self.flush()

    def write(self, text: str) -> None:
        self._content += text.encode()
        if time.monotonic() >= self._next:
            self.flush()

    def flush(self) -> None:
        if self._written == len(self._content):
            return
        wait = timed(lambda: put(self._path, bytes(self._content)))
        self._written, self._next = len(self._content), time.monotonic() + wait

    def close(self) -> None:
        self.flush()


def timed(write: Callable[[], None]) -> float:
    """Write something that grows; returns the seconds after which to write it again."""
    began = time.monotonic()
    write()
    return max(EVERY, (time.monotonic() - began) / SHARE)


def is_answer(error: BaseException) -> bool:
    """Say whether an error is what a store, or the way to it, answered."""
    return type(error).__module__.partition(".")[0] in ANSWERS


def as_os_error(path: epath.Path, error: Exception) -> OSError:
    """Return an error of a store as one of a file system."""
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return OSError(f"{path}: {one_line(error)}")


def _without_caches() -> None:
    """Have fsspec list anew whenever it is asked: others write to the same folders, tensorstore among them."""
    import fsspec.config

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints what it raises
    for scheme in PACKAGES:
        fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False


_COPIES: dict[Any, Path] = {}
