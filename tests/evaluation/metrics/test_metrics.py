"""Distances of sets of features against closed forms, definitions and their own symmetries."""

import functools

import numpy as np
import pytest

import evaluation.metrics.kernel_distance
from evaluation.metrics.collector import Collector
from evaluation.metrics.frechet import ClassSums, Moments, frechet_distance, inception_score, moments, split_of
from evaluation.metrics.kernel_distance import kernel_distance
from evaluation.metrics.manifold import precision_recall
from score_flow.errors import UserError

EPS = np.finfo(np.float64).eps


def features(n, d, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def test_moments_are_numpys_in_float64():
    x = features(40, 5, 0).astype(np.float32)
    mean, covariance = moments(x)
    assert mean.dtype == covariance.dtype == np.float64
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(0), rtol=40 * EPS)
    np.testing.assert_allclose(
        covariance, np.cov(x.astype(np.float64), rowvar=False, ddof=1), rtol=0, atol=40 * EPS * covariance.max()
    )


def test_one_vector_has_no_covariance():
    with pytest.raises(UserError, match="got 1 feature vector"):
        moments(np.zeros((1, 3)))


def test_commuting_gaussians():
    """With common axes the distance is |mu1 - mu2|^2 + sum (s1 - s2)^2 over standard deviations along them."""
    rng = np.random.default_rng(1)
    axes = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    s1, s2 = rng.uniform(0.1, 3, (2, 6))
    mu1, mu2 = rng.normal(size=(2, 6))
    got = frechet_distance(mu1, (axes * s1**2) @ axes.T, mu2, (axes * s2**2) @ axes.T)
    assert got == pytest.approx(((mu1 - mu2) ** 2).sum() + ((s1 - s2) ** 2).sum(), abs=1e-6)


def test_gaussians_of_two_dimensions_that_do_not_commute():
    """tr M^1/2 = sqrt(tr M + 2 sqrt(det M)) for 2 x 2: here of M = S1 S2, by its invariants."""
    s1, s2 = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[1.0, -0.4], [-0.4, 3.0]])
    root_trace = np.sqrt(np.trace(s1 @ s2) + 2 * np.sqrt(np.linalg.det(s1) * np.linalg.det(s2)))
    expected = np.trace(s1 + s2) - 2 * root_trace
    assert frechet_distance(np.zeros(2), s1, np.zeros(2), s2) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("n", [30, 400], ids=["singular", "regular"])
def test_a_set_with_itself_and_symmetry(n):
    a, b = moments(features(n, 64, 2)), moments(features(n, 64, 3))
    # an eigenvalue of the product is off by eps times the largest, and in the worst case all of that enters its root
    rounding = 64 * np.sqrt(EPS) * max(np.linalg.eigvalsh(a[1])[-1], np.linalg.eigvalsh(b[1])[-1])
    assert 0 <= frechet_distance(*a, *a) < min(1e-3, rounding)
    assert frechet_distance(*a, *b) == pytest.approx(frechet_distance(*b, *a), abs=rounding)
    assert frechet_distance(*a, *b) > ((a[0] - b[0]) ** 2).sum()


def test_singular_covariances_on_different_lines():
    """Variances s^2 along u and t^2 along v have distance s^2 + t^2 - 2 s t |u.v|."""
    u, v = np.array([1.0, 0.0, 0.0]), np.array([0.6, 0.8, 0.0])
    got = frechet_distance(np.zeros(3), 4.0 * np.outer(u, u), np.zeros(3), 9.0 * np.outer(v, v))
    assert got == pytest.approx(4 + 9 - 2 * 2 * 3 * 0.6, abs=1e-6)


# ---- streams


N, D = 10_000, 6


def split_into(x, parts, seed):
    """The rows of x in an order of their own, in so many parts, some of them empty."""
    rng = np.random.default_rng(seed)
    order, ends = rng.permutation(len(x)), np.sort(rng.integers(0, len(x) + 1, parts - 1))
    return np.split(x[order], ends)


@pytest.fixture(scope="module")
def images():
    """Features far from 0: of a sum of squares about 0 that is not centred, 1e-8 would be all that is left."""
    return features(N, D, 4) + 1e4


@pytest.mark.parametrize("parts", [1, 2, 7, 400, N])
def test_moments_do_not_depend_on_how_images_are_split(images, parts):
    """Acceptance: 1e-8; float64 leaves some n eps of the sums, which are of the size n |x| and n |x - mean|^2."""
    merged = functools.reduce(Moments.merge, map(Moments.of, split_into(images, parts, parts)), Moments.empty(D))
    whole = Moments.of(images)
    assert merged.count == N
    np.testing.assert_allclose(merged.total, whole.total, rtol=1e-12)
    (mu, sigma), (expected_mu, expected_sigma) = merged.gaussian(), whole.gaussian()
    np.testing.assert_allclose(mu, expected_mu, rtol=1e-12)
    np.testing.assert_allclose(sigma, expected_sigma, rtol=0, atol=1e-9 * np.abs(expected_sigma).max())
    # S is off by S^1/2 E S^1/2 with |E| = 1e-9, the distance by a second order of that and the rounding of what cancels
    assert frechet_distance(mu, sigma, expected_mu, expected_sigma) < 1e-8


def test_merging_is_associative_and_has_a_unit(images):
    a, b, c = (Moments.of(part) for part in np.array_split(images, 3))
    for left, right in ((a.merge(b).merge(c), a.merge(b.merge(c))), (a.merge(Moments.empty(D)), a)):
        for x, y in zip(left, right, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9 * np.abs(y).max())
    assert Moments.empty(D).merge(Moments.empty(D)).count == 0


@pytest.mark.parametrize("limit", [1, 100, N, 2 * N])
def test_a_collector_does_not_depend_on_order_or_batches(images, limit):
    rng, collector = np.random.default_rng(0), Collector(N, D, limit)
    pool, kept = images.astype(np.float32), []
    for parts in (1, 11):
        state = collector.init()
        for indices in np.array_split(rng.permutation(N) if parts > 1 else np.arange(N), parts):
            state = collector.add(state, indices, pool[indices])
        kept.append(state["features"])
        assert state["moments"].count == N
    np.testing.assert_array_equal(*kept)
    np.testing.assert_array_equal(kept[0], pool[collector.kept])
    assert len(np.unique(collector.kept)) == min(limit, N)


def test_images_must_come_once_each(images):
    """After rounds of another size, of other images then, some would be missing or count twice."""
    collector, pool = Collector(N, D, 10), images.astype(np.float32)
    state = collector.add(collector.init(), np.arange(N - 1), pool[:-1])
    with pytest.raises(UserError, match="features of 9999 images were collected where there are 10000"):
        collector.gaussian(state)
    state = collector.add(state, np.array([N - 1]), pool[-1:])
    np.testing.assert_allclose(collector.gaussian(state)[0], pool.astype(np.float64).mean(axis=0), rtol=1e-12)


def test_features_are_kept_from_all_over(images):
    """Of classes in order, each has its share: the deviation of a hypergeometric count."""
    kept = Collector(N, D, 1000).kept
    counts = np.bincount(kept * 10 // N, minlength=10)
    assert np.abs(counts - 100).max() < 5 * np.sqrt(1000 * 0.1 * 0.9 * 0.9)


# ---- Inception score


def test_inception_score_of_certain_classes_is_their_number():
    """p(y|x) one-hot and uniform over k classes: KL = log k; alike for every image: KL = 0."""
    logits = 1e3 * np.eye(7)[np.arange(70) % 7]
    assert inception_score(logits) == pytest.approx((7.0, 0.0), abs=1e-12)
    assert inception_score(logits, 10) == pytest.approx((7.0, 0.0), abs=1e-12)
    assert inception_score(np.ones((70, 7))) == pytest.approx((1.0, 0.0), abs=1e-12)


def test_inception_score_streams():
    """Images in any order and in any batches, each in the split of its number."""
    rng = np.random.default_rng(0)
    logits, split = rng.normal(size=(103, 5)) * 3, split_of(103, 10, seed=1)
    sums = ClassSums.empty(10, 5)
    for indices in np.array_split(rng.permutation(103), 9):
        sums = sums.add(logits[indices], split[indices])
    assert sums.score() == pytest.approx(inception_score(logits, 10, seed=1), rel=1e-12)
    assert sums.together().score() == pytest.approx(inception_score(logits), rel=1e-12)


@pytest.mark.parametrize("n, splits", [(10, 10), (437, 10), (7, 3)])
@pytest.mark.parametrize("seed", [None, 3])
def test_splits_are_equal_to_one_image(n, splits, seed):
    counts = np.bincount(split_of(n, splits, seed), minlength=splits)
    assert counts.sum() == n and counts.max() - counts.min() <= 1


# ---- kernel distance


def by_definition(x, y):
    """The unbiased estimate, pair by pair."""

    def mean(pairs):
        return np.mean([(a @ b / len(a) + 1) ** 3 for a, b in pairs])

    within = [mean([(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]) for z in (x, y)]
    return sum(within) - 2 * mean([(a, b) for a in x for b in y])


@pytest.mark.parametrize("n, m", [(2, 2), (9, 14)])
def test_kernel_distance_is_its_definition(n, m):
    x, y = features(n, 3, 0), features(m, 3, 1)
    assert kernel_distance(x, y)[0] == pytest.approx(by_definition(x, y), rel=1e-12)
    assert kernel_distance(x, y) == pytest.approx(kernel_distance(y, x), rel=1e-12)


@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_kernel_distance_in_parts(monkeypatch, rows):
    x, y = features(21, 3, 0), features(17, 3, 1)
    expected = kernel_distance(x, y)
    monkeypatch.setattr(evaluation.metrics.kernel_distance, "ROWS", rows)
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("gap", [0.0, 1.0], ids=["alike", "apart"])
def test_kernel_distance_is_unbiased_and_knows_its_error(gap):
    """Over many sets: the mean is the closed form; the error is the deviation where the sets differ, more if not.

    In one dimension E (x y + 1)^3 = sum_p binomial(3, p) E x^p E y^p, with moments 1, m, 1 + m^2, 3 m + m^3 of N(m, 1).
    """
    rng, repeats = np.random.default_rng(0), 400
    found = [kernel_distance(rng.normal(size=(60, 1)), gap + rng.normal(size=(80, 1))) for _ in range(repeats)]
    values, errors = np.array(found).T
    power = lambda m: np.array([1, m, 1 + m**2, 3 * m + m**3])  # noqa: E731
    expected = (np.array([1, 3, 3, 1]) * (power(0.0) - power(gap)) ** 2).sum()
    assert abs(values.mean() - expected) < 4 * values.std() / np.sqrt(repeats)
    ratio = np.sqrt((errors**2).mean()) / values.std()
    assert 0.85 < ratio < 1.2 if gap else 1.0 < ratio < 2.0


def test_kernel_distance_needs_two():
    with pytest.raises(UserError, match="got 1 and 5 feature vector"):
        kernel_distance(np.zeros((1, 2)), np.zeros((5, 2)))


# ---- precision and recall


def test_precision_and_recall_by_definition():
    x, y, k = features(30, 4, 0), features(40, 4, 1), 3

    def inside(points, centres):
        radius = [np.sort(np.linalg.norm(centres - c, axis=1))[k] for c in centres]  # the nearest is itself
        return np.mean([any(np.linalg.norm(p - c) <= r for c, r in zip(centres, radius, strict=True)) for p in points])

    assert precision_recall(x, y, k) == (inside(x, y), inside(y, x))
    assert 0 < inside(x, y) < 1 or 0 < inside(y, x) < 1


def test_precision_and_recall_of_sets_that_are_told_apart():
    x = features(50, 4, 0)
    assert precision_recall(x, x + 1e6) == (0.0, 0.0)
    assert precision_recall(x, x) == (1.0, 1.0)
    two = np.concatenate([x, x + 1e3])  # one of two modes: nothing wrong is drawn, half is missing
    assert precision_recall(x, two) == (1.0, 0.5)


def test_manifolds_need_neighbours():
    with pytest.raises(UserError, match="got 3 feature vectors; 3 neighbours need at least 4"):
        precision_recall(np.zeros((9, 2)), np.zeros((3, 2)), 3)
