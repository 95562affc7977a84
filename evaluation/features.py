"""How samples compare with a data set in features that need no download; they are not Inception's, and say so."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from evaluation.metrics import frechet_distance, moments
from score_flow.data.base import Source

WIDTH = 64  # of the classifier's hidden layer
N_COMPONENTS = 32
CLASSIFIER_IMAGES, COMPONENT_IMAGES = 5000, 1000  # training images that the features are fitted to, at most
CHUNK = 1000  # images in floating point at a time
CONFIDENT = 0.9

Pixels = UInt8[np.ndarray, "n h w c"]
Features = Float[np.ndarray, "n d"]
Labels = Int[np.ndarray, "n"]
Map = Callable[[Features], Features]  # of flat pixels in [0, 1]


class Judge:
    """Squared Frechet distance of images to the test split, and what a classifier makes of them when there are labels.

    `frechet_distance_train` is the distance of as many training images (all, if there are fewer): what perfect samples
    would get at this number. All three sets need two images to have a covariance; the result is {} without.
    `classifier_accuracy` is the share of images that the classifier takes for what their labels say.
    """

    def __init__(self, train: Source, test: Source):
        self._train, self._test = train, test
        order = np.random.RandomState(0).permutation(len(train))  # legacy generator: its stream is frozen for ever
        self._order, self._classifier = order, None
        if min(len(train), len(test)) < 2:
            return
        with threadpool_limits(limits=1):  # small matrices: threads cost more than they give, and round by their number
            if train.num_classes and test.num_classes:
                self._classifier = _fit_classifier(train, order[:CLASSIFIER_IMAGES])
            if self._classifier is None:
                pixels = _pixels(train.read(order[:COMPONENT_IMAGES])["image"], train.levels)
                self._what, self._features = _components(pixels)
            else:
                self._what = f"hidden layer ({WIDTH}) of an MLP classifier trained on the training images"
                self._features = _hidden(self._classifier)
            self._of_test = moments(_over(self._features, test, np.arange(len(test))))

    @threadpool_limits.wrap(limits=1)
    def __call__(self, images: Pixels, labels: Labels | None = None) -> dict[str, Any]:
        n, train, test = len(images), self._train, self._test
        if min(n, len(train), len(test)) < 2:
            return {}
        sampled = _map(self._features, images, train.levels)
        of_train = _over(self._features, train, self._order[:n])
        result = {
            "features": self._what,
            "n_features": sampled.shape[1],
            "frechet_distance": frechet_distance(*moments(sampled), *self._of_test),
            "frechet_distance_train": frechet_distance(*moments(of_train), *self._of_test),
        }
        return result if self._classifier is None else result | _classified(self._classifier, images, test, labels)


def _classified(classifier: MLPClassifier, images: Pixels, test: Source, labels: Labels | None) -> dict[str, Any]:
    """Accuracy on the test split; confidence (largest probability) on samples and on test images; class counts."""
    every = np.arange(len(test))
    truth = np.concatenate([test.read(part)["label"] for part in _chunks(every)])
    real, sampled = _over(classifier.predict_proba, test, every), _map(classifier.predict_proba, images, test.levels)
    classes = classifier.classes_[sampled.argmax(axis=1)]
    accuracy = {} if labels is None else {"classifier_accuracy": float((classes == labels).mean())}
    return accuracy | {
        "classifier_test_accuracy": float((classifier.classes_[real.argmax(axis=1)] == truth).mean()),
        "classifier_confidence": float(sampled.max(axis=1).mean()),
        "classifier_confidence_test": float(real.max(axis=1).mean()),
        "classifier_confident_share": float((sampled.max(axis=1) > CONFIDENT).mean()),
        "classifier_confident_share_test": float((real.max(axis=1) > CONFIDENT).mean()),
        "class_counts": np.bincount(classes, minlength=test.num_classes).tolist(),
    }


def _fit_classifier(train: Source, indices: Int[np.ndarray, "n"]) -> MLPClassifier | None:
    """A classifier of flat pixels in [0, 1]; None when these images are all of one class."""
    examples = train.read(indices)
    if len(np.unique(examples["label"])) < 2:
        return None
    classifier = MLPClassifier(hidden_layer_sizes=(WIDTH,), random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # its features serve before the last digit has settled
        return classifier.fit(_pixels(examples["image"], train.levels), examples["label"])


def _hidden(classifier: MLPClassifier) -> Map:
    """Activations of the hidden layer."""
    weights, bias = classifier.coefs_[0], classifier.intercepts_[0]
    return lambda x: np.maximum(x @ weights + bias, 0.0)


def _components(x: Features) -> tuple[str, Map]:
    """Name and map of the leading principal components of x."""
    mean = x.mean(axis=0)
    directions = np.linalg.svd(x - mean, full_matrices=False)[2][:N_COMPONENTS]
    return f"leading {len(directions)} principal components of training pixels", lambda y: (y - mean) @ directions.T


def _pixels(images: Pixels, levels: int) -> Features:
    return images.reshape(len(images), -1).astype(np.float32) / (levels - 1)


def _map(f: Map, images: Pixels, levels: int) -> Features:
    return np.concatenate([f(_pixels(part, levels)) for part in _chunks(images)])


def _over(f: Map, source: Source, indices: Int[np.ndarray, "n"]) -> Features:
    return np.concatenate([_map(f, source.read(part)["image"], source.levels) for part in _chunks(indices)])


def _chunks(x: np.ndarray) -> list[np.ndarray]:
    return [x[i : i + CHUNK] for i in range(0, len(x), CHUNK)]
