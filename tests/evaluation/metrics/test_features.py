"""Features of small images tell data from noise, alike every time."""

import dataclasses

import numpy as np
import pytest

from evaluation.metrics.features import CHUNK, Judge
from score_flow.data import digits
from score_flow.data.base import ArraySource

TRAIN, TEST = digits.build("train"), digits.build("test")
N = 256


def compare(images, train, test):
    return Judge(train, test)(images)


def unlabelled(source):
    return dataclasses.replace(source, label=None, num_classes=0)


def noise(n, shape=(8, 8, 1), levels=17):
    return np.random.default_rng(0).integers(0, levels, (n, *shape), np.uint8)


@pytest.fixture(scope="module")
def real():
    """Test digits in the place of samples."""
    return compare(TEST.image[:N], TRAIN, TEST)


@pytest.fixture(scope="module")
def random():
    return compare(noise(N), TRAIN, TEST)


def test_says_what_the_features_are(real):
    assert real["features"] == "hidden layer (64) of an MLP classifier trained on the training images"
    assert real["n_features"] == 64


def test_accuracy_of_labelled_images():
    """On the test digits the share that it gets right is its test accuracy; shifted labels are all wrong."""
    judged, wrong = (Judge(TRAIN, TEST)(TEST.image, (TEST.label + shift) % 10) for shift in (0, 1))
    assert judged["classifier_accuracy"] == judged["classifier_test_accuracy"] > 0.95
    assert wrong["classifier_accuracy"] < 0.05


def test_the_classifier_knows_digits(real):
    assert real["classifier_test_accuracy"] > 0.95
    assert 0.95 < real["classifier_confidence_test"] <= 1.0
    assert 0.9 < real["classifier_confident_share_test"] <= 1.0


def test_noise_is_far_and_doubtful(real, random):
    assert random["frechet_distance"] > 20 * random["frechet_distance_train"]
    assert random["classifier_confidence"] < real["classifier_confidence"] - 0.1
    assert random["classifier_confident_share"] < real["classifier_confident_share"] - 0.2


def test_reference_figures_do_not_depend_on_the_samples(real, random):
    for name in (
        "frechet_distance_train",
        "classifier_test_accuracy",
        "classifier_confidence_test",
        "classifier_confident_share_test",
    ):
        assert real[name] == random[name], name


def test_training_images_are_near_and_the_nearer_the_more(real):
    """The distance of finite sets has a bias of order 1 / n: the reference takes as many as there are samples."""
    distances = [compare(TRAIN.image[:n], TRAIN, TEST)["frechet_distance_train"] for n in (100, len(TRAIN))]
    assert distances[0] > real["frechet_distance_train"] > distances[1] > 0


def test_more_samples_than_training_images_take_them_all():
    few = dataclasses.replace(TRAIN, image=TRAIN.image[:200], label=TRAIN.label[:200])
    a, b = compare(noise(200), few, TEST), compare(noise(201), few, TEST)
    assert a["frechet_distance_train"] == pytest.approx(b["frechet_distance_train"], rel=1e-9)


def test_test_images_are_at_no_distance_from_themselves():
    assert compare(TEST.image, TRAIN, TEST)["frechet_distance"] < 1e-3


def test_class_counts_are_those_of_the_images(real):
    counts = np.bincount(TEST.label[:N], minlength=10)
    assert sum(real["class_counts"]) == N
    assert np.abs(np.subtract(real["class_counts"], counts)).sum() <= 2 * 0.05 * N  # a mistake changes two counts


def test_same_figures_every_time(real):
    assert compare(TEST.image[:N], TRAIN, TEST) == real


def test_figures_are_plain(real):
    assert {type(value) for value in real.values()} <= {str, int, float, list}
    assert {type(count) for count in real["class_counts"]} == {int}


def test_without_labels_principal_components():
    train, test = unlabelled(TRAIN), unlabelled(TEST)
    result, far = compare(TEST.image[:N], train, test), compare(noise(N), train, test)
    assert result["features"] == "leading 32 principal components of training pixels"
    assert set(result) == {"features", "n_features", "frechet_distance", "frechet_distance_train"}
    assert result["n_features"] == 32
    assert far["frechet_distance"] > 10 * far["frechet_distance_train"]
    assert compare(noise(N), train, test) == far


def test_one_class_is_no_label():
    one = dataclasses.replace(TRAIN, label=np.zeros_like(TRAIN.label))
    assert "classifier_confidence" not in compare(noise(N), one, TEST)


def test_labels_of_one_split_only():
    assert "principal" in compare(noise(N), TRAIN, unlabelled(TEST))["features"]


def test_fewer_pixels_than_components():
    tiny = ArraySource(name="tiny", image=noise(50, (2, 3, 1), 256))
    assert compare(noise(20, (2, 3, 1), 256), tiny, tiny)["n_features"] == 6


@pytest.mark.parametrize("n", [0, 1])
def test_no_covariance_no_figures(n):
    assert compare(noise(n), TRAIN, TEST) == {}


def test_sources_are_read_in_parts():
    """Four copies of the test split fill two parts and have its accuracy and its covariance, up to n / (n - 1)."""
    image, label = np.concatenate([TEST.image] * 4), np.concatenate([TEST.label] * 4)
    four = compare(image, TRAIN, dataclasses.replace(TEST, image=image, label=label))
    one = compare(TEST.image, TRAIN, TEST)
    assert len(image) > CHUNK
    assert four["classifier_test_accuracy"] == one["classifier_test_accuracy"]
    assert four["class_counts"] == [4 * count for count in one["class_counts"]]
    assert max(four["frechet_distance"], one["frechet_distance"]) < 1e-3
