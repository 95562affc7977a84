"""Runs on one page: over each other and in one row only where they are of one kind; what differs is named."""

import dataclasses

import numpy as np
import pytest

from evaluation.report import several
from tests.evaluation.report.test_report import RNG, Page

KEY = {
    "seed": 0, "sampling": {"name": "ode", "rtol": 1e-4}, "eval": {"num_samples": 64}, "weights": "EMA 0.9",
    "checkpoint": "a",
}  # fmt: skip


def make_run(name, n=50, **config):
    rows = [{"step": s, "loss": 1 / s, "lr": 1e-3, "seconds": s / 10} for s in range(10, 10 * n, 10)]
    return several.Run(
        name=name,
        config={"training.batch_size": 16, "training.weighting": "simple", "path.name": "linear"} | config,
        rows=[*rows, {"step": 100, "test_loss": 0.3}, {"step": 200, "test_loss": 0.2}],
        results={"likelihood": {"bits_per_dim": 2.3, "standard_error": 0.01, "n_images": 297}, "samples": {"fid": 1.5}},
        keys={"likelihood": KEY | {"checkpoint": name}, "samples": KEY | {"checkpoint": name}},
        facts={"folder": f"runs/{name}", "began with": "EMA 0.9 of runs/x"},
        images=RNG.integers(0, 256, (40, 8, 8, 1), np.uint8),
    )


def written(tmp_path, *runs):
    several.write(file := tmp_path / "compare.html", runs)
    return Page(file.read_text())


def test_runs_of_one_kind_stand_in_one_row(tmp_path):
    """Other weights are what is compared; whatever else is the same."""
    page = written(tmp_path, make_run("a"), make_run("b", **{"training.batch_size": 32}))
    assert page.headings() == ["Training", "Pace", "Figures", "Samples", "Settings that differ", "Made with"]
    texts = page.texts()
    row = texts.index("bits_per_dim")
    assert texts[row + 1 : row + 3] == ["2.3 ± 0.01", "2.3 ± 0.01"] and texts.count("bits_per_dim") == 1
    row = texts.index("training.batch_size")
    assert texts[row : row + 3] == ["training.batch_size", "16", "32"] and "training.weighting" not in texts
    assert texts[texts.index("images / s") :][:3] == ["images / s", "160", "320"]
    assert texts[texts.index("steps / s") :][:3] == ["steps / s", "10", "10"]
    curves = [image["alt"] for image in page.images() if "Curves" in image["alt"]]
    assert [alt.partition(",")[0] for alt in curves] == [
        "Curves: Training loss (running mean)", "Curves: Test loss", "Curves: Learning rate",
    ]  # fmt: skip
    assert "The same place is the same seed." in texts and texts.count("EMA 0.9 of runs/x") == 2
    assert all("src" in image and image["src"].startswith("data:") for image in page.images())


def test_the_pace_that_was_logged_goes_before_the_clock(tmp_path):
    """Which has the time of tests and saves in it."""
    run = make_run("a")
    run.rows[:] = [row | ({"steps_per_second": 12.5} if "loss" in row else {}) for row in run.rows]
    texts = written(tmp_path, run, make_run("b")).texts()
    assert texts[texts.index("steps / s") :][:3] == ["steps / s", "12.5", "10"]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"seed": 1}, "seed is 0 (a, b), 1 (c)"),
        ({"sampling": {"name": "ode", "rtol": 1e-5}}, "sampling.rtol is 0.0001 (a, b), 1e-05 (c)"),
        ({"test images": {"checksum": "x"}}, "test images.checksum is absent (a, b), x (c)"),
    ],
)
def test_where_a_key_differs_the_numbers_stand_apart_and_it_is_named(tmp_path, change, said):
    a, b, c = make_run("a"), make_run("b"), make_run("c")
    c = dataclasses.replace(c, keys=c.keys | {"likelihood": c.keys["likelihood"] | change})
    texts = written(tmp_path, a, b, c).texts()
    assert f"likelihood is not of one kind, and stands apart: {said}." in texts
    assert {"likelihood of a, b", "likelihood of c", "samples"} <= set(texts)
    assert texts.count("bits_per_dim") == 2 and texts.count("fid") == 1
    for i in (i for i, text in enumerate(texts) if text == "bits_per_dim"):
        assert texts[i + 1] == "2.3 ± 0.01"


def test_losses_of_other_objectives_are_not_drawn_over_each_other(tmp_path):
    page = written(tmp_path, make_run("a"), make_run("b", **{"training.weighting": "likelihood"}))
    said = "Losses of different kinds are not drawn over each other: training.weighting is simple (a), likelihood (b)."
    assert said in page.texts()
    losses = [image["alt"] for image in page.images() if "Training loss" in image["alt"]]
    assert losses == ["Curves: Training loss (running mean), a", "Curves: Training loss (running mean), b"]


def test_what_a_run_has_not_is_said(tmp_path):
    bare = dataclasses.replace(make_run("b"), results={}, keys={}, rows=[], images=np.zeros((0, 1, 1, 1), np.uint8))
    texts = written(tmp_path, make_run("a"), bare).texts()
    assert {"likelihood was not evaluated of b.", "samples was not evaluated of b."} <= set(texts)
    alone = dataclasses.replace(bare, name="c")
    assert written(tmp_path, bare, alone).headings() == ["Settings", "Made with"]


def test_samples_of_other_seeds_say_so(tmp_path):
    other = make_run("b")
    other = dataclasses.replace(other, keys=other.keys | {"samples": KEY | {"seed": 7}})
    texts = " ".join(written(tmp_path, make_run("a"), other).texts())
    assert "The seeds differ: 0, 7. They were drawn with other settings: seed is 0 (a), 7 (b)." in texts


def test_text_is_escaped(tmp_path):
    page = written(tmp_path, make_run("<b>a</b>"), make_run("b"))
    assert "b" not in {tag for tag, _ in page.tags}
