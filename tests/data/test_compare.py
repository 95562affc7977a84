"""Is it the same data? What tells a data set from another."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from score_flow.data import base, compare
from score_flow.data.base import ArraySource, facts
from tests.data.test_splits import (  # noqa: F401 - unsplit is a fixture
    IMAGES,
    N,
    open_arrays,
    open_folder,
    refusal,
    save_arrays,
    save_images,
    unsplit,
)  # fmt: skip


def test_facts_are_of_the_content(unsplit, tmp_path):  # noqa: F811
    build, path = unsplit
    known = json.loads(json.dumps(facts(build(path))))
    assert known == facts(build(path))
    assert known["n"] == N - 2 and known["image_shape"] == [8, 8, 3] and known["test_share"] == 0.1
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path, moved, ignore=shutil.ignore_patterns("elsewhere"))
    compare.refuse_other_data(known, build(moved / path.name), "a run")
    assert "number of images" in refusal(compare.refuse_other_data, known, build(path, test_share=0.5), "a run")


SOURCE = ArraySource("a", IMAGES, np.arange(N, dtype=np.int32) % 3, 256, 3)
OTHER = {
    "pixel": dataclasses.replace(SOURCE, image=IMAGES ^ (np.arange(N) == 5)[:, None, None, None].astype(np.uint8)),
    "order": dataclasses.replace(SOURCE, image=IMAGES[::-1], label=SOURCE.label[::-1]),
    "fewer": dataclasses.replace(SOURCE, image=IMAGES[1:], label=SOURCE.label[1:]),
    "size": dataclasses.replace(SOURCE, image=IMAGES[:, :4]),
    "channels": dataclasses.replace(SOURCE, image=IMAGES[..., :1]),
    "levels": dataclasses.replace(SOURCE, levels=255),
}
OTHER_LABELS = {
    "label": dataclasses.replace(SOURCE, label=(SOURCE.label + (np.arange(N) == 5)).astype(np.int32) % 3),
    "permuted": dataclasses.replace(SOURCE, label=(SOURCE.label + 1) % 3),
    "more_classes": dataclasses.replace(SOURCE, num_classes=4),
    "unlabelled": dataclasses.replace(SOURCE, label=None, num_classes=0),
}


@pytest.mark.parametrize("case", [*OTHER, *OTHER_LABELS])
def test_other_data_are_refused_and_unused_labels_are_not(case):
    known, other = facts(SOURCE), (OTHER | OTHER_LABELS)[case]
    compare.refuse_other_data(known, dataclasses.replace(SOURCE, name="elsewhere"), "runs/r")
    message = refusal(compare.refuse_other_data, known, other, "runs/r")
    assert message.startswith("runs/r was trained on other data") and " -> " in message
    unused = facts(other) | {"labelled": False}
    if case in OTHER_LABELS:
        compare.refuse_other_data(known, unused, "runs/r")
    else:
        assert " -> " in refusal(compare.refuse_other_data, known, unused, "runs/r")


def test_a_renamed_class_is_named(tmp_path):
    save_images(tmp_path)
    known = facts(open_folder(tmp_path))
    (tmp_path / "dog").rename(tmp_path / "a_dog")
    message = refusal(compare.refuse_other_data, known, open_folder(tmp_path), "runs/r")
    assert "classes cat, dog -> a_dog, cat (without dog and with a_dog)" in message
    assert "cat, dog" in refusal(compare.refuse_other_classes, known, facts(open_folder(tmp_path)), "the classifier")
    compare.refuse_other_classes(known, None, "the classifier")


def test_a_state_of_before_facts_was_trained_on_all_images(tmp_path):
    save_arrays(tmp_path / "a.npz")
    path = tmp_path / "a.npz"
    compare.refuse_other_data(None, open_arrays(path, test_share=0.0), "runs/r")
    message = refusal(compare.refuse_other_data, None, open_arrays(path), "runs/r")
    assert "give --config.data.source.test_share=0" in message


def test_facts_of_very_many_classes_stay_small():
    n = base.NAMED + 1
    label = np.arange(n, dtype=np.int32)
    known = facts(ArraySource("a", np.zeros((n, 1, 1, 1), np.uint8), label, 256, n))
    assert known["classes"] is None and known["counts"] is None
    other = facts(ArraySource("a", np.zeros((n, 1, 1, 1), np.uint8), label[::-1], 256, n))
    assert "labels" in refusal(compare.refuse_other_data, known | {"first": 0}, other | {"first": 0}, "runs/r")
