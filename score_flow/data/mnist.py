"""MNIST and its like (Fashion-MNIST, KMNIST, EMNIST) as published: idx files, gzipped or not (Le Cun et al. 1998)."""

import gzip
import math
import re
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from score_flow.data import fitting, splits
from score_flow.data.base import PATH, ArraySource, Source
from score_flow.errors import UserError, check_choice, one_line
from score_flow.runs.files import existing_path, regular_file

# train-images-idx3-ubyte.gz, t10k-labels.idx1-ubyte, emnist-letters-test-images-idx3-ubyte.gz
IMAGES = re.compile(r"^(?P<stem>.*)images(?P<dot>[-.])idx3-ubyte(?P<gz>\.gz)?$")
LARGEST = 1 << 32  # bytes
WORDS = {"train": "train", "test": "test", "t10k": "test"}


def build(
    split: splits.Split = "train",
    path: str = "",
    pad_to: fitting.PadTo = 0,
    test_share: splits.TestShare = 0.1,
) -> Source:
    """Grey images of a folder of idx files, or of one file: train-images-idx3-ubyte[.gz] and its labels beside it.

    The test split is t10k-... or ...test...; without it, `test_share` of the images is held out. `pad_to`, 32 say, adds
    black around each. Raises UserError.
    """
    check_choice("split", split, splits.NAMES)
    place = existing_path(path, PATH)
    found = _find(place)
    if "train" not in found:
        raise UserError(f"{PATH}: {place} has no train-images-idx3-ubyte or train-images-idx3-ubyte.gz")
    parts = {name: _labels(file) for name, file in found.items()}
    classes = max((int(label.max(initial=0)) + 1 for label in parts.values() if label is not None), default=0)
    name = split if split in found else "train"
    file, label = found[name], parts[name]
    image = _read(file, 3)[..., None]
    if not image.size or (label is not None and len(label) != len(image)):
        raise UserError(
            f"{file}: {len(image)} images for {0 if label is None else len(label)} labels; allowed: one each"
        )
    stem = place.resolve().name if place.is_dir() else file.name
    known = label is not None and all(each is not None for each in parts.values())
    lacking = ", ".join(str(file) for split, file in found.items() if parts[split] is None)
    source = ArraySource(
        f"{stem}/{name}", fitting.padded(image, pad_to, 0), label if known else None,
        num_classes=classes if known else 0, unlabelled=lacking and f"no labels-idx1-ubyte beside {lacking}",
    )  # fmt: skip
    return source if "test" in found else splits.share_out(source, split, test_share, stem)


def _find(place: Path) -> dict[str, Path]:
    """Return the file of the images of each split."""
    if not place.is_dir():
        return {"train": place}
    folders = [folder for folder in (place, place / "raw") if folder.is_dir()]  # raw: torchvision's
    there = next(filter(None, ([f for f in sorted(each.iterdir()) if IMAGES.match(f.name)] for each in folders)), [])
    found: dict[str, list[Path]] = {}
    for file in there:
        word = next((split for word, split in WORDS.items() if word in re.split(r"[^a-z0-9]", file.name.lower())), None)
        found.setdefault(word or "train", []).append(file)
    for split, files in found.items():
        plain = {re.sub(r"\.gz$", "", file.name) for file in files}
        if len(plain) > 1:
            raise UserError(
                f"{PATH}: {place} has {', '.join(sorted(plain)[:5])} for {split}; allowed: one, give its file"
            )
    return {split: files[0] for split, files in found.items()}


def _labels(file: Path) -> np.ndarray | None:
    """Return the labels that lie beside images; None where there are none."""
    match = IMAGES.match(file.name)
    if not match:
        return None
    names = [f"{match['stem']}labels{dot}idx1-ubyte{gz}" for dot in (match["dot"], "-", ".") for gz in ("", ".gz")]
    beside = next((file.with_name(name) for name in names if file.with_name(name).is_file()), None)
    return None if beside is None else _read(beside, 1).astype(np.int32)


def _read(file: Path, axes: int) -> Shaped[np.ndarray, "..."]:
    """Read an idx file of bytes: two zeros, the type (8: uint8), the number of axes, their sizes, the values."""
    try:
        with open(regular_file(file, PATH), "rb") as stream:
            packed = stream.read(2) == b"\x1f\x8b"
        with gzip.open(file) if packed else open(file, "rb") as stream:
            head = stream.read(4 + 4 * axes)
            sizes = tuple(int.from_bytes(head[4 * k : 4 * k + 4], "big") for k in range(1, axes + 1))
            if head[:4] != bytes([0, 0, 8, axes]):
                raise UserError(f"{file}: no idx file of uint8 with {axes} axes; begins with {head[:4].hex()}")
            if math.prod(sizes) > LARGEST:
                raise UserError(f"{file}: {math.prod(sizes)} bytes; allowed: {LARGEST}")
            content = stream.read(math.prod(sizes) + 1)  # to the end, where gzip's crc is
    except UserError:
        raise
    except Exception as error:  # hostile bytes raise almost anything
        raise UserError(f"{file}: cannot be read; cut off or damaged? ({one_line(error)})") from error
    if len(content) != math.prod(sizes):
        raise UserError(
            f"{file}: {len(content)} bytes behind its header; allowed: {math.prod(sizes)}, as it says. Cut off?"
        )
    return np.frombuffer(content, np.uint8).reshape(sizes)
