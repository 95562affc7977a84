"""A file of one network's tensors by their published names: torch's formats, .npz or safetensors, told by content."""

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from score_flow.errors import UserError, one_line
from score_flow.pretrained.readers import files, torch_legacy
from score_flow.runs.files import arrays_of, sha256_of
from score_flow.runs.places import local, place_of

T = TypeVar("T")
MOST_TENSORS = 10_000  # that a file may hold: no network has as many


def load(path: str | Path, of: str, how: str, most: int, make: Callable[[dict[str, Any]], T]) -> tuple[Path, str, T]:
    """(the file, its SHA-256, what is made of its tensors); an .npz unpacks to at most so many bytes.

    Raises UserError, which names the file and ends in how to get it.
    """
    file = open_file(path, of, how)
    digest = checksum(file, how)
    try:
        return file, digest, make(read(file, most))
    except UserError as error:
        raise UserError(f"{file}: {str(error).removeprefix(f'{file}: ').removesuffix('.')}; {how}") from error


def open_file(path: str | Path, of: str, how: str) -> Path:
    """Return the file of weights `of` something; raises UserError, which ends in how to get it, where there is none."""
    file = local(place_of(path))
    if not str(path) or not file.is_file():
        got = f"no such file: {path}" if str(path) else "no file of weights is given"
        raise UserError(f"{of}: {got}; {how}")
    return file


def checksum(file: Path, how: str) -> str:
    """SHA-256 of a file; raises UserError unless it begins as the name of a .pth promises (name-<hex digits>.pth)."""
    digest = sha256_of(file)
    promised = re.search(r"-([0-9a-f]{8,64})\.pth$", file.name)
    if promised and not digest.startswith(promised[1]):
        raise UserError(f"{file}: damaged: its sha256 is {digest[:16]}... and its name says {promised[1]}; {how}")
    return digest


def read(file: Path, most: int) -> dict[str, Any]:
    """Read named arrays, of an .npz of at most `most` bytes; nothing in a file is run.

    Raises UserError, which does not name the file.
    """
    try:
        tensors = _parse(file, most)
    except UserError:
        raise
    except Exception as error:  # hostile bytes raise almost anything
        raise UserError(f"cannot be read; truncated or damaged? ({one_line(error)[:200]})") from error
    named = isinstance(tensors, dict) and all(type(name) is str and name.isprintable() for name in tensors)
    if not named or len(tensors) > MOST_TENSORS:
        raise UserError(f"holds no named tensors, or more than {MOST_TENSORS}")
    return tensors


def _parse(file: Path, most: int) -> Any:
    with file.open("rb") as stream:
        head = stream.read(len(torch_legacy.MAGIC))
    if head == torch_legacy.MAGIC:
        return torch_legacy.read(file)
    if head.startswith(b"PK") and _is_npz(file):
        return arrays_of(file, most=most)
    return files.read(file)


def _is_npz(file: Path) -> bool:
    """Say whether a zip is an .npz; torch's files are zips too."""
    with zipfile.ZipFile(file) as archive:
        return all(name.endswith(".npy") for name in archive.namelist())
