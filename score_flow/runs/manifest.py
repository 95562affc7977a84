"""What a committed step consists of: a manifest, a checksum of each of its files, and what is wrong with them.

On a disk it is the SHA-256, in hexadecimal; on a store "kind:sum", what the store itself says in a listing, so that
nothing is read back. What was copied from one place to another is read, and judged by the kind that its manifest has.
All processes ask `hashes` and `damage` together: each reads its share of the bytes.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import tensorstore

from score_flow.runs import files, places, stores
from score_flow.runs.files import first_line, reason
from score_flow.runs.places import Place
from score_flow.runs.processes import decided, gathered

META, STEP, ITEM = "meta/metadata", "_CHECKPOINT_METADATA", "_METADATA"  # what orbax writes of a step and its items


def path_of(directory: Place, step: int) -> Place:
    """Say where the manifest of a step is."""
    return directory / f"{step}.manifest.json"


def steps(directory: Place) -> list[int]:
    """Return the steps that have a manifest, ascending."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return sorted(int(found[1]) for name in names if (found := re.fullmatch(r"([0-9]+)\.manifest\.json", name)))


def read(directory: Place, step: int) -> dict[str, str] | None:
    """Read the hash of each file of a step by its name, or None if that is not what the manifest holds."""
    try:
        manifest = json.loads(places.read(path_of(directory, step)))
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(manifest, dict) and all(isinstance(value, str) for value in manifest.values())
    return manifest if whole else None


def digest(manifest: dict[str, str]) -> str:
    """Return the name of what a step holds: a short sha256 of the names and hashes of its files."""
    return hashlib.sha256(json.dumps(sorted(manifest.items())).encode()).hexdigest()[:16]


def damage(directory: Place, step: int) -> str | None:
    """Return what is wrong with the files of a step, or None: every byte is read and hashed, by one process."""
    where = directory / str(step)
    try:
        manifest = decided(f"manifest of {where}", lambda: read(directory, step))
        if manifest is None:
            return f"{path_of(directory, step).name} cannot be read"
        found = hashes(where, manifest)
        return decided(f"state of {where}", lambda: _changed(manifest, found) or _unlike_itself(where, step, found))
    except (OSError, ValueError, AttributeError, TypeError, LookupError) as error:
        return f"it cannot be read: {reason(error) or first_line(error)}"


def hashes(directory: Place, like: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Return the checksum of each file below a directory, by its name.

    like: checksums that they are to be compared with: theirs are of the same kinds. Raises OSError for a kind that only
    the store can tell which a file was written to.
    """
    told, shares = decided(f"files of {directory}", lambda: _told_or_read(directory, like))
    mine = shares[jax.process_index()]
    read = lambda: {name: _summed(directory / name, _kind(like.get(name, ""))) for name in mine}  # noqa: E731
    parts = gathered(f"hashes of {directory}", read)
    return dict(sorted(item for part in (told, *parts) for item in part.items()))


def _told_or_read(directory: Place, like: Mapping[str, str]) -> tuple[dict[str, str], list[list[str]]]:
    """(the checksums that a store tells, the names of the files to be read by each process)."""
    if not places.on_store(directory):
        return {}, divided(sizes(directory), jax.process_count())
    listed = stores.listed(directory)
    told = {name: stores.checksum(about) for name, about in listed.items()}
    told = {name: found for name, found in told.items() if _kind(like.get(name, found)) == _kind(found)}
    left = {name: int(about["size"]) for name, about in listed.items() if name not in told}
    return told, divided(left, jax.process_count())


def _kind(checksum: str) -> str:
    return checksum.partition(":")[0] if ":" in checksum else "sha256"


def _summed(file: Place, kind: str) -> str:
    if kind not in ("sha256", "md5"):
        raise OSError(f"the {kind} of {file.name} is told by the store alone that it was written to")
    return files.sha256_of(file) if kind == "sha256" else f"md5:{files.md5_of(file)}"


def sizes(directory: Path) -> dict[str, int]:
    """Return the bytes of each file below a directory of a disk, by its name."""
    found = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.stat().st_size for path in found}


def divided(sizes: dict[str, int], n: int) -> list[list[str]]:
    """Give each file to one of n, so that they read about as many bytes: the largest first, to who has the fewest."""
    shares: list[list[str]] = [[] for _ in range(n)]
    read = [0] * n
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = read.index(min(read))
        shares[least].append(name)
        read[least] += sizes[name]
    return shares


def lacking(names: Iterable[str], items: Iterable[str]) -> str | None:
    """Find the first file that a whole step with these items has, and these names have not."""
    needed = [META, STEP, *(f"{item}/{ITEM}" for item in items)]
    return next((name for name in needed if name not in names), None if items else "any item")


def _changed(manifest: dict[str, str], found: dict[str, str]) -> str | None:
    for name in sorted(manifest | found):
        if name not in found:
            return f"{name} is missing"
        if name not in manifest:
            return f"{name} is not in its manifest"
        if manifest[name] != found[name]:
            return f"{name} has changed since it was written"
    return None


def _unlike_itself(directory: Place, step: int, names: Iterable[str]) -> str | None:
    """Say whether a step is not what its name, its meta and orbax's list of its items say."""
    items = _json(directory / STEP).get("item_handlers")
    if isinstance(items, dict) and (missing := lacking(names, set(items) - {"meta"})):
        return f"{missing} is missing"
    for held in (_json(directory / META).get("step", step), _held(directory / "train", step)):
        if held != step:
            return f"it claims step {step}, and holds step {held}"
    return None


def _held(directory: Place, step: int) -> int:
    """Return the number of steps that a saved training state counts; `step` if it is no such state."""
    if not (directory / ITEM).is_file():
        return step
    written = _json(directory / ITEM)
    if "('step',)" not in written["tree_metadata"]:
        return step
    # Not by orbax, which waits for the other processes and wants the devices that the state was saved on.
    where = f"{directory}/"
    base = stores.kvstore(where) if places.on_store(directory) else {"driver": "file", "path": where}
    kvstore = {"driver": "ocdbt", "base": base, "path": "step/"}
    spec = {"driver": "zarr3" if written.get("use_zarr3") else "zarr", "kvstore": kvstore}
    return int(tensorstore.open(spec, read=True).result().read().result())


def _json(file: Place) -> dict[str, Any]:
    return json.loads(places.read(file))
