"""Records that lie in larger files: which file, where each begins, how long it is; read by any number of threads."""

import bz2
import dataclasses
import functools
import gzip
import lzma
import os
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from score_flow.errors import UserError, one_line
from score_flow.runs.files import reason, regular_file

OPEN = 256  # files at most that stay open between two reads
COMPRESSED = {b"\x1f\x8b\x08": gzip.open, b"BZh": bz2.open, b"\xfd7z": lzma.open}
LARGEST, RATIO, SMALL = 4 << 30, 20, 64 << 20  # bytes that a compressed file may unpack to; of its size, above SMALL


@dataclasses.dataclass(frozen=True, eq=False)
class Spans:
    """Record i is the bytes start[i] to start[i] + size[i] of files[number[i]]."""

    files: Sequence[Path]
    number: Int[np.ndarray, "n"]
    start: Int[np.ndarray, "n"]
    size: Int[np.ndarray, "n"]
    packed: bool = False  # start is where a record begins in what a compressed file, if it is one, unpacks to

    def __len__(self) -> int:
        return len(self.start)

    def place(self, i: int) -> str:
        """Name a record, for an error."""
        return f"{self.files[self.number[i]]}, byte {self.start[i]}"

    def read(self, i: int) -> bytes:
        """Read a record; raises UserError where its file ends before."""
        return self.read_at(int(self.number[i]), int(self.start[i]), int(self.size[i]))

    def read_at(self, file: int, start: int, size: int) -> bytes:
        """Read some bytes of a file; raises UserError where it ends before."""
        path = self.files[file]
        if self.packed and file not in self._streams and (whole := unpacked(path)) is not None:
            return _slice(path, whole, start, size)
        try:
            stream = self._streams.get(file) or open(regular_file(path, "data"), "rb", buffering=0)  # noqa: SIM115
            if len(self._streams) < OPEN:
                stream = self._streams.setdefault(file, stream)
            content = os.pread(stream.fileno(), size, start)  # no position that threads would share
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({reason(error) or one_line(error)})") from error
        return _slice(path, content, 0, size, start)

    @functools.cached_property
    def _streams(self) -> dict[int, FileIO]:
        return {}


def _slice(path: Path, content: bytes, start: int, size: int, before: int = 0) -> bytes:
    part = content[start : start + size]
    if len(part) != size:
        raise UserError(f"{path}: ends within the {size} bytes from byte {start + before} on; cut off?")
    return part


def unpacked(path: Path) -> bytes | None:
    """Return what a compressed tar unpacks to, which is held in memory; None for other files. Raises UserError."""
    try:
        with open(regular_file(path, "data"), "rb") as stream:
            head = stream.read(262)
        opened = None if head[257:] == b"ustar" else COMPRESSED.get(head[:3])
        about = path.stat()
        return opened and _unpacked(path.resolve(), opened, about.st_size, about.st_mtime_ns)
    except UserError:
        raise
    except Exception as error:  # hostile bytes raise almost anything
        raise UserError(f"{path}: cannot be unpacked; cut off or damaged? ({one_line(error)})") from error


@functools.lru_cache(maxsize=8)
def _unpacked(path: Path, opened: Callable[[Path], Any], size: int, changed: int) -> bytes:
    most = min(LARGEST, max(SMALL, RATIO * size))
    with opened(path) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise UserError(
            f"{path}: unpacks to more than {most} bytes; allowed in memory: {most}. Unpack it to a plain .tar"
        )
    return content
