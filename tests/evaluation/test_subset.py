"""A subset of a split (eval.num_images): images that a fixed permutation picks, each with the figures it has of all."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from evaluation.context import Context
from main import EXIT_USER_ERROR
from score_flow.data.base import shuffled
from tests.evaluation.classes import do, draw_data, make_run, result

ALL = ("only=('loss','likelihood')", "bpd_dataset=train", "num_repeats=2")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_run(folder, draw_data(folder / "data"))
    assert do(folder, "eval", *ALL, folder="all") == 0
    assert do(folder, "eval", *ALL, "num_images=20", "batch_size=16", folder="some") == 0
    return folder


def bits(workdir, folder):
    with np.load(workdir / folder / "40" / "likelihood" / "bits.npz") as archive:
        return dict(archive)


@pytest.mark.slow
def test_an_image_has_the_same_figures_among_fewer(workdir):
    everything, some, chosen = bits(workdir, "all"), bits(workdir, "some"), np.sort(shuffled(54)[:20])
    np.testing.assert_array_equal(some["index"], chosen)
    np.testing.assert_allclose(some["bits"], everything["bits"][:, chosen], rtol=1e-5)
    found = result(workdir, "some", "likelihood")
    values = some["bits"].mean(axis=0)
    assert found["bits_per_dim"] == pytest.approx(values.mean())
    assert found["standard_error"] == pytest.approx(values.std(ddof=1) / np.sqrt(20))
    assert (found["n_images"], found["split"]) == (20, "data/train")
    assert found["subset"] == "20 of 54, by a fixed permutation"
    lines = (workdir / "some" / "40" / "results.txt").read_text()
    assert "20 of 54, by a fixed permutation (sha256 " in lines and "20 images" in lines


@pytest.mark.parametrize("label", [np.arange(10_000) // 1000, np.arange(10_000) % 10])
def test_no_class_comes_first(label):
    """Of images in order of class, or with their classes in turn, each has its share to four standard deviations."""
    context = SimpleNamespace(source=range(10_000), options=SimpleNamespace(num_images=1000))
    chosen = Context.images.fget(context)
    assert len(set(chosen.tolist())) == 1000 and (np.diff(chosen) > 0).all()
    deviation = np.sqrt(1000 * 0.1 * 0.9 * 9000 / 9999)
    assert np.abs(np.bincount(label[chosen], minlength=10) - 100).max() < 4 * deviation
    fewer = SimpleNamespace(source=range(10_000), options=SimpleNamespace(num_images=10))
    assert set(Context.images.fget(fewer).tolist()) <= set(chosen.tolist())


@pytest.mark.slow
def test_more_images_than_there_are(workdir, capsys):
    capsys.readouterr()
    assert do(workdir, "eval", *ALL, "num_images=55", folder="new") == EXIT_USER_ERROR
    assert "config.eval.num_images is 55, but data/train has 54 images." in capsys.readouterr().err
    assert not (workdir / "new").exists()


@pytest.mark.slow
def test_results_of_before_are_read(workdir, capsys):
    """Whose key names none of the settings that came later: they had what are now the defaults."""
    file = workdir / "all" / "40" / "likelihood" / "result.json"
    found = json.loads(file.read_text())
    assert found["key"]["eval"].pop("num_images") == 0
    file.write_text(json.dumps(found))
    assert do(workdir, "eval", *ALL, folder="all") == 0
    assert "round/s" not in capsys.readouterr().err and "num_images" not in file.read_text()
    assert do(workdir, "eval", *ALL, "num_images=20", folder="all") == EXIT_USER_ERROR
    assert "eval.num_images is 0 there and 20 here" in capsys.readouterr().err
