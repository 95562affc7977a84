"""The members of zip and tar archives, read in place and in any order: nothing is unpacked to the disk.

A zip has a directory of its members; of a tar the headers are read once. Both are kept as an index. What a member
unpacks to is bounded by what the directory says, and that by LARGEST. A compressed tar, which leaves no way to single
members, is unpacked in memory.
"""

import dataclasses
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from score_flow.data.formats import index
from score_flow.data.formats.spans import Spans, unpacked
from score_flow.errors import UserError, one_line, printable
from score_flow.runs.files import regular_file

LARGEST = 1 << 28  # bytes of a member
LOCAL = struct.Struct("<4s22xHH")  # a zip's header before a member: signature, lengths of its name and extra field


@dataclasses.dataclass(frozen=True, eq=False)
class Members:
    """The files in some archives: `names` as the archives call them, `spans` where their bytes are.

    Of a zip, `spans` begins at the header of each, `unpacked` is its size and `crc` that of its content; else None.
    """

    names: Sequence[str]
    spans: Spans
    method: Int[np.ndarray, "n"] | None = None
    unpacked: Int[np.ndarray, "n"] | None = None
    crc: Int[np.ndarray, "n"] | None = None

    def __len__(self) -> int:
        return len(self.spans)

    def name(self, i: int) -> str:
        """Name a member, for an error: the archive and its name in that."""
        return f"{self.spans.files[self.spans.number[i]]}: {printable(self.names[i])}"

    def read(self, i: int) -> bytes:
        """Read and unpack a member; raises UserError for a damaged one."""
        if self.method is None:
            return self.spans.read(i)
        try:
            return self._unpack(i)
        except (zlib.error, struct.error) as error:
            raise UserError(f"{self.name(i)}: cannot be unpacked; damaged? ({one_line(error)})") from error

    def _unpack(self, i: int) -> bytes:
        file, start, size = int(self.spans.number[i]), int(self.spans.start[i]), int(self.unpacked[i])
        signature, name, extra = LOCAL.unpack(self.spans.read_at(file, start, LOCAL.size))
        if signature != b"PK\3\4":
            raise UserError(f"{self.name(i)}: is not where the directory of the archive says; damaged?")
        content = self.spans.read_at(file, start + LOCAL.size + name + extra, int(self.spans.size[i]))
        if self.method[i] == zipfile.ZIP_DEFLATED:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)
        if len(content) != size or zlib.crc32(content) != self.crc[i]:
            raise UserError(f"{self.name(i)}: does not fit its size and crc; damaged?")
        return content


def open_files(files: Sequence[Path]) -> Members:
    """Find the members of some archives of one kind, zip or tar, told by their content. Raises UserError."""
    zipped = {zipfile.is_zipfile(regular_file(file, "data")) for file in files}
    if len(zipped) > 1:
        raise UserError(f"{files[0].parent}: zip and tar archives; allowed: one kind")
    scan = _scan_zip if zipped == {True} else _scan_tar
    found = index.kept(files, scan.__name__, lambda: _scan_all(files, scan))
    names = index.unpacked(found.pop("names"))
    columns = {name: found.pop(name) for name in ("number", "start", "size")}
    return Members(names, Spans(files, **columns, packed=zipped == {False}), **found)


def _scan_all(files: Sequence[Path], scan: Callable[[Path], Iterator[tuple[str, dict[str, int]]]]) -> index.Arrays:
    names, rows = [], []
    with tqdm(unit=" members", desc="data: index", delay=3, leave=False, disable=None) as bar:
        for number, file in enumerate(files):
            try:
                for name, row in scan(file):
                    _check(file, name, row)
                    names.append(name)
                    rows.append(row | {"number": number})
                    bar.update()
            except UserError:
                raise
            except Exception as error:  # hostile bytes raise almost anything
                raise UserError(f"{file}: no readable zip or tar; cut off or damaged? ({one_line(error)})") from error
    if not rows:
        raise UserError(f"{files[0]}: an archive of no files")
    return {"names": index.packed(names)} | {key: np.array([row[key] for row in rows], np.int64) for key in rows[0]}


def _check(file: Path, name: str, row: dict[str, int]) -> None:
    if name.startswith("/") or "\0" in name or ".." in name.split("/"):
        raise UserError(f"{file}: a member is called {printable(name)}, which leads out of the archive")
    if (size := row.get("unpacked", row["size"])) > LARGEST:
        raise UserError(f"{file}: {printable(name)} unpacks to {size} bytes; allowed: {LARGEST}")


def _scan_zip(file: Path) -> Iterator[tuple[str, dict[str, int]]]:
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.is_dir():
                continue
            if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                how = "encrypted" if entry.flag_bits & 1 else f"packed by method {entry.compress_type}"
                raise UserError(f"{file}: {printable(entry.filename)} is {how}; allowed: stored and deflated")
            yield entry.filename, {
                "start": entry.header_offset, "size": entry.compress_size, "unpacked": entry.file_size,
                "method": entry.compress_type, "crc": entry.CRC,
            }  # fmt: skip


def _scan_tar(file: Path) -> Iterator[tuple[str, dict[str, int]]]:
    whole = unpacked(file)
    with open(file, "rb") if whole is None else io.BytesIO(whole) as stream:
        if _ends_early(stream):
            raise UserError(f"{file}: no zip, and does not end as a tar does; cut off?")
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                archive.members = []  # which tarfile would keep
                if member.isreg() and not member.issparse():
                    yield member.name.removeprefix("./"), {"start": member.offset_data, "size": member.size}


def _ends_early(stream: io.BufferedIOBase) -> bool:
    """Say whether a tar does not end in zeros: tarfile takes one that is cut between two members for whole."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(-min(size, tarfile.BLOCKSIZE), io.SEEK_END)
    early = any(stream.read())
    stream.seek(0)
    return early
