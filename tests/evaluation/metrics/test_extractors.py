"""Every extractor of the directory is a tree of parameters and a function of each image alone, named as what it is."""

import dataclasses
import hashlib
from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.neural_network import MLPClassifier

from evaluation.metrics.extractors import inception, small
from evaluation.metrics.features import Judge
from evaluation.metrics.frechet import frechet_distance, moments
from score_flow.config import registries
from score_flow.config.components import Component, resolve
from score_flow.data import digits
from score_flow.data.base import ArraySource
from score_flow.errors import UserError
from score_flow.networks.dinov2 import DINOv2
from score_flow.networks.inception import InceptionV3, Outputs
from tests.discover import builds
from tests.golden_data import golden_dir
from tests.pretrained.inception_weights import drawn

TRAIN, TEST = digits.build("train"), digits.build("test")
UNLABELLED = dataclasses.replace(TRAIN, label=None, num_classes=0)
EXTRACTORS = sorted(builds("evaluation.metrics.extractors"))
FOLDERS = sorted(file.parent for file in golden_dir().glob("inception*/weights.json"))
EPS = np.finfo("float32").eps

extract = jax.jit(lambda extractor, images: extractor(images))


@cache
def built(name):
    """As an evaluation builds it, for the digits; a network's weights are zeros, of which no file is needed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception.inception, "load", no_weights)
        patch.setattr(inception.dinov2_weights, "load", no_dino)
        section = Component(name, {"dinov2": "x"} if name == "inception" else {})
        return resolve(registries.EXTRACTORS, section, "config.eval.extractor", train=TRAIN, levels=17)


def no_weights(path, dtype):
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), inception.inception._shapes())
    return InceptionV3(dtype), zeros, "ab" * 32


def no_dino(path, dtype):
    network = DINOv2(64, 1, dtype=dtype)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 14, 14, 3)))["params"]
    return network, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes), "DINOv2 of nothing"


every_extractor = pytest.mark.parametrize("name", EXTRACTORS)


# ---- all of them


def test_the_directory_is_the_registry():
    assert {"dinov2", "inception", "small"} <= set(EXTRACTORS)
    assert len({built(name).name for name in EXTRACTORS}) == len(EXTRACTORS)


@every_extractor
def test_a_program_takes_the_parameters_as_an_argument_and_returns_the_declared_features(name):
    extractor = built(name)
    program, features = jax.make_jaxpr(lambda e, x: e(x), return_shape=True)(extractor, jnp.asarray(TRAIN.image[:3]))
    assert jax.tree.leaves(extractor) and hash(jax.tree.structure(extractor))
    sizes = sum(map(np.size, jax.tree.leaves(extractor)))
    assert sum(np.size(c) for c in program.consts) < min(sizes, 10_000)  # tables of the resize, no parameters
    assert (features.pool.shape, features.pool.dtype) == ((3, extractor.n_features), jnp.float32)
    declared = {distance: ((3, d), jnp.float32) for distance, (_, d) in extractor.more.items()}
    assert {distance: (x.shape, x.dtype) for distance, x in (features.more or {}).items()} == declared
    if features.logits is not None:
        assert features.logits.shape[:1] == (3,) and features.logits.dtype == jnp.float32


# ---- small


def some(source):
    """Fewer training images, where few are enough."""
    return dataclasses.replace(source, image=source.image[:400], label=source.label[:400])


@pytest.fixture(scope="module")
def classifier():
    """What scikit-learn itself makes of the training images."""
    x = TRAIN.image.reshape(len(TRAIN), -1).astype(np.float32) / 16
    order = np.random.RandomState(0).permutation(len(TRAIN))
    return MLPClassifier((64,), random_state=0, max_iter=200).fit(x[order], TRAIN.label[order])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_hidden_layer_and_logits_are_the_classifiers(classifier):
    x = TEST.image.reshape(len(TEST), -1).astype(np.float32) / 16
    features = extract(built("small"), TEST.image)
    activations = np.maximum(x @ classifier.coefs_[0] + classifier.intercepts_[0], 0)
    # 64 products a sum, in one order or another; the softmax passes an error of its logits on.
    tolerance = 2 * 64 * EPS * np.abs(activations).max()
    np.testing.assert_allclose(features.pool, activations, atol=tolerance)
    largest = np.abs(features.logits).max()
    probabilities = np.asarray(jax.nn.softmax(features.logits))
    np.testing.assert_allclose(probabilities, classifier.predict_proba(x), atol=2 * 64 * EPS * largest)
    assert built("small").classes == tuple(range(10))


def test_two_classes_have_two_logits():
    halves = dataclasses.replace(TRAIN, label=np.where(TRAIN.label > 4, 7, 2).astype(np.int32))
    extractor = small.build(some(halves))
    features = extract(extractor, TEST.image)
    assert extractor.classes == (2, 7) and features.logits.shape == (len(TEST), 2)
    found = np.take(extractor.classes, features.logits.argmax(axis=1))
    assert (found == np.where(TEST.label > 4, 7, 2)).mean() > 0.9


def test_components_are_uncorrelated_and_fall_in_variance():
    extractor = small.build(UNLABELLED)
    order = small.shuffled(len(TRAIN))[: small.COMPONENT_IMAGES]
    features = extract(extractor, TRAIN.image[order])
    assert features.logits is None and extractor.n_features == 32
    mean, covariance = moments(np.asarray(features.pool))
    variances = np.diag(covariance)
    assert np.all(np.diff(variances) < 0)
    rounding = 64 * EPS * variances[0]
    assert np.abs(covariance - np.diag(variances)).max() < rounding and np.abs(mean).max() < 64 * EPS * 64


def test_levels_are_scaled_to_one():
    finer = dataclasses.replace(UNLABELLED, image=TRAIN.image * np.uint8(15), levels=241)
    coarse, fine = extract(small.build(UNLABELLED), TEST.image), extract(small.build(finer), TEST.image * np.uint8(15))
    np.testing.assert_allclose(np.abs(fine.pool), np.abs(coarse.pool), atol=1e-3)  # up to signs; v / 16 = 15 v / 240


def test_an_image_has_its_features_whatever_stands_beside_it():
    for extractor in (built("small"), small.build(UNLABELLED)):
        together, alone = extract(extractor, TEST.image[:20]), extract(extractor, TEST.image[7:8])
        np.testing.assert_allclose(alone.pool[0], together.pool[7], atol=64 * EPS * float(together.pool.max()))


def test_fitted_alike_every_time():
    for source in (some(TRAIN), UNLABELLED):
        a, b = small.build(source), small.build(source)
        assert jax.tree.all(jax.tree.map(np.array_equal, a, b)) and a.name == b.name


def test_the_report_on_samples_uses_these_features():
    result, extractor = Judge(some(TRAIN), TEST)(TRAIN.image[:200]), small.build(some(TRAIN))
    sampled, real = (moments(np.asarray(extract(extractor, x).pool)) for x in (TRAIN.image[:200], TEST.image))
    assert (result["features"], result["n_features"]) == (extractor.name, 64)
    assert result["frechet_distance"] == pytest.approx(frechet_distance(*sampled, *real), rel=1e-5)


def test_small_features_say_what_they_are():
    components = "leading {} principal components of training pixels"
    assert built("small").name == "hidden layer (64) of an MLP classifier trained on the training images"
    assert small.build(UNLABELLED).name == components.format(32)
    assert small.build(ArraySource("tiny", TRAIN.image[:5, :2, :2])).name == components.format(4)
    one_class = dataclasses.replace(TRAIN, label=np.zeros_like(TRAIN.label))
    assert small.build(one_class).name == components.format(32)


# ---- inception


class Echo(InceptionV3):
    """Shows what the network is given."""

    @nn.compact
    def __call__(self, x):
        assert x.ndim == 4 and x.dtype == jnp.float32
        flat = x.reshape(len(x), -1)
        return Outputs(flat, flat + 1, flat, flat)


def echo(images, levels=256, **fields):
    extractor = inception.Inception("echo", 12, {}, Echo(), levels, **{"biased_logits": False} | fields)
    return extract(extractor, images)


def test_the_network_is_given_levels_from_0_to_255_in_three_channels():
    colour = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3) * 23
    assert np.array_equal(echo(colour).pool, colour.reshape(1, -1).astype(np.float32))
    grey = colour[..., :1]
    assert np.array_equal(echo(grey).pool, echo(np.repeat(grey, 3, axis=-1)).pool)
    seventeen = np.array([0, 4, 8, 16], np.uint8).reshape(1, 2, 2, 1)
    assert echo(seventeen, levels=17).pool[0, ::3].tolist() == [0, 63.75, 127.5, 255]


def test_logits_with_their_bias_or_without():
    image = np.zeros((1, 1, 1, 3), np.uint8)
    assert echo(image).logits.tolist() == [[0, 0, 0]] and echo(image, biased_logits=True).logits.tolist() == [[1, 1, 1]]


def test_other_channels_are_refused_when_the_program_is_built():
    with pytest.raises(UserError, match=r"4 channels; allowed: 1 \(grey\), 3"):
        jax.eval_shape(built("inception"), jax.ShapeDtypeStruct((1, 8, 8, 4), jnp.uint8))


def test_the_name_says_which_weights_and_which_logits(monkeypatch):
    monkeypatch.setattr(inception.inception, "load", no_weights)
    assert built("inception").name == "InceptionV3 of FID, sha256 abababab"
    assert inception.build("x", biased_logits=True).name == "InceptionV3 of FID, sha256 abababab, logits with bias"
    monkeypatch.setattr(inception.dinov2_weights, "load", no_dino)
    spatial, beside = inception.build("x", dinov2="y").more.values()
    assert (spatial, beside) == (("InceptionV3 of FID, sha256 abababab", 2023), ("DINOv2 of nothing", 64))
    assert inception.build("x", dtype="bfloat16").name == "InceptionV3 of FID, sha256 abababab, bfloat16"


def test_a_missing_file_of_weights_is_refused_with_the_remedy():
    for options in ({}, {"weights": "weights.pth"}):
        with pytest.raises(
            UserError, match="curl -LO https://github.com/mseitzer/pytorch-fid/releases/.*--config.eval"
        ):
            section = Component("inception", options)
            resolve(registries.EXTRACTORS, section, "config.eval.extractor", train=TRAIN, levels=17)


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_from_a_file_to_the_references_features(folder, tmp_path):
    """Resized by the compiled program, whose fused products round once less than the reference's: 1e-7 of 255."""
    file = tmp_path / "weights.npz"
    np.savez(file, **drawn(folder))
    extractor, arrays = inception.build(str(file)), np.load(folder / "io.npz", allow_pickle=False)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    file.unlink()
    assert extractor.name == f"InceptionV3 of FID, sha256 {digest[:8]}"
    features = extract(extractor, np.asarray(Image.open(folder / "img0.png"))[None])
    for ours, key in ((features.pool, "feat64_2048"), (features.logits, "feat64_logits_unbiased")):
        error = np.linalg.norm(ours[0] - arrays[key][0]) / np.linalg.norm(arrays[key][0])
        print(f"{folder.name} {key}: {error:.1e}")
        assert error < 1e-5
