"""What a committed step consists of: a manifest, the sha256 of each of its files, and what is wrong with them.

All processes ask `hashes` and `damage` together: each reads its share of the bytes.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

import jax
import tensorstore

from score_flow.runs.files import first_line, reason, sha256_of
from score_flow.runs.processes import decided, gathered

META, STEP, ITEM = "meta/metadata", "_CHECKPOINT_METADATA", "_METADATA"  # what orbax writes of a step and its items


def path_of(directory: Path, step: int) -> Path:
    """Say where the manifest of a step is."""
    return directory / f"{step}.manifest.json"


def steps(directory: Path) -> list[int]:
    """Return the steps that have a manifest, ascending."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return sorted(int(found[1]) for name in names if (found := re.fullmatch(r"([0-9]+)\.manifest\.json", name)))


def read(directory: Path, step: int) -> dict[str, str] | None:
    """Read the hash of each file of a step by its name, or None if that is not what the manifest holds."""
    try:
        manifest = json.loads(path_of(directory, step).read_text())
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(manifest, dict) and all(isinstance(value, str) for value in manifest.values())
    return manifest if whole else None


def digest(manifest: dict[str, str]) -> str:
    """Return the name of what a step holds: a short sha256 of the names and hashes of its files."""
    return hashlib.sha256(json.dumps(sorted(manifest.items())).encode()).hexdigest()[:16]


def damage(directory: Path, step: int) -> str | None:
    """Return what is wrong with the files of a step, or None: every byte is read and hashed, by one process."""
    where = directory / str(step)
    try:
        manifest = decided(f"manifest of {where}", lambda: read(directory, step))
        if manifest is None:
            return f"{path_of(directory, step).name} cannot be read"
        found = hashes(where)
        return decided(f"state of {where}", lambda: _changed(manifest, found) or _unlike_itself(where, step))
    except (OSError, ValueError, AttributeError, TypeError, LookupError) as error:
        return f"it cannot be read: {reason(error) or first_line(error)}"


def hashes(directory: Path) -> dict[str, str]:
    """Return the sha256 of each file below a directory, by its name."""
    shares = decided(f"files of {directory}", lambda: divided(sizes(directory), jax.process_count()))
    mine = shares[jax.process_index()]
    parts = gathered(f"hashes of {directory}", lambda: {name: sha256_of(directory / name) for name in mine})
    return dict(sorted(item for part in parts for item in part.items()))


def sizes(directory: Path) -> dict[str, int]:
    """Return the bytes of each file below a directory, by its name."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.stat().st_size for path in files}


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


def _unlike_itself(directory: Path, step: int) -> str | None:
    """Say whether a step is not what its name, its meta and orbax's list of its items say."""
    items = json.loads((directory / STEP).read_text()).get("item_handlers")
    names = {str(path.relative_to(directory)) for path in directory.rglob("*")}
    if isinstance(items, dict) and (missing := lacking(names, set(items) - {"meta"})):
        return f"{missing} is missing"
    for held in (json.loads((directory / META).read_text()).get("step", step), _held(directory / "train", step)):
        if held != step:
            return f"it claims step {step}, and holds step {held}"
    return None


def _held(directory: Path, step: int) -> int:
    """Return the number of steps that a saved training state counts; `step` if it is no such state."""
    if not (directory / ITEM).is_file():
        return step
    written = json.loads((directory / ITEM).read_text())
    if "('step',)" not in written["tree_metadata"]:
        return step
    # Not by orbax, which waits for the other processes and wants the devices that the state was saved on.
    files = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{directory}/"}, "path": "step/"}
    spec = {"driver": "zarr3" if written.get("use_zarr3") else "zarr", "kvstore": files}
    return int(tensorstore.open(spec, read=True).result().read().result())
