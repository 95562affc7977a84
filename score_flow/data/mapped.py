"""Folders that a mode of this program wrote, <path>/<split>/: arrays to be mapped into memory, and their facts.

The facts are written last: a folder without them was not finished. Nothing is unpickled.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from score_flow.data.base import MAX_CLASSES, PATH
from score_flow.errors import UserError, one_line
from score_flow.runs.files import existing_path, regular_file

FACTS_BYTES = 1 << 24


@contextlib.contextmanager
def opened(path: str, split: str, name: str, what: str, mode: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Open (the folder of a split, the facts in its file `name`); raises UserError for all that goes wrong within."""
    folder = existing_path(path, PATH) / split
    file = folder / name
    if not file.exists():
        raise UserError(f"{PATH}: {folder} holds no {name}: make it by --mode={mode}, or let that finish.")
    if regular_file(file, PATH).stat().st_size > FACTS_BYTES:
        raise UserError(f"{file}: larger than {FACTS_BYTES} bytes; make it by --mode={mode}.")
    try:
        facts = json.loads(file.read_text())
        classes = facts["num_classes"]
        if type(classes) is not int or not 0 <= classes < MAX_CLASSES:
            raise UserError(f"{file}: got num_classes = {classes}; allowed: 0 to {MAX_CLASSES - 1}.")
        yield folder, facts
    except UserError:
        raise
    except Exception as error:  # hostile bytes raise almost anything
        raise UserError(f"{folder}: cannot be read as {what} ({one_line(error)}).") from error


def arrays_in(
    folder: Path, wanted: Mapping[str, tuple[tuple[int, ...], str]], num_classes: int
) -> dict[str, np.ndarray]:
    """Map {name: (shape, kind)} arrays, with the labels of the first's rows where there are classes.

    Raises UserError for others, and for labels that are of none of the classes.
    """
    n = next(iter(wanted.values()))[0][0]
    wanted = {**wanted, **({"label": ((n,), "int32")} if num_classes else {})}
    found = {}
    for name, (shape, kind) in wanted.items():
        file = folder / f"{name}.npy"
        array = found[name] = np.load(regular_file(file, PATH), mmap_mode="r", allow_pickle=False)
        if (array.shape, array.dtype.name) != (shape, kind):
            raise UserError(f"{file} holds {array.dtype.name} of shape {array.shape}; allowed: {kind} {shape}")
    label = found.get("label")
    if label is not None and label.size and not 0 <= label.min() <= label.max() < num_classes:
        allowed = f"0 to {num_classes - 1}, as its facts say"
        raise UserError(f"{folder / 'label.npy'}: labels run from {label.min()} to {label.max()}; allowed: {allowed}")
    return found
