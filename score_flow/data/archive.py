"""Zip and tar archives of image files, read in place: zipped folders, EDM's and StyleGAN's zips, webdataset, CelebA."""

import dataclasses
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from score_flow.data import shards, splits
from score_flow.data.base import MAX_CLASSES, PATH, Source
from score_flow.data.blobs import open_blobs
from score_flow.data.encoded import EncodedSource, OnError, takes_reader
from score_flow.data.formats import archives, index
from score_flow.data.formats.archives import Members
from score_flow.data.images import Blob, File, ImageReader
from score_flow.data.listing import LABEL_FILE, Labels, Listing, by_names, by_table
from score_flow.data.releases import named
from score_flow.data.walking import EXTENSIONS
from score_flow.errors import UserError, check_choice, printable
from score_flow.runs.files import regular_file

ARCHIVES = shards.Kind(re.compile(r"\.(zip|tar|tgz|tar\.(gz|bz2|xz))$"), "zip or tar archive")
PARTITIONS = ("list_eval_partition.txt", "list_eval_partition.csv")  # CelebA's: file, then 0, 1 or 2
NO_CLASS, NO_NUMBER = -1, -2
Named = list[tuple[str, int]]  # images: name, number of the member
CLASS = ".cls"  # webdataset's: the number of the class of the image that is called the same


@dataclasses.dataclass(frozen=True, eq=False)
class Packed(Sequence[File]):
    """Some members of archives, each read when it is asked for."""

    members: Members
    rows: Int[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> File:
        row = int(self.rows[i])
        return Blob(self.members.name(row), self.members.read(row))

    def kept(self, kind: str, scan: Callable[[], index.Arrays]) -> index.Arrays:
        """Return scan(), or what it returned before of these members."""
        rows = hashlib.sha256(np.ascontiguousarray(self.rows, "<i8")).hexdigest()
        return index.kept(self.members.spans.files, f"{kind} {rows}", scan)


@takes_reader
def build(
    split: splits.Split = "train",
    path: str = "",
    *,
    reader: ImageReader,
    on_error: OnError = "stop",
    labels: Labels = "auto",
    test_share: splits.TestShare = 0.1,
) -> Source:
    """The image files in zip and tar archives, sorted by name; nothing is unpacked.

    `path` is an archive, a folder of them, or a pattern, in quotes ("train-{0000..0127}.tar"). The splits are archives
    called so (train.zip and test.zip, val-0001.tar), else folders in the archive called so, else CelebA's
    list_eval_partition.txt in or beside it; without a test split, `test_share` of the images is held out. Classes are
    what EDM's dataset.json or webdataset's .cls files say, else the folders in the archive, as of a folder of images.
    Raises UserError.
    """
    check_choice("split", split, splits.NAMES)
    train_files, test_files, notes = shards.find(path, ARCHIVES)
    train, test = _divide(archives.open_files(train_files), Path(os.path.abspath(path)))
    stem = Path(os.path.abspath(path)).name
    if test_files and split == "test":
        test, _ = _divide(archives.open_files(test_files), test_files[0])
    listed = _list(train, labels)
    if test and split == "test":
        return _open(f"{stem}/test", test, _list(test, labels), listed.classes, reader, on_error)
    whole = _open(f"{stem}/train", train, listed, listed.classes, reader, on_error, notes)
    return whole if test or test_files else splits.share_out(whole, split, test_share, stem)


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """The images of a split: their names, sorted, and where they stand among the members; `root` for errors."""

    root: Path
    members: Members
    names: tuple[str, ...]
    rows: Int[np.ndarray, "n"]
    notes: tuple[str, ...] = ()


def _divide(members: Members, root: Path) -> tuple[Part, Part | None]:
    """Return the training and the test images, which may be none: all are training images then."""
    there = sorted((name, row) for row, name in enumerate(members.names) if _is_image(name))
    if not there:
        raise UserError(f"{PATH}: no images in {root}; allowed extensions: {', '.join(EXTENSIONS)}")
    base = _base([name for name, _ in there], members.names)
    there = [(name.removeprefix(base), row) for name, row in there]

    def part(chosen: Named, notes: tuple[str, ...] = ()) -> Part:
        return Part(root, members, tuple(name for name, _ in chosen), np.array([row for _, row in chosen]), notes)

    found = _by_folder(there, root)
    if found:
        return part(*found[0]), part(*found[1])
    table = _partition(members, root)
    if table is None:
        return part(there), None
    numbers = [_partition_of(name, table, root) for name, _ in there]
    last = 2 if 2 in numbers else 1
    chosen = {k: [each for each, number in zip(there, numbers, strict=True) if number == k] for k in (0, last)}
    if not chosen[0]:
        raise UserError(f"{root}: no image is of partition 0, that of training, in {PARTITIONS[0]}")
    return part(chosen[0]), part(chosen[last]) if chosen[last] else None


def _by_folder(there: Named, root: Path) -> tuple[tuple[Named, tuple[str, ...]], tuple[Named, tuple[str, ...]]] | None:
    """Return the images in the folders of both splits, and what lies beside those; None where there are no two.

    Raises UserError where the name of one may be that of a class.
    """
    tops = sorted({name.partition("/")[0] for name, _ in there if "/" in name}, reverse=True)
    folders = {top.lower(): top for top in tops}
    pair = [next((folders[name] for name in splits.NAMES[split] if name in folders), None) for split in splits.NAMES]
    beside = ", ".join([top for top in reversed(tops) if top not in pair][:5])
    if None in pair:
        if pair != [None, None] and beside:
            alone = next(filter(None, pair))
            raise UserError(f"{PATH}: {root}: beside {alone}/ lie {beside}: is {alone}/ a class or a split? Rename one")
        return None
    train, test = ([(n.removeprefix(f"{top}/"), row) for n, row in there if n.startswith(f"{top}/")] for top in pair)
    return (train, (f"{root}: beside {pair[0]}/ lie {beside}, which are not read",) if beside else ()), (test, ())


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(("__MACOSX/", ".")) and "/." not in name


def _base(images: list[str], names: Sequence[str]) -> str:
    """Return the folder that images are named from: that of dataset.json, else the one that all are in."""
    tables = [name for name in names if name.rpartition("/")[2] == LABEL_FILE]
    if tables:
        return min(tables, key=len)[: -len(LABEL_FILE)]
    first, last = (name.split("/")[:-1] for name in (images[0], images[-1]))  # what these share all do: they are sorted
    shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(f"{folder}/" for folder, _ in shared)


def _partition(members: Members, root: Path) -> dict[str, int] | None:
    """Return what CelebA's list_eval_partition says of each file, if that lies in the archive or beside it."""
    inside = next((row for row, name in enumerate(members.names) if name.rpartition("/")[2] in PARTITIONS), None)
    folder = members.spans.files[0].parent
    beside = next((folder / name for name in PARTITIONS if (folder / name).is_file()), None)
    if inside is None and beside is None:
        return None
    content = members.read(inside) if inside is not None else regular_file(beside, PATH).read_bytes()
    rows = [line.replace(",", " ").split() for line in content.decode("utf-8", "replace").splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1] in ("0", "1", "2")}


def _partition_of(name: str, table: dict[str, int], root: Path) -> int:
    file = name.rpartition("/")[2]
    if file not in table:
        raise UserError(f"{root}: {printable(file)} has no line in {PARTITIONS[0]}; allowed: 0, 1 or 2 for each image")
    return table[file]


def _list(part: Part, labels: Labels) -> Listing:
    """Return the images with their classes: by dataset.json, by .cls, else by folder or file name."""
    if labels == "none":
        return Listing(part.root, part.names, notes=part.notes)
    tables = [row for row, name in enumerate(part.members.names) if name.rpartition("/")[2] == LABEL_FILE]
    if labels == "json" or (tables and labels == "auto"):
        row = min(tables, key=lambda row: len(part.members.names[row]), default=None)
        table = f"{part.root} holds no {LABEL_FILE}" if row is None else part.members.read(row)
        listed = by_table(part.root, part.names, table, part.notes)
    else:
        listed = (labels == "auto" and _by_numbers(part)) or by_names(part.root, part.names, part.notes, labels=labels)
    if not listed.names and labels != "auto":
        raise UserError(f"config.data.source.labels is {labels!r}, but {listed.unlabelled}")
    return listed


def _by_numbers(part: Part) -> Listing | None:
    """Return the images with the classes of webdataset's .cls files; None where there are none."""
    if not any(name.endswith(CLASS) for name in part.members.names):
        return None
    found = index.kept(part.members.spans.files, "cls", lambda: _numbers(part.members))["number"][part.rows]
    if (found == NO_CLASS).all():
        return None
    wrong = np.flatnonzero((found < 0) | (found >= MAX_CLASSES))
    if len(wrong):
        why = f"{part.members.name(int(part.rows[wrong[0]]))} has no {CLASS} of a whole number beside it"
        return Listing(part.root, part.names, (), why, part.notes)
    return Listing(part.root, part.names, tuple(map(str, found)), "", part.notes, numbered=True)


def _numbers(members: Members) -> index.Arrays:
    """Return the class of each member, by the .cls of the same archive that is called the same up to the first dot."""
    keys = [(number, _key(name)) for number, name in zip(members.spans.number.tolist(), members.names, strict=True)]
    found = {keys[row]: _number(members.read(row)) for row, name in enumerate(members.names) if name.endswith(CLASS)}
    return {"number": np.array([found.get(key, NO_CLASS) for key in keys], np.int64)}


def _key(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _number(content: bytes) -> int:
    text = content.decode("ascii", "replace").strip()
    return int(text) if text.isdecimal() and len(text) < 10 else NO_NUMBER


def _open(
    name: str,
    part: Part,
    listed: Listing,
    classes: tuple[str, ...],
    reader: ImageReader,
    on_error: OnError,
    notes: tuple[str, ...] = (),
) -> EncodedSource:
    label = listed.labels(classes)
    return open_blobs(
        named(name, len(part.rows)), Packed(part.members, part.rows), reader, on_error,
        size=int(part.members.spans.size[part.rows].sum()), label=label, classes=classes if label is not None else (),
        unlabelled=listed.strange(classes) if label is None else "", notes=(*notes, *listed.notes),
    )  # fmt: skip
