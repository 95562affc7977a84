"""Which classes samples are of: chosen by number or name, in turn or drawn, without the data set."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from evaluation.labels import Labels, bounds_of, labels_of, numbers_of
from main import EXIT_USER_ERROR
from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.config.options import EvalOptions
from score_flow.errors import UserError
from tests.evaluation.classes import COUNTS, FLAGS, do, draw_data, make_run, result


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run whose data are gone."""
    folder = tmp_path_factory.mktemp("run")
    data = draw_data(folder / "data")
    make_run(folder, data)
    data.rename(folder / "gone")
    return folder


def samples(workdir, folder):
    with np.load(workdir / folder / "40" / "samples" / "samples.npz") as archive:
        return dict(archive)


@pytest.mark.slow
def test_one_class_by_name_without_the_data_set(workdir, capsys):
    assert do(workdir, "sample", "labels=owl", folder="owl") == 0
    assert (samples(workdir, "owl")["label"] == 2).all()
    assert result(workdir, "owl", "samples")["labels"] == "in turn, of 2 (owl)"
    assert do(workdir, "sample", "labels=2", folder="owl") == 0  # the same, under its number: read
    assert do(workdir, "sample", "labels=('cat',1)", folder="two") == 0
    assert (samples(workdir, "two")["label"] == np.resize([0, 1], 40)).all()
    assert do(workdir, "sample", "labels=('cat',1)", "label_order=uniform", folder="two") == EXIT_USER_ERROR
    assert "eval.label_order is 'in_turn' there and 'uniform' here" in capsys.readouterr().err
    assert do(workdir, "sample", folder="all") == 0
    everything = samples(workdir, "all")
    assert (everything["label"] == np.arange(40) % 3).all()
    np.testing.assert_array_equal(everything["image"][2::3], samples(workdir, "owl")["image"][2::3])


@pytest.mark.slow
def test_drawn_labels_depend_on_the_number_of_a_sample_alone(workdir):
    assert do(workdir, "sample", "label_order=frequencies", folder="drawn") == 0
    assert do(workdir, "sample", "label_order=frequencies", "batch_size=16", "num_samples=50", folder="longer") == 0
    one, other = (samples(workdir, folder) for folder in ("drawn", "longer"))
    np.testing.assert_array_equal(one["label"], other["label"][:40])
    np.testing.assert_array_equal(one["image"], other["image"][:40])
    assert len(set(one["label"].tolist())) == 3 and (one["label"] != np.arange(40) % 3).any()
    assert result(workdir, "drawn", "samples")["labels"] == "drawn as often as in the training images"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("labels=3",), "config.eval.labels is (3,); allowed: numbers from 0 to 2, or names of classes"),
        (("labels=owls",), "no class of the data set (names: cat, dog, owl). Did you mean 'owl'?"),
        (("labels=1.5",), "config.eval.labels has 1.5; allowed: whole numbers, and names"),
        (("label_order=random",), "config.eval.label_order is 'random'; allowed: frequencies, in_turn, uniform"),
    ],
)
def test_refused(workdir, capsys, flags, words):
    assert do(workdir, "sample", *flags, folder="refused") == EXIT_USER_ERROR
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1 and words in lines[0] and not (workdir / "refused").exists()


def test_a_model_without_classes_has_no_labels():
    run = experiment(load("configs/digits.py", []))
    with pytest.raises(UserError, match="labels is .7,., but the model has no classes"):
        labels_of(run, EvalOptions(labels=(7,)), 0)
    with pytest.raises(UserError, match="of config.eval.low_res have labels of their own"):
        labels_of(run, EvalOptions(label_order="uniform"), 10, given=True)
    with pytest.raises(UserError, match="'nine', which is no class .*it names none.*Give numbers"):
        numbers_of(run, ("nine",))


def test_labels_are_drawn_as_often_as_was_asked(tmp_path):
    """By whole numbers: of 2**32 equal parts each class has its share to one part."""
    counts = list(COUNTS.values())
    parts = np.diff([0, *bounds_of(counts).tolist(), 2**32])
    assert np.abs(parts - 2**32 * np.array(counts) / sum(counts)).max() < 1
    n = 6000
    data = draw_data(tmp_path / "data")
    flags = [*FLAGS, f"--config.data.source.path={data}", "--config.data.source.test_share=0"]
    run = experiment(load("configs/digits.py", flags))
    for options, shares in (
        ({"label_order": "frequencies"}, np.array(counts) / 60),
        ({"label_order": "uniform"}, np.full(3, 1 / 3)),
        ({"label_order": "frequencies", "labels": ("owl", "dog")}, np.array([0, 1 / 3, 2 / 3])),
    ):
        labels = labels_of(run, EvalOptions(**options), 3)
        drawn = np.bincount(labels(jnp.arange(n, dtype=jnp.uint32)), minlength=3) / n
        assert (np.abs(drawn - shares) <= 4 * np.sqrt(shares * (1 - shares) / n)).all(), options
    other = labels_of(dataclasses.replace(run, seed=1), EvalOptions(label_order="uniform"), 3)
    first = labels_of(run, EvalOptions(label_order="uniform"), 3)
    indices = jnp.arange(100, dtype=jnp.uint32)
    assert (first(indices) != other(indices)).any()
    assert isinstance(first, Labels) and (first(indices[7:9]) == first(indices)[7:9]).all()
