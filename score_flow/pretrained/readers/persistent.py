"""EDM's and EDM2's pickles of networks, read as data: their source code is text here, and is not looked at.

Their classes are pickled as one function of a dict, (class_name, state, module_src, ...), and a network's state holds
its parameters, its parts and the arguments that it was built with. A tensor is a view of a storage, which torch wrote
into bytes as into one of its older files.

Errors are UserErrors that do not name the file: files.read does.
"""

import dataclasses
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from score_flow.errors import UserError
from score_flow.pretrained.readers import torch_legacy
from score_flow.pretrained.readers.torch_file import EXPANSION, GLOBALS, TorchMachine
from score_flow.runs.pickles import VALUES, Function

MARK = b"torch_utils.persistence"  # among the first names of such a file
BEGINNING = 1 << 16
DEEPEST = 32  # parts within parts of a network
PARTS = ("_parameters", "_buffers", "_modules")


def is_one(file: Path) -> bool:
    """Say whether a pickle begins as those of EDM do."""
    with file.open("rb") as stream:
        return MARK in stream.read(BEGINNING)


def read(file: Path) -> Any:
    """Read {"networks": {name: {"class_name", "arguments", "tensors"}}} of every network of a pickle's dict."""
    size = file.stat().st_size
    found = _Machine(EXPANSION * size).run(file.read_bytes())
    if type(found) is not dict:
        raise UserError("is a pickle of EDM's that holds no dict of networks")
    return {"networks": {name: _described(value) for name, value in found.items() if _is_network(value)}}


@dataclasses.dataclass(eq=False)
class Thing:
    """An object of a class that is not there: its class's name, and its attributes."""

    class_name: str = ""
    state: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _is_network(value: Any) -> bool:
    return isinstance(value, Thing) and any(True for _ in _tensors(value, "_parameters", "", 0))


def _described(network: Thing) -> dict[str, Any]:
    """Return a network as plain data; its tensors by their dotted names."""
    tensors = dict(_tensors(network, "_parameters", "", 0)) | dict(_tensors(network, "_buffers", "", 0))
    arguments = network.state.get("_init_kwargs")
    return {
        "class_name": network.class_name,
        "arguments": arguments if isinstance(arguments, dict) else {},
        "tensors": tensors,
    }


def _tensors(thing: Thing, kind: str, prefix: str, depth: int) -> Iterator[tuple[str, np.ndarray]]:
    if depth > DEEPEST:
        raise UserError(f"nests parts deeper than {DEEPEST}: no network does")
    own, parts = (thing.state.get(name) for name in (kind, "_modules"))
    for name, value in (own if isinstance(own, Mapping) else {}).items():
        if isinstance(value, np.ndarray):
            yield f"{prefix}{name}", value
    for name, part in (parts if isinstance(parts, Mapping) else {}).items():
        if isinstance(part, Thing):
            yield from _tensors(part, kind, f"{prefix}{name}.", depth + 1)


def _reconstructed(meta: Any) -> Thing:
    name, state = meta.get("class_name"), meta.get("state")
    if type(name) is not str or not isinstance(state, dict):
        raise UserError("has an object without the name of its class or its state")
    return Thing(name, state)


def _storage(contents: Any) -> np.ndarray:
    if type(contents) is not bytes:
        raise UserError("has a storage that is no bytes")
    return torch_legacy.read_stream(io.BytesIO(contents), len(contents))


def _number(dtype: Any, contents: bytes) -> float:
    if not isinstance(dtype, np.dtype) or dtype.itemsize != len(contents):
        raise UserError("has a number that is none")
    return np.frombuffer(contents, dtype)[0].item()


def _dtype(code: Any) -> np.dtype:
    if code not in ("f4", "f8", "i4", "i8"):
        raise UserError(f"holds a number of {str(code)[:80]!r}; allowed: f4, f8, i4, i8")
    return np.dtype(code)


class _Machine(TorchMachine):
    """torch's, with EDM's classes and what it keeps beside tensors: numbers of numpy, sets, parts of networks."""

    values = VALUES | {
        "EMPTY_SET": lambda _: [],  # of names: no weights
        **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"), lambda content: content),
    }
    named: ClassVar[Mapping[str, Any]] = GLOBALS | {
        "torch_utils.persistence._reconstruct_persistent_obj": Function(_reconstructed),
        "torch.storage._load_from_bytes": Function(_storage),
        "dnnlib.util.EasyDict": Function(lambda: {}),
        "builtins.set": Function(lambda items=(): []),
        **{f"torch.nn.modules.container.{name}": Function(lambda: Thing()) for name in ("ModuleDict", "ModuleList")},
        **{f"numpy.{core}.multiarray.scalar": Function(_number) for core in ("core", "_core")},
        **{f"numpy.{core}.multiarray._reconstruct": Function(lambda *_: Thing()) for core in ("core", "_core")},
        "numpy.ndarray": "ndarray",
        "numpy.dtype": Function(lambda code, *_: _dtype(code)),
    }

    def __init__(self, limit: int):
        super().__init__(_nothing, limit)

    def _obey(self, instruction: str, argument: Any) -> None:
        if instruction == "ADDITEMS":
            self._pop_to_mark()
        else:
            super()._obey(instruction, argument)

    def set_state(self, target: Any, state: Any) -> None:
        match target, state:
            case Thing(), dict():
                target.state = state
            case (np.dtype(), (_, "<" | "|" | "=", *_)) | (Thing(), tuple()):  # an array of EDM2's encoder: no weights
                pass
            case _:
                super().set_state(target, state)


def _nothing(identity: Any) -> np.ndarray:
    raise UserError("refers to something outside itself")
