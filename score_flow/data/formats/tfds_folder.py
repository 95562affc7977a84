"""What TFDS wrote of a data set that it prepared: <data_dir>/<name>[/<config>]/<version>/, read without it.

dataset_info.json names the splits and the records of each shard, features.json (since TFDS 4) the shape of images and
the number of classes, label.labels.txt their names.
"""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from score_flow.errors import UserError, one_line

INFO, FEATURES = "dataset_info.json", "features.json"
RECORDS = re.compile(r"\.tfrecord(-\d+-of-\d+)?$")
SMALL = 1 << 26  # bytes of a file that says something


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A data set that TFDS prepared as TFRecord; of features that are not known, image_shape is ()."""

    folder: Path
    name: str
    splits: Mapping[str, tuple[Path, ...]]
    n: Mapping[str, int]  # records of each split
    image: str = "image"
    image_shape: tuple[int | None, ...] = ()
    label: str = "label"
    num_classes: int = 0
    classes: tuple[str, ...] = ()


def locate(dataset: str, data_dir: str | None) -> Path | None:
    """Find the folder of `name[/config][:version]`, the newest version if none is named; None where it is not there."""
    name, _, version = dataset.partition(":")
    base = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser() / name
    if version and (base / version / INFO).is_file():
        return base / version
    known = [file.parent for file in (*base.glob(f"*/{INFO}"), *base.glob(f"*/*/{INFO}"))]  # without its config, too
    known = [folder for folder in known if folder.name == (version or folder.name)]
    configs = {folder.parent for folder in known}
    if len(configs) > 1:
        nested = sorted(str(folder.relative_to(base.parent)) for folder in configs)
        raise UserError(
            f"config.data.source.dataset: got {dataset}; allowed, as there are configs: {', '.join(nested)}"
        )
    return max(known, key=_version, default=None)


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", folder.name))


def read(folder: Path) -> Prepared | None:
    """Read what is known of a folder; None where it holds no TFRecord files of TFDS. Raises UserError."""
    files = sorted(file for file in folder.iterdir() if RECORDS.search(file.name))
    if not files or not (folder / INFO).is_file():
        return None
    info, features = _json(folder / INFO), _json(folder / FEATURES) if (folder / FEATURES).is_file() else {}
    try:
        splits = {split["name"]: tuple(_files(files, split["name"])) for split in info["splits"]}
        n = {split["name"]: sum(map(int, split["shardLengths"])) for split in info["splits"]}
        name = "/".join(part for part in (info["name"], info.get("configName"), info.get("version")) if part)
        return Prepared(folder, name, splits, n, **_features(folder, features))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder}: {INFO} or {FEATURES} cannot be read as TFDS's ({one_line(error)})") from error


def names_of_splits(folder: Path) -> tuple[str, ...]:
    """Return the names of the splits that a folder of TFDS says it has."""
    found = _json(folder / INFO).get("splits", [])
    return tuple(split["name"] for split in found if isinstance(split, dict) and isinstance(split.get("name"), str))


def _files(files: list[Path], split: str) -> list[Path]:
    return [file for file in files if re.search(rf"(^|-){re.escape(split)}\.tfrecord", file.name)]


def _json(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > SMALL:
            raise ValueError(f"larger than {SMALL} bytes")
        found = json.loads(file.read_text())
    except Exception as error:  # foreign text raises almost anything
        raise UserError(f"{file}: cannot be read ({one_line(error)})") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: holds no object of JSON")
    return found


def _features(folder: Path, features: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a Prepared that features.json decides: of the image and the label, or the only ones."""
    known = features.get("featuresDict", {}).get("features", {})
    found: dict[str, Any] = {}
    images = [name for name, feature in known.items() if "image" in feature]
    labels = [name for name, feature in known.items() if "classLabel" in feature]
    if images:
        found["image"] = "image" if "image" in images else images[0]
        about = known[found["image"]]["image"]
        if about.get("dtype", "uint8") != "uint8":
            raise UserError(f"{folder}: images are {about['dtype']}; allowed: uint8")
        shape = about.get("shape", {}).get("dimensions", [])
        found["image_shape"] = tuple(int(side) if int(side) > 0 else None for side in shape)
    label = found["label"] = "label" if "label" in labels or not labels else labels[0]
    names = folder / f"{label}.labels.txt"
    if names.is_file():
        found["classes"] = tuple(name.strip() for name in names.read_text().split("\n") if name.strip())  # as TFDS does
    count = known[label]["classLabel"].get("numClasses") if label in labels else None
    found["num_classes"] = int(count or len(found.get("classes", ())))
    if len(found.get("classes", ())) != found["num_classes"]:
        found["classes"] = ()
    return found
