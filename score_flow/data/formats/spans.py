"""Records that lie in larger files: which file, where each begins, how long it is; read by any number of threads."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from io import FileIO
from pathlib import Path

import numpy as np
from jaxtyping import Int

from score_flow.runs.files import reason, regular_file
from score_flow.types import UserError, one_line

OPEN = 256  # files at most that stay open between two reads


@dataclasses.dataclass(frozen=True, eq=False)
class Spans:
    """Record i is the bytes start[i] to start[i] + size[i] of files[number[i]]."""

    files: Sequence[Path]
    number: Int[np.ndarray, "n"]
    start: Int[np.ndarray, "n"]
    size: Int[np.ndarray, "n"]

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
        try:
            stream = self._streams.get(file) or open(regular_file(path, "data"), "rb", buffering=0)  # noqa: SIM115
            if len(self._streams) < OPEN:
                stream = self._streams.setdefault(file, stream)
            content = os.pread(stream.fileno(), size, start)  # no position that threads would share
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({reason(error) or one_line(error)})") from error
        if len(content) != size:
            raise UserError(f"{path}: ends within the {size} bytes from byte {start} on; cut off?")
        return content

    @functools.cached_property
    def _streams(self) -> dict[int, FileIO]:
        return {}
