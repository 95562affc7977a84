"""torch's files from before 1.6, read as safely as the later ones (torch_file.py): pickles in a row, then storages.

The pickles are a magic number, a version, facts of the machine, the contents, and the order of the storages that
follow; each of those is its number of elements and then the elements. The published InceptionV3 is such a file.
"""

import pickletools
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from score_flow.errors import UserError
from score_flow.pretrained.readers.torch_file import EXPANSION, TorchMachine
from score_flow.runs.pickles import SHOWN

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
VERSION = 1001


def read(path: Path) -> Any:
    """Read the contents, as torch_file.read gives them. Errors are UserErrors that do not name the file."""
    with path.open("rb") as stream:
        return read_stream(stream, path.stat().st_size)


def read_stream(stream: BufferedIOBase, size: int) -> Any:
    """Read the contents of a stream of so many bytes, as `read` does."""
    storages = _Storages(size)
    if stream.read(len(MAGIC)) != MAGIC:
        raise UserError("is no file of torch")
    programs = [_program(stream) for _ in range(4)]
    version, machine, contents, keys = (TorchMachine(storages, EXPANSION * size).run(p) for p in programs)
    if version != VERSION or type(machine) is not dict or machine.get("little_endian") is not True:
        raise UserError(f"is of version {version!r:.{SHOWN}}; allowed: {VERSION}, little-endian")
    storages.fill(stream, keys)
    return contents


def _program(stream: BufferedIOBase) -> bytes:
    """Return the bytes of the next pickle, none of it run."""
    start = stream.tell()
    for _ in pickletools.genops(stream):
        pass
    end = stream.tell()
    stream.seek(start)
    return stream.read(end - start)


class _Storages:
    """The flat arrays that tensors view: made when the contents name them, filled when the file comes to them."""

    def __init__(self, size: int):
        self._left, self._storages = size, {}

    def __call__(self, identity: Any) -> np.ndarray:
        match identity:
            case ("storage", np.dtype() as dtype, str() as key, str(), int() as numel, None) if numel >= 0:
                pass
            case _:
                raise UserError("refers to something outside itself that is no storage of a tensor")
        if key not in self._storages:
            self._left -= numel * dtype.itemsize
            if self._left < 0:
                raise UserError(f"is truncated: storage {key[:SHOWN]!r} of {numel} elements is more than it has")
            kept = np.float32 if dtype == jnp.bfloat16 else dtype
            self._storages[key] = dtype, np.zeros(numel, kept)
        known, storage = self._storages[key]
        if (known, storage.size) != (dtype, numel):
            raise UserError(f"describes storage {key[:SHOWN]!r} in two ways")
        return storage

    def fill(self, stream: BufferedIOBase, keys: Any) -> None:
        """Read every storage, in the order of the keys."""
        named = type(keys) is list and all(type(key) is str for key in keys)
        if not named or sorted(keys) != sorted(self._storages):
            raise UserError("names other storages than its tensors view")
        for key in keys:
            dtype, storage = self._storages[key]
            numel = int.from_bytes(stream.read(8), "little")
            contents = stream.read(storage.size * dtype.itemsize)
            if numel != storage.size or len(contents) != storage.size * dtype.itemsize:
                raise UserError(f"is truncated: storage {key[:SHOWN]!r} has not {storage.size} elements")
            storage[:] = np.frombuffer(contents, dtype)
