"""How samples compare with a data set in features that need no download; they are not Inception's, and say so."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int, UInt8
from threadpoolctl import threadpool_limits

from evaluation.metrics.extractors import small
from evaluation.metrics.extractors.base import Features
from evaluation.metrics.frechet import frechet_distance, moments
from score_flow.data.base import Source, shuffled

CHUNK = 1000  # images in floating point at a time
CONFIDENT = 0.9

Pixels = UInt8[np.ndarray, "n h w c"]
Labels = Int[np.ndarray, "n"]

_extract = jax.jit(lambda extractor, images: extractor(images))


class Judge:
    """Squared Frechet distance of images to the test split, and what a classifier makes of them when there are labels.

    `frechet_distance_train` is the distance of as many training images (all, if there are fewer): what perfect samples
    would get at this number. All three sets need two images to have a covariance; the result is {} without.
    `classifier_accuracy` is the share of images that the classifier takes for what their labels say.
    """

    def __init__(self, train: Source, test: Source):
        self._train, self._test = train, test
        if min(len(train), len(test)) < 2:
            return
        self._extractor = small.fit(train, labelled=bool(train.num_classes and test.num_classes))
        self._order, self._real = shuffled(len(train)), self._over(test, np.arange(len(test)))
        with threadpool_limits(limits=1):  # small matrices: threads cost more than they give, and round by their number
            self._of_test = moments(self._real.pool)

    @threadpool_limits.wrap(limits=1)
    def __call__(self, images: Pixels, labels: Labels | None = None) -> dict[str, Any]:
        n, train, test = len(images), self._train, self._test
        if min(n, len(train), len(test)) < 2:
            return {}
        sampled = self._features(images)
        of_train = self._over(train, self._order[:n])
        result = {
            "features": self._extractor.name,
            "n_features": self._extractor.n_features,
            "frechet_distance": frechet_distance(*moments(sampled.pool), *self._of_test),
            "frechet_distance_train": frechet_distance(*moments(of_train.pool), *self._of_test),
        }
        return result if sampled.logits is None else result | self._classified(sampled, labels)

    def _classified(self, sampled: Features, labels: Labels | None) -> dict[str, Any]:
        """Compute accuracy on the test split; confidence (largest probability) on samples and test images; counts."""
        truth = np.concatenate([self._test.read(part)["label"] for part in _chunks(np.arange(len(self._test)))])
        classes, confidence = self._decide(sampled)
        real_classes, real_confidence = self._decide(self._real)
        accuracy = {} if labels is None else {"classifier_accuracy": float((classes == labels).mean())}
        return accuracy | {
            "classifier_test_accuracy": float((real_classes == truth).mean()),
            "classifier_confidence": float(confidence.mean()),
            "classifier_confidence_test": float(real_confidence.mean()),
            "classifier_confident_share": float((confidence > CONFIDENT).mean()),
            "classifier_confident_share_test": float((real_confidence > CONFIDENT).mean()),
            "class_counts": np.bincount(classes, minlength=self._test.num_classes).tolist(),
        }

    def _decide(self, features: Features) -> tuple[Labels, Float32[np.ndarray, "n"]]:
        """Return the likeliest class of each image, and its probability."""
        logits = features.logits
        probability = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
        return np.take(self._extractor.classes, logits.argmax(axis=1)), probability

    def _features(self, images: Pixels) -> Features:
        parts = [_extract(self._extractor, part) for part in _chunks(images)]
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)

    def _over(self, source: Source, indices: Labels) -> Features:
        parts = [self._features(source.read(part)["image"]) for part in _chunks(indices)]
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _chunks(x: np.ndarray) -> list[np.ndarray]:
    return [x[i : i + CHUNK] for i in range(0, len(x), CHUNK)]
