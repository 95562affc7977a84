"""TFRecord files and the Examples in them, without TensorFlow.

A record is its length (uint64), the masked crc32c of that, its bytes, and the masked crc32c of those. The lengths are
read and checked when files are opened, the bytes whenever they are read. An Example is the protocol buffer
{1: {1: [{1: name, 2: {1: {1: bytes}} or {2: {1: floats}} or {3: {1: integers}}}]}}.
"""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from score_flow.data.formats import crc32c, index
from score_flow.data.formats.spans import Spans
from score_flow.errors import UserError, one_line
from score_flow.runs.files import regular_file

HEADER, FOOTER = 12, 4  # bytes around a record
GZIP = b"\x1f\x8b"

Feature = list[bytes] | list[int] | list[float]


def open_files(files: Sequence[Path]) -> Spans:
    """Find the records of some files. Raises UserError for one that is damaged, cut off or compressed."""

    def scan() -> index.Arrays:
        found = []
        with tqdm(total=len(files), unit=" files", desc="data: index", delay=3, leave=False, disable=None) as bar:
            for number, file in enumerate(files):
                start, size = _scan(file)
                found.append((np.full(len(start), number, np.int32), start, size))
                bar.update()
        columns = zip(*found, strict=True)
        return dict(zip(("number", "start", "size"), map(np.concatenate, columns), strict=True))

    return Spans(files, **index.kept(files, "tfrecord", scan))


def _scan(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return where the records of a file begin, and how long they are."""
    total, headers, starts, at = regular_file(path, "data").stat().st_size, [], [], 0
    with open(path, "rb") as stream:
        while at < total:
            stream.seek(at)
            header = stream.read(HEADER)
            headers.append(header.ljust(HEADER, b"\0"))
            starts.append(at + HEADER)
            at += HEADER + int.from_bytes(header[:8], "little") + FOOTER
    rows = np.frombuffer(b"".join(headers), np.uint8).reshape(-1, HEADER)
    stored = np.ascontiguousarray(rows[:, 8:]).view("<u4")[:, 0]
    wrong = np.flatnonzero(crc32c.masked_rows(rows[:, :8]) != stored)
    if len(wrong):
        if headers[0].startswith(GZIP):  # which the length of a first record may do as well
            raise UserError(f"{path}: compressed, which leaves no way to single records; gunzip it first")
        where = f"record {wrong[0]}, byte {starts[wrong[0]] - HEADER}"
        raise UserError(f"{path}: {where}: its length does not fit its crc32c; damaged, or no TFRecord file")
    if at > total:
        raise UserError(f"{path}: ends within record {len(starts) - 1}; cut off?")
    return np.array(starts, np.int64), np.ascontiguousarray(rows[:, :8]).view("<i8")[:, 0].astype(np.int64)


def read(spans: Spans, i: int) -> dict[str, Feature]:
    """Read a record, an Example, by the names of its features. Raises UserError for a damaged one."""
    whole = spans.read_at(int(spans.number[i]), int(spans.start[i]), int(spans.size[i]) + FOOTER)
    record, (stored,) = whole[:-FOOTER], struct.unpack("<I", whole[-FOOTER:])
    if crc32c.masked(record) != stored:
        raise UserError(f"{spans.place(i)}: record {i} does not fit its crc32c; damaged")
    try:
        return example(record)
    except Exception as error:  # foreign bytes raise almost anything
        raise UserError(f"{spans.place(i)}: record {i} is no Example ({one_line(error)})") from error


def example(record: bytes) -> dict[str, Feature]:
    """Return the features of an Example by their names. Raises ValueError, KeyError."""
    found = {}
    for features in _all(memoryview(record), 1):
        for entry in _all(features, 1):
            parts = dict(_fields(entry))
            found[str(parts[1], "utf-8")] = _values(parts.get(2, memoryview(b"")))
    return found


def _values(feature: memoryview) -> Feature:
    """Return the list of a Feature; numbers may be packed or not."""
    for kind, values in _fields(feature):
        if kind == 1:
            return [bytes(value) for value in _all(values, 1)]
        if kind == 2:
            return [number for value in _all(values, 1) for number in np.frombuffer(value, "<f4").tolist()]
        if kind == 3:
            return [number for value in _all(values, 1) for number in _integers(value)]
    return []


def _integers(value: int | memoryview) -> Iterator[int]:
    if isinstance(value, int):
        yield _signed(value)
        return
    at = 0
    while at < len(value):
        number, at = _varint(value, at)
        yield _signed(number)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def _all(message: memoryview, wanted: int) -> Iterator[int | memoryview]:
    return (value for number, value in _fields(message) if number == wanted)


def _fields(message: int | memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (number, value) of the fields of a protocol buffer."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
        elif kind in (1, 2, 5):
            size, at = _varint(message, at) if kind == 2 else (8 if kind == 1 else 4, at)
            value, at = message[at : at + size], at + size
        else:
            raise ValueError(f"a field of kind {kind}")
        if at > end:
            raise ValueError("a field that goes on behind its end")
        yield tag >> 3, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = message[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number & ((1 << 64) - 1), at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
