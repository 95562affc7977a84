"""What the report is made of: plots, durations, numbers, small pictures."""

import io

import numpy as np
import pytest
from PIL import Image

from evaluation.report import figures, page
from evaluation.report.one_run import training_seconds
from score_flow.config.loading import flatten


def test_plots_are_transparent():
    plots = (
        figures.histogram(np.array([1.0, 1.0]), "bits"),
        figures.loss_by_time([1e-3, None, 5.0]),
        figures.loss_curves(np.arange(3), np.ones(3), np.arange(0), np.ones(0)),
        figures.loss_curves(np.arange(0), np.ones(0), np.arange(2), np.array([-1.0, 1.0])),
    )
    for png in plots:
        image = np.asarray(Image.open(io.BytesIO(png)))
        assert image.shape[2] == 4
        assert image[0, 0, 3] == 0
        assert image[..., 3].max() == 255


def test_running_mean_of_a_line_is_the_line_inside():
    values = np.linspace(3.0, 5.0, 20)
    smooth = figures.running_mean(values, 3)
    np.testing.assert_allclose(smooth[3:-3], values[3:-3], rtol=1e-13)
    assert smooth[0] == pytest.approx(values[:4].mean(), rel=1e-13)


def test_seconds_of_a_resumed_run():
    clock = [1.0, 5.0, 9.0, 0.5, 2.0, 2.0]
    assert training_seconds([{"step": i, "seconds": s} for i, s in enumerate(clock)] + [{"step": 9}]) == 9.0 + 2.0
    assert training_seconds([]) == 0


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.2, "0 s"),
        (45.0, "45 s"),
        (59.7, "1 min 0 s"),
        (200.0, "3 min 20 s"),
        (18725.0, "5 h 12 min"),
        (183600.0, "2 d 3 h"),
    ],
)
def test_duration(seconds, expected):
    assert page.duration(seconds) == expected


@pytest.mark.parametrize(
    ("n", "expected"), [(999, "999"), (327_873, "328 k"), (61_800_000, "61.8 M"), (1_200_000_000, "1.2 G")]
)
def test_compact(n, expected):
    assert page.compact(n) == expected


def test_flatten():
    assert flatten({"a": {"b": {"c": 1}, "d": [2]}, "e": None}) == {"a.b.c": 1, "a.d": [2], "e": None}


def test_reduced_is_the_mean_of_blocks():
    image = np.arange(2 * 5 * 7 * 1, dtype=np.uint8).reshape(2, 5, 7, 1)
    small = page.reduced(image, 4)
    assert small.shape == (2, 2, 3, 1)
    assert small[1, 1, 2, 0] == round(image[1, 2:4, 4:6, 0].mean())
    np.testing.assert_array_equal(page.reduced(image, 7), image)


# ---- several checkpoints
