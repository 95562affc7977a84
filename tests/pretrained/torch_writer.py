"""A writer of torch's format: programs for pickle's machine (protocol 2), and the zip around them."""

import struct
import zipfile

import numpy as np
import pytest

from score_flow.errors import UserError
from score_flow.pretrained.readers.files import read


class Program(bytes):
    """Instructions that leave one value on the stack."""


def program(value) -> Program:
    match value:
        case Program():
            return value
        case None | bool():
            return Program({None: b"N", True: b"\x88", False: b"\x89"}[value])
        case int():
            size = value.bit_length() // 8 + 1
            return Program(b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True))
        case float():
            return Program(b"G" + struct.pack(">d", value))
        case str():
            return Program(b"X" + struct.pack("<I", len(value.encode())) + value.encode())
        case tuple():
            return Program(b"(" + b"".join(map(program, value)) + b"t")
        case list():
            return Program(b"](" + b"".join(map(program, value)) + b"e")
        case dict():
            return Program(b"}(" + b"".join(program(item) for pair in value.items() for item in pair) + b"u")


def name(dotted: str) -> Program:
    module, _, last = dotted.rpartition(".")
    return Program(f"c{module}\n{last}\n".encode())


def call(function: str, *arguments) -> Program:
    return Program(name(function) + program(arguments) + b"R")


def storage(key="0", numel=6, kind="torch.FloatStorage") -> Program:
    return Program(program(("storage", name(kind), key, "cpu", numel)) + b"Q")


def tensor(size, stride, offset=0, **of) -> Program:
    hooks = call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v2", storage(**of), offset, size, stride, False, hooks)


SIX = np.arange(6, dtype=np.float32)


def write(file, value, storages=None, order=b"little", folder="archive", compression=zipfile.ZIP_STORED, stop=b"."):
    """A file of torch that holds the value, whose tensors view these storages (SIX by default)."""
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(f"{folder}/data.pkl", b"\x80\x02" + program(value) + stop)
        archive.writestr(f"{folder}/byteorder", order)
        for key, content in ({"0": SIX} if storages is None else storages).items():
            archive.writestr(f"{folder}/data/{key}", content.tobytes())
    return file


def refusal(file) -> str:
    """What reading the file says: one line that names it."""
    with pytest.raises(UserError) as error:
        read(file)
    message = str(error.value)
    assert "\n" not in message and message.startswith(str(file)) and len(message) < len(str(file)) + 400
    return message
