"""Features of small images that need no download: they are fitted to the training images, and say so.

A classifier's hidden layer where the images have labels, else principal components of the pixels.
"""

import warnings
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, PyTree, UInt8
from threadpoolctl import threadpool_limits

from evaluation.metrics.extractors.base import Extractor, Features
from score_flow.config.hints import Given
from score_flow.data.base import Source, shuffled
from score_flow.tree import static

WIDTH = 64  # of the classifier's hidden layer
N_COMPONENTS = 32
CLASSIFIER_IMAGES, COMPONENT_IMAGES = 5000, 1000  # training images that the features are fitted to, at most


class Hidden(Extractor):
    """The hidden layer of a classifier of flat pixels in [0, 1], and its logits, one for each of `classes`."""

    hidden: PyTree  # weights (p, d), bias (d,)
    output: PyTree  # weights (d, k), bias (k,)
    classes: tuple[int, ...] = static()
    levels: int = static()

    def __call__(self, images: UInt8[Array, "b h w c"]) -> Features:
        pool = jnp.maximum(_affine(_pixels(images, self.levels), *self.hidden), 0.0)
        return Features(pool, _affine(pool, *self.output))


class Components(Extractor):
    """Projections of flat pixels in [0, 1] on principal directions of the training images."""

    mean: PyTree  # (p,)
    directions: PyTree  # (p, d)
    levels: int = static()

    def __call__(self, images: UInt8[Array, "b h w c"]) -> Features:
        return Features(_affine(_pixels(images, self.levels) - self.mean, self.directions, 0.0))


def build(train: Annotated[Source, Given("the training images")]) -> Extractor:
    """Fit features to a data set's training images."""
    return fit(train, labelled=train.num_classes > 0)


@threadpool_limits.wrap(limits=1)  # small matrices: threads cost more than they give, and round by their number
def fit(train: Source, labelled: bool) -> Extractor:
    """Fit a classifier's hidden layer; principal components unless images are `labelled`, of two classes or more."""
    order = shuffled(len(train))
    examples = train.read(order[:CLASSIFIER_IMAGES]) if labelled else {}
    if labelled and len(np.unique(examples["label"])) > 1:
        return _hidden(_host_pixels(examples["image"], train.levels), examples["label"], train.levels)
    return _components(_host_pixels(train.read(order[:COMPONENT_IMAGES])["image"], train.levels), train.levels)


def _hidden(x: Float32[np.ndarray, "n p"], labels: Int[np.ndarray, "n"], levels: int) -> Hidden:
    from sklearn.exceptions import ConvergenceWarning  # a second, which --help need not wait for
    from sklearn.neural_network import MLPClassifier

    classifier = MLPClassifier(hidden_layer_sizes=(WIDTH,), random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # its features serve before the last digit has settled
        classifier.fit(x, labels)
    hidden, output = zip(classifier.coefs_, classifier.intercepts_, strict=True)
    if len(classifier.classes_) == 2:  # scikit-learn keeps the logit of the second alone
        output = [np.concatenate([np.zeros_like(w), w], axis=-1) for w in output]
    classes = tuple(int(label) for label in classifier.classes_)
    name = f"hidden layer ({WIDTH}) of an MLP classifier trained on the training images"
    return Hidden(name, WIDTH, _on_device(hidden), _on_device(output), classes, levels)


def _components(x: Float32[np.ndarray, "n p"], levels: int) -> Components:
    mean = x.mean(axis=0)
    directions = np.linalg.svd(x - mean, full_matrices=False)[2][:N_COMPONENTS]
    d = len(directions)
    name = f"leading {d} principal components of training pixels"
    return Components(name, d, *_on_device((mean, directions.T)), levels)


def _on_device(arrays: PyTree) -> PyTree:
    return jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), tuple(arrays))


def _host_pixels(images: UInt8[np.ndarray, "n h w c"], levels: int) -> Float32[np.ndarray, "n p"]:
    return images.reshape(len(images), -1).astype(np.float32) / (levels - 1)


def _pixels(images: UInt8[Array, "b h w c"], levels: int) -> Float32[Array, "b p"]:
    return images.reshape(len(images), -1).astype(jnp.float32) / (levels - 1)


def _affine(x: Float32[Array, "b p"], weights: Array, bias: Array | float) -> Float32[Array, "b d"]:
    return jnp.dot(x, weights, precision="highest") + bias
