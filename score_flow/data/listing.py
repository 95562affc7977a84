"""The image files of a folder and their classes, in an order that does not depend on the file system."""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int32

from score_flow.data import splits
from score_flow.data.base import MAX_CLASSES, PATH
from score_flow.data.walking import EXTENSIONS, any_image, folders_in, is_image, walk
from score_flow.errors import UserError, one_line
from score_flow.runs.files import regular_file

Labels = Literal["auto", "none", "folder", "prefix", "json"]
LABEL_FILE, LABEL_BYTES = "dataset.json", 1 << 28  # EDM's and StyleGAN's


@dataclasses.dataclass(frozen=True)
class Listing:
    """The image files under `root`, relative to it, and the class of each by its name, if they have classes.

    `unlabelled` says why there are no classes where there seem to be some.
    """

    root: Path
    files: tuple[str, ...]
    names: tuple[str, ...] = ()
    unlabelled: str = ""
    notes: tuple[str, ...] = ()
    numbered: bool = False  # by a label file

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes in their order; those of a label file are its numbers."""
        if self.names and self.numbered:
            return tuple(map(str, range(max(map(int, self.names)) + 1)))
        return tuple(sorted(set(self.names)))

    def labels(self, classes: tuple[str, ...]) -> Int32[np.ndarray, "n"] | None:
        """Return the number of each file's class, or None where one has no class of these."""
        index = {name: i for i, name in enumerate(classes)}
        if not self.names or any(name not in index for name in set(self.names)):
            return None
        return np.array([index[name] for name in self.names], np.int32)

    def strange(self, classes: tuple[str, ...]) -> str:
        """Say why its files cannot be labelled by these classes."""
        if self.unlabelled or not classes:
            return self.unlabelled
        other = sorted(set(self.names) - set(classes))
        got = f"class {', '.join(other[:3])}" if other else "files without a class"
        return f"{self.root}: got {got}; allowed, from the train folder: {', '.join(classes[:10])}"


def list_images(root: Path, labels: Labels = "auto") -> Listing:
    """Find the image files under a folder. Links to folders are followed, each once; hidden files are left out."""
    files, notes = walk(root)
    if not files:
        raise UserError(f"{PATH}: no images under {root}; allowed extensions: {', '.join(EXTENSIONS)}")
    if labels == "none":
        return Listing(root, files, notes=notes)
    if labels == "json" or (labels == "auto" and (root / LABEL_FILE).exists()):
        listed = by_table(root, files, _table(root / LABEL_FILE), notes)
    else:
        listed = by_names(root, files, notes, [folder.name for folder in folders_in(root)], labels)
    if not listed.names and labels != "auto":
        raise UserError(f"config.data.source.labels is {labels!r}, but {listed.unlabelled}")
    return listed


def by_names(
    root: Path,
    files: tuple[str, ...],
    notes: tuple[str, ...] = (),
    folders: Sequence[str] = (),
    labels: Labels = "auto",
) -> Listing:
    """Read the classes off the names of files: their folders, else what precedes the first "_".

    root: where they lie, a folder or an archive; folders: those that are in it, with or without files.
    """
    inside = tuple([file[: file.find("/") + 1][:-1] for file in files])  # "" of a file that is in no folder
    top = Counter(inside)
    stray = [file for file in files if "/" not in file] if top.pop("", 0) else []
    if not stray and labels != "prefix":
        empty = [folder for folder in folders if folder not in top]
        said = f"folders without an image are no classes: {', '.join(f'{name} 0' for name in empty[:20])}"
        return Listing(root, files, inside, notes=(*notes, said) if empty else notes)
    if labels == "folder" or (top and labels == "auto"):
        beside = f"{stray[0]}{f' and {len(stray) - 1} more' if stray[1:] else ''}"
        reason = f"{root}: {beside} beside the folders {', '.join(sorted(top)[:5]) or '(none)'}"
        return Listing(root, files, (), f"{reason}; move each into the folder of its class, or away", notes)
    stems = [Path(file).stem for file in files]
    without = next((stem for stem in stems if "_" not in stem), None)
    if all("_" not in stem for stem in stems) or (labels == "prefix" and without):
        reason = f'{root}: {without} has no "_" behind its class' if labels == "prefix" else ""
        return Listing(root, files, (), reason, notes)
    return Listing(root, files, tuple(stem.split("_", 1)[0] for stem in stems), notes=notes)


def split_folders(base: Path) -> tuple[Path, Path | None, tuple[str, ...]]:
    """Find the folders of the training and of the test images, if any, and what else lies beside them.

    Raises UserError for a test folder alone, and where train may be the name of a class.
    """
    train, test = splits.both(*(splits.find(base, split) for split in splits.NAMES))
    if train is None and test is None:
        return base, None, ()
    if train is None:
        raise UserError(f"{PATH}: {base} has {test.name}/, but no train/; to train on it give {base / test.name}")
    known = {name for names in splits.NAMES.values() for name in names}
    said = f"{base / LABEL_FILE} is not read: it belongs into {train.name}/"
    unread = (said,) if (base / LABEL_FILE).exists() else ()
    others = [folder for folder in folders_in(base) if folder.name.lower() not in known and any_image(folder)]
    others = [f"{folder.name}/" for folder in others]
    others += [e.name for e in sorted(base.iterdir()) if e.is_file() and is_image(e.name)][:1]
    if not others:
        return train, test, unread
    beside = f"{base}: beside {train.name}/ lie {', '.join(others[:5])}"
    if test is None:
        raise UserError(f"{PATH}: {beside}: is {train.name}/ a class or the training images? Rename or move one")
    return train, test, (*unread, f"{beside}, which are not read")


def _table(file: Path) -> bytes | str:
    """Return what is in a label file, or why it cannot be read."""
    try:
        if regular_file(file, PATH).stat().st_size > LABEL_BYTES:
            return f"{file}: larger than {LABEL_BYTES} bytes"
        return file.read_bytes()
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{file}: {one_line(error)}"


def by_table(root: Path, files: tuple[str, ...], table: bytes | str, notes: tuple[str, ...] = ()) -> Listing:
    """Read each file's class off EDM's dataset.json, {"labels": [["00000/img00000000.png", 6], ...]}.

    table: the content of that file, which lies in root; or text, why it has none.
    """
    names, reason = ((), table) if isinstance(table, str) else _from_table(root / LABEL_FILE, files, table)
    return Listing(root, files, names, reason, notes, numbered=True)


def _from_table(file: Path, files: tuple[str, ...], content: bytes) -> tuple[tuple[str, ...], str]:
    try:
        labels = json.loads(content)["labels"]
        if labels is None:
            return (), f'{file} says "labels": null; remove it for classes by folder or file name'
        table = dict(labels)
    except Exception as error:  # foreign text raises almost anything
        return (), f'{file} holds no {{"labels": [[file, number], ...]}} ({one_line(error)}); mend or remove it'
    missing = [name for name in files if name not in table]
    if missing:
        return (), f"{file} names no label of {missing[0]} ({len(missing)} of {len(files)} files)"
    found = [table[name] for name in files]
    wrong = [label for label in found if type(label) is not int or not 0 <= label < MAX_CLASSES]
    if wrong:
        return (), f"{file}: got label {str(wrong[0])[:40]}; allowed: whole numbers from 0 to {MAX_CLASSES - 1}"
    return tuple(map(str, found)), ""
