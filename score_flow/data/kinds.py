"""Which data set reads what lies at a path, by its name and what is in it: for who named another."""

import re
from pathlib import Path

from score_flow.data.walking import any_image, is_image
from score_flow.errors import UserError

# Of a name, the first that fits: source -> what it is. A folder is asked by the names in it, and in its folders.
KINDS = {
    "cifar10": (r"^(data_batch_1(\.bin)?|cifar-10-(batches-(py|bin)|(python|binary)\.tar\.gz))$", "CIFAR-10"),
    "cifar100": (r"^(fine_label_names\.txt|cifar-100-(python|binary)(\.tar\.gz)?)$", "CIFAR-100"),
    "mnist": (r"images[-.]idx3-ubyte(\.gz)?$", "idx files"),
    "lmdb": (r"(^data\.mdb|_lmdb)$", "an LMDB environment"),
    "parquet": (r"\.parquet$", "parquet files"),
    "tfrecord": (r"\.tfrecords?(-\d+-of-\d+)?$", "TFRecord files"),
    "latents": (r"^latents\.json$", "latents of --mode=encode"),
    "packed": (r"^packed\.json$", "what --mode=pack made"),
    "archive": (r"\.(zip|tar|tgz|tar\.(gz|bz2|xz))$", "zip or tar archives"),
    "arrays": (r"\.npz$", ".npz files"),
}
LOOKED_AT = 1000  # names of a folder


def sources_of(path: Path) -> dict[str, str]:
    """Return the names of the data sets that read a file or folder, the likeliest first, and what it is to each."""
    names = [path.name, *_names(path)] if path.is_dir() else [path.name]
    found = {name: what for name, (like, what) in KINDS.items() if any(re.search(like, each) for each in names)}
    if is_image(path.name) if path.is_file() else any_image(path):
        found["folder"] = "an image: give its folder" if path.is_file() else "a folder of images"
    return found


def _names(folder: Path) -> list[str]:
    """Return names in a folder, and in the folders in it: some of very many."""
    found: list[Path] = []
    for place in (folder, *sorted(folder.iterdir())[:20]):
        if place.is_dir():
            found += [file for _, file in zip(range(LOOKED_AT), place.iterdir(), strict=False)]
    return [file.name for file in found]


def with_hint(error: UserError, name: str, path: object) -> UserError:
    """Return the error, and where another data set would read the path, the name of that."""
    try:
        found = sources_of(Path(path).expanduser()) if path and isinstance(path, str) else {}
    except (OSError, ValueError):
        return error
    if not found or name in found:
        return error
    other, what = next(iter(found.items()))
    return UserError(f"{error}. This looks like {what}: --config.data.source.name={other}")
