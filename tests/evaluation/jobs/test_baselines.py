"""What needs no network: the Gaussian against its density, PNG and WebP against files on the disk."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from evaluation.context import Context, build_guide
from evaluation.fold import run as run_fold
from evaluation.jobs import baselines
from sampling.building import build_sampler
from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.data import digits
from score_flow.data.base import ArraySource
from tests.data.writers import noise

CORRELATED = np.array([[9.0, 4.0], [4.0, 3.0]])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The job on eleven images of noise, of forty that the Gaussian is fitted to."""
    directory = tmp_path_factory.mktemp("baselines")
    train, test = ArraySource("train", noise(40, 4, 4, 3)), ArraySource("test", noise(11, 4, 4, 3, seed=1))
    config = load("configs/digits.py", [])
    run = dataclasses.replace(
        experiment(config), image_shape=(4, 4, 3), open_source=lambda split: {"train": train, "test": test}[split]
    )
    context = Context(run, {}, 1, build_sampler(config), build_guide(run, config), config.eval, directory)
    return run_fold(baselines.build(context, None), directory, "baselines"), directory, test


@pytest.mark.parametrize("covariance", [CORRELATED, np.diag(CORRELATED)], ids=["full", "diagonal"])
def test_the_gaussian_is_the_mean_of_its_density_over_the_noise_inside_a_level(covariance):
    mean, level, n = np.array([3.0, 5.0]), np.array([[4.0, 4.0], [0.0, 7.0]]), 100
    inside = (np.stack(np.meshgrid(np.arange(n), np.arange(n)), axis=-1).reshape(-1, 2) + 0.5) / n
    density = scipy.stats.multivariate_normal(mean, covariance if covariance.ndim == 2 else np.diag(covariance))
    expected = [-density.logpdf(x + inside).mean() / (2 * math.log(2)) for x in level]
    np.testing.assert_allclose(baselines._bits(mean, covariance, level), expected, rtol=1e-5)


def test_the_covariance_of_the_digits_pays_and_is_fitted_to_training_digits_alone(monkeypatch):
    train, test = digits.build("train"), digits.build("test")
    bits, shrinkage = baselines.gaussian_bits(train, test)
    assert 2.9 < bits.mean() < 3.0 and shrinkage < 1  # what configs/digits.py says of a Gaussian
    some, _ = baselines.gaussian_bits(train, ArraySource("some", test.image[:7], levels=17))
    np.testing.assert_allclose(some, bits[:7], rtol=1e-9)
    monkeypatch.setattr(baselines, "WIDEST", 63)
    alone, shrinkage = baselines.gaussian_bits(train, test)
    assert alone.mean() > bits.mean() + 0.3 and shrinkage == 1


def test_files_are_counted_whole(done, tmp_path):
    result, directory, test = done
    for name, fields in baselines.WAYS.items():
        sizes = []
        for i, image in enumerate(test.image):
            file = tmp_path / f"{i}.{name}"
            Image.fromarray(image).save(file, **fields)
            with Image.open(file) as again:
                np.testing.assert_array_equal(np.asarray(again), image)  # nothing is lost
            sizes.append(8 * file.stat().st_size / image.size)
        with np.load(directory / "baselines.npz") as arrays:
            np.testing.assert_allclose(arrays[name], sizes)
        assert result[f"{name}_bits_per_dim"] == pytest.approx(np.mean(sizes))
        error = np.std(sizes, ddof=1) / math.sqrt(len(sizes))
        assert result[f"{name}_bits_per_dim_standard_error"] == pytest.approx(error)


def test_noise_has_eight_bits_and_no_way_is_better(done):
    result, _, _ = done
    assert all(result[f"{name}_bits_per_dim"] > 7.9 for name in ("gaussian", "png", "webp"))
    assert result["gaussian_shrinkage"] in baselines.SHRINKAGES and result["n_images"] == 11
