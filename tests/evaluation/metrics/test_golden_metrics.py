"""Every figure of the golden feature and logit sets: torch-fidelity's, pytorch-fid's, scipy's and TF-GAN's.

Sets are discovered. Both sides compute in float64 from the same arrays, so that 1e-9 is a thousand roundings; where a
figure cancels, what it is a difference of sets the scale. With fewer vectors than features the covariances are
singular, zero eigenvalues enter by their roots, and packages agree to 1e-6 (TF-GAN leaves singular values below 1e-10).
"""

import functools
import json
import re

import numpy as np
import pytest

from evaluation.metrics.frechet import frechet_distance, inception_score, moments, split_of
from evaluation.metrics.kernel_distance import (
    block_distance,
    blocks,
    kernel_distance,
    subset_distances,
    subset_indices,
)
from evaluation.metrics.manifold import inside, precision_recall, radii
from tests.golden_data import golden_dir

GOLDEN = golden_dir() / "metrics"
EPS, RTOL = np.finfo(np.float64).eps, 1e-9
FLOAT32 = {"fid": 1e-6, "kid": 1e-4, "stderr": 1e-3}  # what the source's float32 run costs it, three times


def cases(prefix):
    return sorted(file.stem.removeprefix(prefix) for file in GOLDEN.glob(f"{prefix}*.npz"))


def results(file, name):
    path = GOLDEN / file
    return json.loads(path.read_text())["results"].get(name, {}) if path.is_file() else {}


def opened(name):
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as archive:
        return dict(archive)


def number(value):
    return np.nan if value is None else value


@pytest.mark.parametrize("name", cases("feat_"))
class TestFeatures:
    @pytest.fixture
    def sets(self, name):
        return opened(f"feat_{name}")

    def test_moments(self, name, sets):
        for which in [which for which in "ab" if f"sigma_{which}" in sets]:
            mean, covariance = moments(sets[which])
            np.testing.assert_allclose(mean, sets[f"mu_{which}"], rtol=RTOL, atol=RTOL)
            np.testing.assert_allclose(covariance, sets[f"sigma_{which}"], rtol=RTOL, atol=RTOL * covariance.max())

    def test_frechet_distance(self, name, sets):
        a, b = moments(sets["a"]), moments(sets["b"])
        singular = min(len(sets["a"]), len(sets["b"])) <= sets["a"].shape[1]
        # An eigenvalue of the product is off by d eps times the largest, a root by that over twice the root; equal sets
        # have nothing else. Zero eigenvalues are what the wider tolerance of singular sets is for.
        roots = np.sqrt(np.abs(np.linalg.eigvals(a[1] @ b[1])))
        off = len(roots) * EPS * roots.max() ** 2 / (2 * roots)
        cancellation = off[roots > 1e-6 * roots.max()].sum()
        published, compared = results("metrics.json", name) | results("tfgan.json", name), 0
        for key, value in published.items():
            if key in ("fid", "fid_numpy", "fid_pytorch_fid", "fid_scipy_sqrtm", "fid_torch_fidelity"):
                rtol = 1e-6 if singular else 3e-8 if key == "fid" else RTOL
                assert frechet_distance(*a, *b) == pytest.approx(value, rel=rtol, abs=cancellation), key
                compared += 1
        zero = np.zeros_like(a[1])
        assert frechet_distance(a[0], zero, b[0], zero) == pytest.approx(published["fid_mean_only"], rel=RTOL)
        assert compared

    def test_kernel_distance_of_all(self, name, sets):
        value, error = kernel_distance(sets["a"], sets["b"])
        published, scale = results("metrics.json", name), abs(value) + 1
        assert value == pytest.approx(published["kid_full_unbiased_numpy"], abs=RTOL * scale)
        if "kid_full_unbiased_torch_fidelity" in published:
            assert value == pytest.approx(published["kid_full_unbiased_torch_fidelity"], abs=RTOL * scale)
        assert error > 0

    def test_kernel_distance_of_subsets(self, name, sets):
        published = results("metrics.json", name)
        n, size, seed = published["kid_subsets"], published["kid_subset_size"], published["kid_rng_seed"]
        drawn = subset_indices(len(sets["a"]), len(sets["b"]), subsets=n, size=size, seed=seed)
        np.testing.assert_array_equal([i for i, _ in drawn], sets["kid_subset_idx_a"])
        np.testing.assert_array_equal([j for _, j in drawn], sets["kid_subset_idx_b"])
        values = subset_distances(sets["a"], sets["b"], subsets=n, size=size, seed=seed)
        np.testing.assert_allclose(values, sets["kid_subset_mmd2"], rtol=RTOL, atol=RTOL)
        assert values.mean() == pytest.approx(published["kid_subset_mean"], abs=RTOL)
        assert values.std() == pytest.approx(published["kid_subset_std_ddof0"], abs=RTOL)

    def test_kernel_distance_of_blocks(self, name, sets):
        published = results("metrics.json", name) | results("tfgan.json", name)
        largest = sorted({int(match[1]) for key in published if (match := re.match(r"kid_block(\d+)", key))})
        assert largest
        for size in largest:
            found = list(blocks(sets["a"], sets["b"], size))
            for which, which_sizes in zip("ab", zip(*((len(a), len(b)) for a, b in found), strict=True), strict=True):
                np.testing.assert_array_equal(which_sizes, sets[f"kid_block{size}_sizes_{which}"])
            estimates = [kernel_distance(a, b)[0] for a, b in found]
            np.testing.assert_allclose(estimates, sets[f"kid_block{size}_estimates"], rtol=RTOL, atol=RTOL)
            value, error = block_distance(sets["a"], sets["b"], size)
            for suffix, ours, kind in (("", value, "kid"), ("_stderr", error, "stderr")):
                for run, rtol in (("", RTOL), ("_numpy", RTOL), ("_f32", FLOAT32[kind])):
                    key = f"kid_block{size}{suffix}{run}"
                    if key in published:
                        expected = number(published[key])
                        assert ours == pytest.approx(expected, rel=rtol, abs=rtol / 10, nan_ok=True), key
        if "kid_default" in published:
            assert block_distance(sets["a"], sets["b"])[0] == pytest.approx(published["kid_default"], abs=RTOL)

    def test_precision_and_recall(self, name, sets):
        published, compared = results("metrics.json", name), 0
        of = functools.cache(lambda k: precision_recall(sets["a"], sets["b"], k))
        for key, value in published.items():
            if match := re.match(r"prc_k(\d+)_(precision|recall)(_numpy)?$", key):
                both = of(int(match[1]))
                assert both[match[2] == "recall"] == pytest.approx(value, rel=RTOL), key
                compared += 1
            elif match := re.match(r"prc_k(\d+)_torch_fidelity", key):  # means of float32
                both = of(int(match[1]))
                assert both == pytest.approx((value["precision"], value["recall"]), rel=1e-6), key
        for key in [key for key in sets if key.endswith("radius_a")]:
            k = int(re.match(r"prc_k(\d+)_", key)[1])
            of_a, of_b = radii(sets["a"], k), radii(sets["b"], k)
            np.testing.assert_allclose(of_a, sets[key], rtol=RTOL)
            np.testing.assert_allclose(of_b, sets[f"prc_k{k}_radius_b"], rtol=RTOL)
            np.testing.assert_array_equal(inside(sets["a"], sets["b"], of_b), sets[f"prc_k{k}_a_in_b"])
            np.testing.assert_array_equal(inside(sets["b"], sets["a"], of_a), sets[f"prc_k{k}_b_in_a"])
        assert compared


@pytest.mark.parametrize("name", cases("logits_"))
def test_inception_score(name):
    arrays, published = opened(f"logits_{name}"), results("metrics.json", f"logits_{name}")
    logits, compared = arrays["logits"], 0
    for key, value in published.items():
        if match := re.match(r"isc_splits(\d+)_(?:shuffled(\d+)_)?(mean|std_ddof0)$", key):
            score = inception_score(logits, int(match[1]), int(match[2]) if match[2] else None)
            assert score[match[3] != "mean"] == pytest.approx(value, rel=RTOL, abs=RTOL), key
            compared += 1
    for key in [key for key in arrays if key.startswith("isc_splits")]:
        splits = int(re.match(r"isc_splits(\d+)_scores", key)[1])
        split = split_of(len(logits), splits)
        each = [inception_score(logits[split == i])[0] for i in range(splits)]
        np.testing.assert_allclose(each, arrays[key], rtol=RTOL)
    tfgan = results("tfgan.json", f"logits_{name}")
    if tfgan:
        assert inception_score(logits)[0] == pytest.approx(tfgan["inception_score"], rel=RTOL)
        assert inception_score(logits)[0] == pytest.approx(tfgan["inception_score_f32"], rel=1e-6)
    assert compared
