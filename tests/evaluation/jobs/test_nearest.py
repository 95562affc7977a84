"""The nearest training images: those that a plain search finds, and copies are seen."""

import numpy as np
import pytest

from evaluation.jobs import nearest
from evaluation.report.page import Record
from score_flow.data.base import ArraySource
from tests.data.writers import noise

TRAIN = ArraySource("train", noise(50, 4, 4, 3))
OTHERS = noise(6, 4, 4, 3, seed=1)


@pytest.fixture(autouse=True)
def several_parts(monkeypatch):
    monkeypatch.setattr(nearest, "CHUNK", 16)


def test_the_nearest_are_those_of_a_plain_search():
    index, distance = nearest.nearest(OTHERS, TRAIN, 256)
    off = (OTHERS[:, None].astype(float) - TRAIN.image) / 255
    plain = np.sqrt((off**2).mean(axis=(2, 3, 4)))
    np.testing.assert_array_equal(index, np.argsort(plain, axis=1)[:, : nearest.NEIGHBOURS])
    np.testing.assert_allclose(distance, np.sort(plain, axis=1)[:, : nearest.NEIGHBOURS], atol=1e-7)


def test_copies_are_found_at_no_distance():
    index, distance = nearest.nearest(TRAIN.image[[7, 49, 16]], TRAIN, 256)
    assert index[:, 0].tolist() == [7, 49, 16] and (distance[:, 0] < 1e-6).all() and (distance[:, 1] > 0.1).all()


def test_few_training_images_have_fewer_neighbours():
    index, _ = nearest.nearest(OTHERS, ArraySource("two", TRAIN.image[:2]), 256)
    assert np.sort(index, axis=1).tolist() == [[0, 1]] * 6


def test_a_sample_stands_before_its_neighbours():
    index, _ = nearest.nearest(OTHERS, TRAIN, 256)
    cells = nearest.sheet(OTHERS, index, TRAIN).reshape(6, 1 + nearest.NEIGHBOURS, 4, 4, 3)
    np.testing.assert_array_equal(cells[:, 0], OTHERS)
    np.testing.assert_array_equal(cells[:, 1:], TRAIN.image[index])


def test_the_report_shows_them_with_both_distances(tmp_path):
    found = {"nearest": {"distance": 0.123, "distance_of_test_images": 0.456}}
    record = Record("", {}, [], "", found, None, tmp_path, TRAIN.image[:2], 256, {}, [])
    assert nearest.section(record) == ""  # there is nothing to show
    (tmp_path / "nearest").mkdir()
    np.savez(tmp_path / "nearest/nearest.npz", sheet=TRAIN.image[:16])
    html = nearest.section(record)
    assert "0.123" in html and "0.456" in html and html.count("<img") == 1
