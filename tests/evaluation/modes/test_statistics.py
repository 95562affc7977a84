"""Reference statistics: what is in the file, whoever wrote it, and every file that does not fit refused in one line."""

import hashlib
import json
import os
import pickle
import re
import signal

import jax.numpy as jnp
import numpy as np
import pytest

import evaluation.modes.statistics
from evaluation import fold as folds
from evaluation.metrics import statistics
from evaluation.metrics.extractors import small
from evaluation.metrics.frechet import frechet_distance, moments
from evaluation.metrics.statistics import open_statistics, read, statistics_file
from evaluation.modes.statistics import write_statistics
from evaluation.run import evaluate
from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.data import digits
from score_flow.errors import Preempted, UserError

TINY = ("network.name=mlp", "network.width=8", "network.depth=1")
N, LEVELS = 1500, 17


@pytest.fixture(scope="module", autouse=True)
def fitted_once():
    """The small extractor takes a second to fit; of one data set it is always the same."""
    fit, fitted = small.fit, {}

    def cached(train, labelled):
        if train.name not in fitted:
            fitted[train.name] = fit(train, labelled)
        return fitted[train.name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small, "fit", cached)
        yield


def opened(*overrides):
    config = load("configs/digits.py", [f"--config.{override}" for override in (*TINY, *overrides)])
    return experiment(config), config


def arrays(file):
    with np.load(file, allow_pickle=False) as archive:
        return dict(archive)


def refusal(f, *args) -> str:
    with pytest.raises(UserError) as error:
        f(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def digits_file(tmp_path_factory):
    """The statistics of the training digits, as --mode=stats writes them."""
    return write_statistics(*opened("eval.batch_size=500"), tmp_path_factory.mktemp("run"))


@pytest.fixture
def changed(digits_file, tmp_path):
    """Writes the file with some arrays changed, or without those that are None."""

    def write(**changes):
        file = tmp_path / "changed.npz"
        np.savez(file, **{k: v for k, v in (arrays(digits_file) | changes).items() if v is not None})
        return file

    return write


# ---- what is in the file


def test_the_file_says_what_it_is_of(digits_file):
    found, images = read(digits_file), digits.build("train").image
    assert digits_file.relative_to(digits_file.parents[1]).as_posix() == "stats/digits-train-small.npz"
    assert found.sha256 == hashlib.sha256(images.tobytes()).hexdigest()
    assert (found.n, found.data, found.image_shape, found.levels) == (N, "digits/train", (8, 8, 1), LEVELS)
    assert found.extractor == small.build(digits.build("train")).name
    assert json.loads(found.preprocessing) == {"name": "digits"}
    assert found.file_sha256 == hashlib.sha256(digits_file.read_bytes()).hexdigest()


def test_moments_and_features_are_the_extractors(digits_file):
    train = digits.build("train")
    pool = np.asarray(small.build(train)(jnp.asarray(train.image)).pool)
    found, (mu, sigma) = read(digits_file), moments(pool)
    scale = np.abs(pool).max() * np.finfo(np.float32).eps * 64  # sums of 64 products, in the order of the batch
    np.testing.assert_allclose(found.features, pool, rtol=0, atol=scale)
    np.testing.assert_allclose(found.mu, mu, rtol=0, atol=scale)
    np.testing.assert_allclose(found.sigma, sigma, rtol=0, atol=2 * scale * np.abs(pool).max())


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """Ten thousand coloured images of 4 x 4 random pixels."""
    file = tmp_path_factory.mktemp("data") / "synthetic.npz"
    np.savez(file, image=np.random.default_rng(0).integers(0, 256, (10_000, 4, 4, 3), np.uint8))
    return "data.source.name=arrays", f"data.source.path={file}", "data.source.test_share=0.0"


def test_ten_thousand_images_in_any_batches(synthetic, tmp_path):
    """Moments and distance to 1e-8, features (all kept) and hash; a batch of 4000 leaves a last one of 2000."""
    kept = "eval.kept_features=10000"
    files = [
        write_statistics(*opened(*synthetic, kept, f"eval.batch_size={size}"), tmp_path / str(size))
        for size in (1250, 4000)
    ]
    a, b = map(read, files)
    assert a.n == b.n == 10_000 and a.sha256 == b.sha256
    np.testing.assert_allclose(a.features, b.features, rtol=0, atol=1e-5)
    for ours in (a, b):
        mu, sigma = moments(ours.features)
        np.testing.assert_allclose(ours.mu, mu, rtol=0, atol=1e-8 * np.abs(mu).max())
        np.testing.assert_allclose(ours.sigma, sigma, rtol=0, atol=1e-8 * sigma.max())
        assert frechet_distance(ours.mu, ours.sigma, mu, sigma) < 1e-8


def test_some_features_of_many_images(synthetic, tmp_path):
    built, config = opened(*synthetic, "eval.kept_features=100", "eval.batch_size=5000")
    found = read(write_statistics(built, config, tmp_path))
    assert found.features.shape == (100, small.N_COMPONENTS)
    assert found.n == 10_000


@pytest.mark.parametrize("moment", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_interrupted_and_gone_on(digits_file, tmp_path, monkeypatch, moment):
    """Bitwise the file of an unbroken run, hash included; gone on with in other batches, the same to 1e-8."""
    fold_of, broken = evaluation.modes.statistics.statistics_fold, []

    def fold(*args):
        fold = fold_of(*args)

        def step(state):
            if state["done"].sum() == moment * 304 and not broken:
                broken.append(moment)
                os.kill(os.getpid(), signal.SIGTERM)
            return fold.step(state)

        return fold._replace(step=step)

    monkeypatch.setattr(evaluation.modes.statistics, "statistics_fold", fold)
    built, config = opened("eval.batch_size=300")
    with pytest.raises(Preempted):
        write_statistics(built, config, tmp_path / "broken")
    files = [write_statistics(built, config, tmp_path / name) for name in ("broken", "whole")]
    (one, other) = map(arrays, files)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    assert one["sha256"] == arrays(digits_file)["sha256"]
    broken.clear()
    with pytest.raises(Preempted):
        write_statistics(built, config, tmp_path / "other")
    mixed = arrays(write_statistics(*opened("eval.batch_size=200"), tmp_path / "other"))
    assert mixed["sha256"] == one["sha256"] and mixed["n"] == one["n"]
    for name in ("mu", "sigma", "features"):
        np.testing.assert_allclose(mixed[name], one[name], rtol=0, atol=1e-5 * np.abs(one[name]).max())


def test_what_is_there_is_not_built_again(digits_file, monkeypatch):
    monkeypatch.setattr(folds, "run", lambda *_: pytest.fail("built again"))
    assert write_statistics(*opened(), digits_file.parents[1]) == digits_file
    assert "number of images" in refusal(
        write_statistics, *opened(f"eval.stats={digits_file}", "eval.fid_dataset=test"), digits_file.parents[1]
    )


def test_other_splits_and_extractors_have_other_files(tmp_path):
    files = {
        statistics_file(*opened_with_options(*overrides), tmp_path).name
        for overrides in ((), ("eval.fid_dataset=test",), ("eval.extractor.name=inception",))
    }
    assert files == {"digits-train-small.npz", "digits-test-small.npz", "digits-train-inception.npz"}


def opened_with_options(*overrides):
    built, config = opened(*overrides)
    return built, config.eval


# ---- files of other projects


POOL = np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32)
MU, SIGMA = moments(POOL)


@pytest.mark.parametrize("content", [
    {"mu": MU, "sigma": SIGMA},
    {"mu": MU.astype(np.float32), "sigma": SIGMA.astype(np.float32)},
    {"mu": MU, "sigma": SIGMA, "mu_s": MU[:3], "sigma_s": SIGMA[:3, :3], "arr_0": np.zeros((2, 4, 4, 3), np.uint8)},
], ids=["pytorch_fid and edm", "float32", "adm"])  # fmt: skip
def test_mu_and_sigma(tmp_path, content):
    file = tmp_path / "their.npz"
    np.savez(file, **content)
    found = read(file)
    np.testing.assert_array_equal(found.mu, content["mu"].astype(np.float64))
    np.testing.assert_array_equal(found.sigma, content["sigma"].astype(np.float64))
    assert (found.n, found.features, found.name) == (0, None, "their.npz")
    built, config = opened(f"eval.stats={file}")
    assert open_statistics(built, config.eval, tmp_path)[0].file == str(file)  # 64 features: as far as it says, it fits


def test_pool_3(tmp_path):
    """score_sde's file holds the features of every image."""
    file = tmp_path / "cifar10_stats.npz"
    np.savez(file, pool_3=POOL)
    found = read(file)
    np.testing.assert_array_equal(found.mu, MU)
    np.testing.assert_array_equal(found.sigma, SIGMA)
    np.testing.assert_array_equal(found.features, POOL)
    assert found.n == 50
    built, config = opened(f"eval.stats={file}", "eval.kept_features=20")
    assert open_statistics(built, config.eval, tmp_path)[0].features.shape == (20, 64)


# ---- refusals


@pytest.mark.parametrize("changes, said", [
    ({"extractor": "InceptionV3"}, "features other than this run's: InceptionV3, here hidden layer"),
    ({"mu": MU[:5], "sigma": SIGMA[:5, :5], "features": None}, "number of features other than this run's: 5, here 64"),
    ({"image_shape": [32, 32, 3]}, "shape of images other than this run's: (32, 32, 3), here (8, 8, 1)"),
    ({"levels": 256}, "number of pixel levels other than this run's: 256, here 17"),
    ({"n": 1499}, "number of images other than this run's: 1499, here 1500"),
    ({"first": "0" * 16, "data": "letters"}, "is of other images, letters, than this run's digits/train"),
], ids=lambda x: next(iter(x)) if isinstance(x, dict) else "")  # fmt: skip
def test_statistics_of_something_else(changed, changes, said, tmp_path):
    built, config = opened(f"eval.stats={changed(**changes)}")
    message = refusal(open_statistics, built, config.eval, tmp_path)
    assert said in message and "--mode=stats" in message


def test_missing_statistics_are_named_before_a_checkpoint_is_looked_for(tmp_path):
    """The run has no checkpoint either, which would be the next complaint."""
    built, config = opened("eval.jobs=('fid',)")
    message = refusal(evaluate, built, config, tmp_path, "eval")
    assert f"no reference statistics {tmp_path}/stats/digits-train-small.npz" in message
    assert "--mode=stats" in message and "--config.eval.stats=FILE" in message


def test_missing_weights_are_named_before_a_checkpoint_is_looked_for(tmp_path):
    file = tmp_path / "reference.npz"
    np.savez(file, mu=MU, sigma=SIGMA)
    built, config = opened(
        "eval.jobs=('fid',)", f"eval.stats={file}", "eval.extractor.name=inception", "eval.extractor.weights=none.pth"
    )
    assert "none.pth" in refusal(evaluate, built, config, tmp_path, "eval")
    assert "none.pth" in refusal(write_statistics, built, config, tmp_path)


def broken_files():
    nan = MU.copy()
    nan[0] = np.nan
    return {
        "images": ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8)}, "neither mu and sigma nor pool_3"),
        "half": ({"mu": MU}, "neither mu and sigma nor pool_3"),
        "nan": ({"mu": nan, "sigma": SIGMA}, "mu holds numbers that are not finite"),
        "shapes": ({"mu": MU, "sigma": SIGMA[:5]}, "sigma is float64 of shape (5, 64), mu of (64,)"),
        "matrix": ({"mu": SIGMA, "sigma": SIGMA}, "mu is float64 of shape (64, 64)"),
        "scalar": ({"mu": np.float64(1), "sigma": SIGMA}, "mu is float64 of shape ()"),
        "integers": ({"mu": MU.astype(int), "sigma": SIGMA}, "mu is int64"),
        "features": ({"mu": MU, "sigma": SIGMA, "features": POOL[:, :3]}, "features is float32 of shape (50, 3)"),
        "one": ({"pool_3": POOL[:1]}, "pool_3 is float32 of shape (1, 64)"),
        "vector": ({"pool_3": MU}, "pool_3 is float64 of shape (64,)"),
        "objects": ({"mu": np.array([{}]), "sigma": SIGMA}, "Statistics are .npz files of plain arrays"),
    }


@pytest.mark.parametrize("name", broken_files())
def test_broken_files(tmp_path, name):
    content, said = broken_files()[name]
    file = tmp_path / "broken.npz"
    np.savez(file, **content)
    message = refusal(read, file)
    assert said in message and str(file) in message


def test_pickles_are_never_run(tmp_path):
    """What one would do is not done; EDM2's, of numbers alone, are read (test_references.py)."""
    file, witness = tmp_path / "reference.pkl", tmp_path / "witness"

    class Harm:
        def __reduce__(self):
            return (witness.touch, ())

    file.write_bytes(pickle.dumps({"mu": Harm(), "sigma": SIGMA}))
    assert "which is code, not statistics; pickles are read as data alone" in refusal(read, file)
    np.savez(tmp_path / "harm.npz", mu=np.array(Harm(), dtype=object), sigma=SIGMA)
    assert "Statistics are .npz files of plain arrays" in refusal(read, tmp_path / "harm.npz")
    assert not witness.exists()


def test_files_are_refused_by_what_they_unpack_to(tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "LARGEST", 1000)
    np.savez_compressed(tmp_path / "bomb.npz", mu=np.zeros(100_000), sigma=SIGMA)
    assert re.search("unpacks from .* allowed: at most 1000", refusal(read, tmp_path / "bomb.npz"))
