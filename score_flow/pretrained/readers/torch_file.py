"""torch's checkpoint files (.pt and .pth, a zip since torch 1.6), read without torch and without running them.

The zip holds one folder: data.pkl, a pickle that says how tensors view storages, and the storages, data/<key>. A pickle
is a program for a stack machine, which pickles.Machine interprets over plain data: what is not in the tables below is
refused by name, and nothing in a file can import or call anything.

Errors are UserErrors that do not name the file: files.read does.
"""

import collections
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from score_flow.errors import UserError
from score_flow.runs.pickles import SHOWN, Function, Machine

EXPANSION = 4  # how many times the bytes of the file its contents may take, compressed or as overlapping views

STORAGES = {
    "torch.FloatStorage": np.float32,
    "torch.DoubleStorage": np.float64,
    "torch.HalfStorage": np.float16,
    "torch.BFloat16Storage": jnp.bfloat16,
    "torch.LongStorage": np.int64,
    "torch.IntStorage": np.int32,
    "torch.ShortStorage": np.int16,
    "torch.CharStorage": np.int8,
    "torch.ByteStorage": np.uint8,
    "torch.BoolStorage": np.bool_,
}
DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def read(path: Path) -> Any:
    """Read the contents in dicts, lists, tuples, numbers, strings, None and arrays: read-only views of shared storages.

    A Parameter is its tensor, a Namespace a dict, a dtype or a device its name; bfloat16 becomes float32. References
    are kept, so that hostile contents may be deep, cyclic or endless to walk: files.read refuses those.
    """
    limit = EXPANSION * path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        folder = _folder(archive, limit)
        program = _contents(archive, f"{folder}/data.pkl")
        return TorchMachine(_Storages(archive, folder), limit).run(program)


# ---- the zip


def _folder(archive: zipfile.ZipFile, limit: int) -> str:
    """The folder that holds everything; refuses what torch does not write and what unpacks to more than `limit`."""
    entries = archive.infolist()
    folders = {entry.filename.partition("/")[0] for entry in entries}
    if len(folders) != 1 or folders & {"", ".", ".."} or f"{min(folders)}/data.pkl" not in archive.namelist():
        raise UserError("is a zip, but not of torch: that has one folder, with data.pkl in it")
    for entry in entries:
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"holds {entry.filename[:SHOWN]!r} neither stored nor deflated, as torch does")
    total = sum(entry.file_size for entry in entries)
    if total > limit:
        raise UserError(f"unpacks to {total} bytes; allowed: {EXPANSION} times its size, {limit}")
    return folders.pop()


def _contents(archive: zipfile.ZipFile, name: str) -> bytes:
    entry = archive.getinfo(name)
    with archive.open(entry) as stream:
        contents = stream.read(entry.file_size)  # no more than declared: read() would inflate all there is
    if len(contents) != entry.file_size:
        raise UserError(f"is truncated: {name[:SHOWN]!r} ends after {len(contents)} of {entry.file_size} bytes")
    return contents


class _Storages:
    """The flat arrays that tensors view, by the persistent identities in the pickle; each is read once."""

    def __init__(self, archive: zipfile.ZipFile, folder: str):
        self._archive, self._folder, self._storages = archive, folder, {}
        name = f"{folder}/byteorder"
        order = _contents(archive, name) if name in archive.namelist() else b"little"  # torch < 2.1 does not say
        if order not in (b"little", b"big"):
            raise UserError(f"has byte order {order[:SHOWN]!r}; allowed: little, big")
        self._order = "<" if order == b"little" else ">"

    def __call__(self, identity: Any) -> np.ndarray:
        match identity:
            case ("storage", np.dtype() as dtype, str() as key, str(), int() as numel):
                pass
            case _:
                raise UserError("refers to something outside itself that is no storage of a tensor")
        if key not in self._storages:
            contents = _contents(self._archive, f"{self._folder}/data/{key}")
            if len(contents) != numel * dtype.itemsize:
                what = f"{numel} elements of {dtype} in storage {key[:SHOWN]!r}"
                raise UserError(f"holds {len(contents)} bytes for {what}")
            self._storages[key] = dtype, self._array(contents, dtype)
        known, storage = self._storages[key]
        if (known, storage.size) != (dtype, numel):
            raise UserError(f"describes storage {key[:SHOWN]!r} in two ways")
        return storage

    def _array(self, contents: bytes, dtype: np.dtype) -> np.ndarray:
        words = np.frombuffer(contents, f"{self._order}u{dtype.itemsize}")
        values = words.astype(f"=u{dtype.itemsize}", copy=False).view(dtype)
        return values.astype(np.float32) if dtype == jnp.bfloat16 else values


# ---- what a pickle may name


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
    """Return a view of a storage: element i of the tensor is storage[offset + i . stride]."""
    numbers = (offset, *size, *stride)
    if type(storage) is not np.ndarray or not all(type(n) is int for n in numbers) or len(size) != len(stride):
        raise UserError("describes a tensor by something else than a storage, an offset, a size and a stride")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min(numbers) < 0 or (last >= storage.size and 0 not in size):
        place = f"offset {offset}, size {size}, stride {stride}"
        raise UserError(f"has a tensor outside its storage of {storage.size} elements: {place}"[: 2 * SHOWN])
    if 0 in size:
        return np.empty(size, storage.dtype)
    strides = [step * storage.itemsize for step in stride]
    return np.ndarray(size, storage.dtype, storage, offset * storage.itemsize, strides)  # numpy checks the bounds too


GLOBALS: dict[str, Any] = {
    **{name: np.dtype(dtype) for name, dtype in STORAGES.items()},
    **{f"torch.{name}": name for name in DTYPES},
    "torch._utils._rebuild_tensor": Function(_tensor),
    "torch._utils._rebuild_tensor_v2": Function(_tensor),
    "torch._utils._rebuild_parameter": Function(lambda tensor, requires_grad, hooks: tensor),
    "torch._utils._rebuild_parameter_with_state": Function(lambda tensor, requires_grad, hooks, state: tensor),
    "torch.Size": Function(lambda sizes: tuple(sizes)),
    "torch.device": Function(lambda kind, *index: kind),
    "collections.OrderedDict": Function(lambda: collections.OrderedDict()),
    "argparse.Namespace": Function(lambda: {}),  # BUILD fills it
}


class TorchMachine(Machine):
    """The machine, with what torch names; `storages` gives the storage of an identity."""

    named = GLOBALS
    subject = "weights"

    def __init__(self, storages: Callable[[Any], np.ndarray], limit: int):
        super().__init__(limit)
        self.refer = storages

    def set_state(self, target: Any, state: Any) -> None:
        if type(target) is dict and type(state) is dict:  # a Namespace
            target.update(state)
        elif type(target) is not collections.OrderedDict:  # whose attributes are versions of modules: no weights
            super().set_state(target, state)
