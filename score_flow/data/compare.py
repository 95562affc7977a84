"""Is it the same data? By content and not by where it lies: a moved data set goes on, another one is refused."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from score_flow.config.hints import ValueRange
from score_flow.data.base import Source, counts, facts
from score_flow.errors import UserError

# What must agree for a run to go on, as a person understands it best, and what of it is about labels.
CONTENT = (
    "image_shape", "levels", "range", "num_classes", "classes", "counts", "n", "labels", "first", "pixels", "features",
)  # fmt: skip
LABELS = ("num_classes", "classes", "counts", "labels", "first")  # `first` covers labels too, `pixels` does not
CLASSES = ("num_classes", "classes")
DIGESTS = ("labels", "first", "pixels", "features")  # which a person reads of only where nothing else says what changed
# How images were decoded before a run's facts said so: as ADM does.
DECODED_BEFORE = {"background": "drop", "upright": False}
WORDS = {"n": "number of images", "first": "first images", "pixels": "first images", "features": "stored features"}


def refuse_other_data(saved: Mapping[str, Any] | None, now: Source | Mapping[str, Any], where: str) -> None:
    """Raise UserError, naming both values, unless the data are those that a state was trained on.

    `saved` and `now` are facts, as base.facts makes them (of a source, it does), and `labelled` in them says whether
    labels are in use: without, only what the images are has to agree. A state of before facts were kept (None) was
    trained on all images.
    """
    now = now if isinstance(now, Mapping) else facts(now)
    decoded = (saved or {}).get("decoding", DECODED_BEFORE)
    for name, value in (now.get("decoding") or {}).items():
        if decoded.get(name, value) != value:
            raise UserError(
                f"{where} was trained on images that were decoded with {name} = {decoded[name]}, and {now['name']} is "
                f"with {name} = {value}: give --config.data.source.{name}={decoded[name]}"
            )
    if not saved:
        if now.get("test_share"):
            raise UserError(
                f"{where} was trained on all images of {now['name']}, of which now {100 * now['test_share']:g} % are "
                "held out: give --config.data.source.test_share=0"
            )
        return
    keys = [key for key in CONTENT if now.get("labelled", True) or key not in LABELS]
    _refuse(saved, now, keys, f"{where} was trained on")


def same_place(saved: dict[str, Any], now: dict[str, Any], known: bool) -> dict[str, Any]:
    """Return the saved config, its data source as in that of now as far as the content was, or need not be, compared.

    known: whether the state knows facts of its data. If not, another spelling of one path is the same, and what an
    older run is silent about is what it did: it held out nothing.
    """
    old, new = saved["data"]["source"], now["data"]["source"]
    if known:
        return saved | {"data": saved["data"] | {"source": new}}
    paths = [source.get("path") for source in (old, new)]
    if all(paths) and len({os.path.realpath(os.path.expanduser(path)) for path in paths}) == 1:
        old = old | {"path": paths[1]}
    if "test_share" in new:
        old = {"test_share": 0.0} | old
    return saved | {"data": saved["data"] | {"source": old}}


def refuse_other_classes(saved: Mapping[str, Any] | None, now: Mapping[str, Any] | None, where: str) -> None:
    """Raise UserError where two data sets, by their facts, call the same label by different names, or have others."""
    if saved and now:
        _refuse(saved, now, CLASSES, f"{where} has")


def refuse_unfit(
    source: Source,
    image_shape: tuple[int, int, int],
    levels: int,
    num_classes: int,
    whose: str,
    values: ValueRange = (),
) -> None:
    """Raise UserError unless a run of such images can use a split; num_classes 0: its labels are not looked at."""
    got, wanted = (tuple(source.image_shape), source.levels), (tuple(image_shape), levels)
    if got != wanted:
        said = " but ".join(f"{who} {shape} with {n} levels" for who, (shape, n) in (
            (f"{source.name} has images of shape", got), (f"{whose} images of shape", wanted)
        ))  # fmt: skip
        raise UserError(f"config.data.source: {said}")
    if (found := tuple(getattr(source, "range", ()))) != tuple(values):
        raise UserError(f"config.data.source: {source.name} has numbers in {found} but {whose} numbers in {values}")
    if num_classes and not source.num_classes:
        why = getattr(source, "unlabelled", "")
        raise UserError(f"config.data.source: {source.name} has no labels, which this run needs{why and f': {why}'}")
    if num_classes and source.num_classes > num_classes:
        raise UserError(
            f"config.data.source: labels of {source.name} reach {source.num_classes - 1} ({source.num_classes} classes)"
            f"; allowed: 0 to {num_classes - 1}, as {whose} {num_classes} classes"
        )


def refuse_untrained_start(source: Source) -> None:
    """Raise UserError for labels from 1 on: class 0 would exist, and never be trained."""
    label = getattr(getattr(source, "whole", source), "label", None)
    if label is not None and len(label) and label.min() > 0:
        raise UserError(
            f"config.data.source: labels of {source.name} run from {label.min()} to {label.max()}; allowed: from 0, "
            "since class 0 would have no images (subtract the least one from all)"
        )


def refuse_untrained_classes(train: Source, test: Source) -> None:
    """Raise UserError where a test split of its own has classes of which there are no training images."""
    trained, tested = counts(train), counts(test)
    if not trained or not tested or getattr(test, "test_share", None) is not None:  # what is held out may be the last
        return
    lost = [str(i) for i, n in enumerate(tested) if n and not (i < len(trained) and trained[i])]
    if lost:
        raise UserError(
            f"config.data.source: {test.name} has images of classes {_some(lost, 5)}, of which {train.name} has none; "
            "allowed: classes that are trained (training.eval_freq = 0 looks at no test images)"
        )


def describe_classes(source: Source, most: int = 20) -> str:
    """Return the classes and how many images each has, as far as anybody knows: "cat 4, dog 0" or "0: 4, 1: 0"."""
    n, counted = source.num_classes, counts(source)
    if not n:
        why = getattr(source, "unlabelled", "")
        return f"none{why and f' ({why})'}"
    names = getattr(source, "classes", ()) or tuple(map(str, range(n)))
    colon = "" if getattr(source, "classes", ()) else ":"
    each = names if counted is None else [f"{name}{colon} {count}" for name, count in zip(names, counted, strict=True)]
    empty = [name for name, count in zip(names, counted or (), strict=False) if not count]
    none = f"; without images: {_some(empty, most)}" if empty else ""
    return _some(each, most) + none


def _some(words: Sequence[str], most: int) -> str:
    return ", ".join(words[:most]) + (f", ... ({len(words)} in all)" if len(words) > most else "")


def _refuse(saved: Mapping[str, Any], now: Mapping[str, Any], keys: Sequence[str], subject: str) -> None:
    """Raise UserError where two facts differ in a key that both have."""
    both = [key for key in keys if saved.get(key) is not None and now.get(key) is not None]
    changed = [key for key in both if saved[key] != now[key]]
    if changed:
        plain = [key for key in changed if key not in DIGESTS] or changed[:1]
        told = "; ".join(_told(key, saved[key], now[key]) for key in plain)
        raise UserError(
            f"{subject} other data than {now.get('name', 'these')}: {told}. "
            "Give the data it was trained on by --config.data.source.path=..., or use another --workdir"
        )


def _told(key: str, saved: Any, now: Any) -> str:
    """Return what a person reads of a difference."""
    if key == "classes":
        gone, new = [[name for name in a if name not in b] for a, b in ((saved, now), (now, saved))]
        said = [f"{what} {_some(names, 5)}" for what, names in (("without", gone), ("with", new)) if names]
        return f"classes {_some(saved, 10)} -> {_some(now, 10)} ({' and '.join(said) or 'in another order'})"
    if key == "counts":
        i = next((i for i, (a, b) in enumerate(zip(saved, now, strict=False)) if a != b), None)
        return "other counts of classes" if i is None else f"images of class {i} {saved[i]} -> {now[i]}"
    return f"{WORDS.get(key, key)} {saved} -> {now}"
