"""CIFAR as its authors publish it: the python version (pickles, never unpickled) or the binary one, packed or not.

An image is 3072 bytes, its red, green and blue planes. The binary version puts a label of one byte before each image,
that of CIFAR-100 two: the coarse and the fine one (Krizhevsky 2009, cs.toronto.edu/~kriz/cifar.html).
"""

import contextlib
import dataclasses
import gzip
import io
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int32, UInt8

from score_flow.errors import UserError, one_line, printable
from score_flow.runs.files import regular_file
from score_flow.runs.pickles import SHOWN, VALUES, Function, Machine

PIXELS = 3 * 32 * 32
IMAGES = {"train": 50_000, "test": 10_000}  # that were published
LARGEST, MEMBERS, REST = 1 << 28, 1000, 1 << 26  # bytes of a file, files of an archive, bytes behind its last file
GZIP = b"\x1f\x8b"
TEXTS = ("SHORT_BINSTRING", "BINSTRING", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8")  # of Python 2; bytes of 3


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """One version of one data set: the names of its folder, of its files, and of what labels and their names are."""

    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: Mapping[str, str]  # kind of labels -> the file that names them
    kinds: tuple[str, ...]  # of labels, in the order of the binary version

    @property
    def binary(self) -> bool:
        return self.test[0].endswith(".bin")


def _ten(folder: str, archive: str, suffix: str, names: str) -> Layout:
    train = tuple(f"data_batch_{i}{suffix}" for i in range(1, 6))
    return Layout(folder, archive, train, (f"test_batch{suffix}",), {"": names}, ("",))


def _hundred(folder: str, archive: str, suffix: str, names: str) -> Layout:
    kinds = ("coarse", "fine")
    return Layout(folder, archive, (f"train{suffix}",), (f"test{suffix}",), {k: names.format(k) for k in kinds}, kinds)


LAYOUTS = {
    "CIFAR-10": (
        _ten("cifar-10-batches-py", "cifar-10-python.tar.gz", "", "batches.meta"),
        _ten("cifar-10-batches-bin", "cifar-10-binary.tar.gz", ".bin", "batches.meta.txt"),
    ),
    "CIFAR-100": (
        _hundred("cifar-100-python", "cifar-100-python.tar.gz", "", "meta"),
        _hundred("cifar-100-binary", "cifar-100-binary.tar.gz", ".bin", "{}_label_names.txt"),
    ),
}


@dataclasses.dataclass(frozen=True)
class Cifar:
    """The images and labels of one split; notes: what a person should know of them at the start."""

    image: UInt8[np.ndarray, "n 32 32 3"]
    label: Int32[np.ndarray, "n"]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read(path: Path, dataset: str, split: str, kind: str, key: str) -> Cifar:
    """Read a split with labels of one kind ("", "fine", "coarse") from a folder, its parent, or the archive.

    Raises UserError, which names the file, or for a path that holds no such data set the key.
    """
    layouts, lacking = LAYOUTS[dataset], ""
    files = {layout: layout.test if split == "test" else layout.train for layout in layouts}
    wanted = {layout: (*files[layout], layout.names[kind]) for layout in layouts}
    for place in _places(path, layouts):
        found = _contents(place, {name for names in wanted.values() for name in names})
        for layout in layouts:
            missing = [name for name in wanted[layout] if name not in found]
            if not missing:
                whole = _decode(place, found, files[layout], layout, kind)
                few = f"{len(whole.image)} images, of {IMAGES[split]} that were published"
                return whole if len(whole.image) == IMAGES[split] else dataclasses.replace(whole, notes=(few,))
            if len(missing) < len(wanted[layout]):
                lacking = f" (of {layout.folder} it lacks {', '.join(missing)})"
    allowed = ", ".join(name for layout in layouts for name in (layout.folder, layout.archive))
    raise UserError(f"{key}: {path} holds no {dataset}{lacking}; allowed: {allowed}, or the folder that one is in")


def _decode(place: Path, found: dict[str, bytes], files: tuple[str, ...], layout: Layout, kind: str) -> Cifar:
    with _naming(place, layout.names[kind]):
        classes = _classes(found[layout.names[kind]], layout, kind)
    parts = []
    for name in files:
        with _naming(place, name):
            parts.append((_of_binary if layout.binary else _of_pickle)(found.pop(name), layout, kind))
            _check(*parts[-1], classes)
    image = np.concatenate([image for image, _ in parts]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Cifar(np.ascontiguousarray(image), np.concatenate([label for _, label in parts]).astype(np.int32), classes)


@contextlib.contextmanager
def _naming(place: Path, name: str) -> Iterator[None]:
    """Put the name of a file before what is wrong with it; hostile bytes raise almost anything."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place / name} {error}") from error
    except Exception as error:
        raise UserError(f"{place / name}: cannot be read; cut off or damaged? ({one_line(error)})") from error


# ---- where it lies


def _places(path: Path, layouts: tuple[Layout, ...]) -> Iterator[Path]:
    """Yield what may hold it: a file, or a folder and what its authors call the folders and archives in it."""
    yield path
    if path.is_dir():
        for name in (*(layout.folder for layout in layouts), *(layout.archive for layout in layouts)):
            if (path / name).exists():
                yield path / name


def _contents(place: Path, wanted: set[str]) -> dict[str, bytes]:
    """Return the contents of the files of some names in a folder, or in an archive, whose crc is checked."""
    if place.is_dir():
        files = [place / name for name in sorted(wanted) if (place / name).is_file()]
        large = [file for file in files if file.stat().st_size > LARGEST]
        if large:
            raise UserError(f"{large[0]}: {large[0].stat().st_size} bytes; allowed: {LARGEST}")
        return {file.name: regular_file(file, "image").read_bytes() for file in files}
    try:
        with open(regular_file(place, "image"), "rb") as stream:
            packed = stream.read(2) == GZIP
        with gzip.open(place) if packed else open(place, "rb") as stream:
            return _members(place, stream, wanted)
    except UserError:
        raise
    except Exception as error:  # hostile bytes raise almost anything
        raise UserError(f"{place}: no readable tar or tar.gz; cut off or damaged? ({one_line(error)})") from error


def _members(place: Path, stream: io.BufferedIOBase, wanted: set[str]) -> dict[str, bytes]:
    found = {}
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for i, member in enumerate(archive):
            if member.size > LARGEST or i >= MEMBERS:
                raise UserError(f"{place}: {printable(member.name)} is file {i} and has {member.size} bytes; no CIFAR")
            name = member.name.rpartition("/")[2]
            if member.isreg() and name in wanted:
                found[name] = archive.extractfile(member).read()
    if len(stream.read(REST)) == REST:  # to the end, where gzip's crc is
        raise UserError(f"{place}: goes on behind its last file; no CIFAR")
    return found


# ---- what a file holds


def _of_binary(content: bytes, layout: Layout, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images (n, PIXELS) and the labels (n,) of a file of the binary version."""
    width, labels = PIXELS + len(layout.kinds), layout.kinds.index(kind)
    if not content or len(content) % width:
        raise UserError(f"has {len(content)} bytes; allowed: {width} an image. Cut off?")
    rows = np.frombuffer(content, np.uint8).reshape(-1, width)
    return rows[:, len(layout.kinds) :], rows[:, labels]


def _of_pickle(content: bytes, layout: Layout, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images (n, PIXELS) and the labels (n,) of a file of the python version."""
    batch = ArrayMachine(2 * len(content)).run(content)
    image, labels = batch["data"], batch[f"{kind}_labels" if kind else "labels"]
    image = value_of(image)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[1:] != (PIXELS,):
        raise UserError(f"holds no images: uint8 of shape (n, {PIXELS})")
    if type(labels) is not list or not all(type(label) is int and 0 <= label < 256 for label in labels):
        raise UserError("holds no labels: a list of small whole numbers")
    return image, np.array(labels, np.int32)


def _classes(content: bytes, layout: Layout, kind: str) -> tuple[str, ...]:
    if layout.binary:
        names = content.decode().split()
    else:
        names = ArrayMachine(len(content)).run(content)[f"{kind}_label_names" if kind else "label_names"]
    if type(names) is not list or not names or not all(type(name) is str and name.isprintable() for name in names):
        raise UserError("holds no names of classes")
    return tuple(names)


def _check(image: np.ndarray, label: np.ndarray, classes: tuple[str, ...]) -> None:
    if len(image) != len(label) or not len(label):
        raise UserError(f"holds {len(label)} labels of {len(image)} images; allowed: one each")
    if label.max() >= len(classes):
        raise UserError(
            f"holds the label {label.max()}; allowed: 0 to {len(classes) - 1}, as there are names of classes"
        )


# ---- its pickles


class _Array:
    """An array that is yet to be filled."""

    value: np.ndarray | None = None


def value_of(found: Any) -> Any:
    """The array of what a machine left for one; other things as they are."""
    return found.value if type(found) is _Array else found


class ArrayMachine(Machine):
    """The machine, with arrays of bytes as numpy has written them since Python 2, whose text is one byte a letter."""

    subject = "images"
    values = VALUES | dict.fromkeys(TEXTS, lambda text: text)
    named: ClassVar[Mapping[str, Any]] = {
        "numpy.ndarray": "ndarray",
        **{f"numpy.{core}.multiarray._reconstruct": Function(lambda *_: _Array()) for core in ("core", "_core")},
        "numpy.dtype": Function(lambda code, *_: _dtype(code)),
        "_codecs.encode": Function(lambda text, code: text.encode(_latin(code))),
    }

    def set_state(self, target: Any, state: Any) -> None:
        match target, state:
            case _Array(), (int(), tuple() as shape, np.dtype() as dtype, False, str() | bytes() as content):
                content = content if isinstance(content, bytes) else content.encode("latin-1")
                target.value = np.frombuffer(content, dtype).reshape(shape)
            case np.dtype(), tuple():  # of one byte: no order
                pass
            case _:
                super().set_state(target, state)


def _dtype(code: Any) -> np.dtype:
    if code != "u1":
        raise UserError(f"holds an array of {str(code)[:SHOWN]!r}; allowed: u1, bytes")
    return np.dtype(np.uint8)


def _latin(code: Any) -> str:
    if code not in ("latin1", "latin-1"):
        raise UserError(f"holds text of {str(code)[:SHOWN]!r}; allowed: latin1")
    return code
