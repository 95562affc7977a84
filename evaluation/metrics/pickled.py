"""EDM2's reference statistics: a pickle of {"fid": {"mu", "sigma"}, "fd_dinov2": ..., "num_images"}; read, not run."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from score_flow.data.formats.cifar import value_of
from score_flow.data.formats.imagenet_pickle import RealMachine
from score_flow.errors import UserError, one_line
from score_flow.runs.places import Place

PICKLE = b"\x80"  # what those of protocol 2 and later begin with
COUNT = "num_images"


def is_one(file: Place) -> bool:
    """Say whether a file begins as a pickle does."""
    try:
        with file.open("rb") as stream:
            return stream.read(1) == PICKLE
    except OSError:
        return False  # which whoever reads it says


def read(file: Place, distance: str, ends: Mapping[str, str], most: int) -> dict[str, np.ndarray]:
    """Read mu and sigma of the features of a distance, those of others beside it with their `ends`, and the count n.

    Raises UserError, naming the file, for other contents, for a file of more than `most` bytes, and for one without
    the features of that distance. No code that it may hold is run.
    """
    if (size := file.stat().st_size) > most:
        raise UserError(f"{file}: {size} bytes; allowed: {most}")
    try:
        with file.open("rb") as stream:
            groups = _groups(_Machine(2 * size).run(stream.read()))
    except UserError as error:
        raise UserError(f"{file}: {error}; pickles are read as data alone, as EDM2 writes its statistics.") from error
    except Exception as error:  # hostile bytes raise almost anything
        raise UserError(f"{file}: no readable statistics; cut off or damaged? ({one_line(error)[:200]})") from error
    of = [name for name in groups if name != COUNT]
    if distance not in groups or distance == COUNT:
        raise UserError(f"{file}: holds statistics of {', '.join(of)}; config.eval.extractor makes {distance}.")
    arrays = {"n": np.asarray(groups[COUNT])} if type(groups.get(COUNT)) is int else {}
    for name in of:
        end = "" if name == distance else ends.get(name)
        if end is not None:
            arrays |= {f"{part}{end}": value for part, value in groups[name].items()}
    return arrays


def _groups(found: Any) -> dict[str, Any]:
    """Return {metric: {"mu": ..., "sigma": ...}} of what a pickle holds."""
    if type(found) is not dict or not all(type(name) is str and name.isprintable() for name in found):
        raise UserError("holds no statistics: a dict by the names of distances")
    groups = {}
    for name, group in found.items():
        if name == COUNT:
            groups[name] = group
            continue
        parts = {part: value_of(value) for part, value in group.items()} if type(group) is dict else {}
        if not all(isinstance(parts.get(part), np.ndarray) for part in ("mu", "sigma")):
            raise UserError(f"holds no mu and sigma of {name[:80]}")
        groups[name] = {part: parts[part] for part in ("mu", "sigma")}
    return groups


class _Machine(RealMachine):
    """That of arrays of real numbers."""

    subject = "statistics"
