"""The published checkpoint files as plain data, whatever their format; nothing that a file holds is ever run."""

import difflib
import itertools
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import msgpack
import numpy as np
from flax import serialization
from safetensors.numpy import load_file

from score_flow.errors import UserError, one_line
from score_flow.pretrained.readers import persistent, torch_file

FORMATS = "torch's zip (.pt, .pth), safetensors, flax's msgpack, EDM's pickles"
DIFFUSERS = "diffusion_pytorch_model.safetensors"  # what diffusers names the weights in a folder
BARE_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
MSGPACK_MAPS = (*range(0x80, 0x90), 0xDE, 0xDF)
SAFETENSORS_HEADER = 100_000_000  # the longest that the format allows
MAX_DEPTH, MAX_VALUES = 64, 100_000  # of nested containers and of what they hold: no network comes near

ARRAY, COMPLEX, SCALAR = 1, 2, 3  # flax's msgpack extensions
DTYPES = (
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128", "bool"),
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
)


def read(path: Path) -> Any:
    """Read a file's contents in dicts, lists, tuples, scalars, strings, None and numpy arrays (bfloat16 as float32).

    The format is told by the content, not by the name; a folder of diffusers stands for the weights in it. Raises
    UserError, naming the file, for one that is missing, damaged, of another format, or that holds code.
    """
    file = path.expanduser()
    try:
        file = _locate(file)
        return _plain(_parse(file))
    except UserError as error:
        raise UserError(f"{file}: {error}.") from error
    except Exception as error:  # hostile bytes raise almost anything
        raise UserError(f"{file}: cannot be read; truncated or damaged? ({one_line(error)[:200]}).") from error


def _locate(path: Path) -> Path:
    if path.is_dir():
        if not (path / DIFFUSERS).is_file():
            raise UserError(f"a folder without {DIFFUSERS}; name the file in it")
        return path / DIFFUSERS
    if not path.is_file():
        beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, 1)
        raise UserError("no such file" + (f"; the nearest name is {near[0]!r}" if near else ""))
    return path


def _parse(file: Path) -> Any:
    with file.open("rb") as stream:
        head = stream.read(9)
    if head.startswith(b"PK"):
        return torch_file.read(file)
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= SAFETENSORS_HEADER:
        return load_file(file)
    if head.startswith(BARE_PICKLES) and persistent.is_one(file):
        return persistent.read(file)
    if head.startswith(BARE_PICKLES):
        rewrite = "torch.save(torch.load(f), f) with torch >= 1.6"
        raise UserError(f"is a bare pickle, as torch wrote before 1.6, which can hold code; rewrite it by {rewrite}")
    if head and head[0] in MSGPACK_MAPS:
        return _msgpack(file.read_bytes())
    raise UserError(f"is no checkpoint; allowed: {FORMATS}")


def _msgpack(contents: bytes) -> Any:
    """Return what flax restores, after a first pass that admits only flax's own arrays and numbers."""
    longest = min(len(contents), MAX_VALUES)  # containers are made at their declared length
    limits = {"max_array_len": longest, "max_map_len": longest}
    try:
        msgpack.unpackb(contents, ext_hook=_check_extension, strict_map_key=False, **limits)
    except (msgpack.ExtraData, msgpack.FormatError) as error:  # a PNG starts like a msgpack file
        raise UserError(f"is no checkpoint; allowed: {FORMATS}") from error
    return serialization.msgpack_restore(contents)


def _check_extension(code: int, contents: bytes) -> None:
    if code in (ARRAY, SCALAR):
        _, dtype, _ = msgpack.unpackb(contents, raw=True)
        if dtype.decode() not in DTYPES:
            raise UserError(f"holds an array of type {dtype[:80]!r}; allowed: {', '.join(DTYPES)}")
    elif code != COMPLEX:
        raise UserError(f"holds the msgpack extension {code}, which flax does not write")


def _plain(tree: Any) -> Any:
    """The tree again, in plain types alone and small enough to walk; UserError for a cycle or endless sharing."""
    left = itertools.count(MAX_VALUES, -1)

    def convert(value: Any, depth: int) -> Any:
        if depth > MAX_DEPTH or next(left) <= 0:
            raise UserError(f"nests deeper than {MAX_DEPTH} or holds more than {MAX_VALUES} values: no checkpoint does")
        if isinstance(value, dict):
            return {_key(key): convert(item, depth + 1) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(convert(item, depth + 1) for item in value)
        if isinstance(value, np.ndarray | np.generic):
            return _numeric(value)
        if value is None or type(value) in (bool, int, float, complex, str, bytes):
            return value
        raise UserError(f"holds a {type(value).__name__}, which is no data")

    return convert(tree, 0)


def _key(key: Any) -> str | int:
    if type(key) is int or (type(key) is str and key.isprintable()):  # later errors repeat names in their one line
        return key
    raise UserError(f"has the name {repr(key)[:80]}; allowed: printable text and integers")


def _numeric(array: Any) -> Any:
    if array.dtype == jnp.bfloat16:
        return array.astype(np.float32)
    if array.dtype.kind not in "biufc":
        raise UserError(f"holds an array of {array.dtype}; allowed: numbers")
    return array
