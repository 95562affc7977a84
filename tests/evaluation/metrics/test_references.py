"""Reference files in circulation: each is read by its project's names, and what does not fit is refused."""

import pickle

import numpy as np
import pytest

from evaluation.jobs import judging
from evaluation.metrics.extractors import base
from evaluation.metrics.frechet import Moments, frechet_distance, moments
from evaluation.metrics.statistics import Statistics, read
from score_flow.errors import UserError

RNG = np.random.default_rng(0)
POOL, SPATIAL, DINO = (RNG.normal(size=(40, d)) for d in (6, 5, 4))
(MU, SIGMA), (MU_S, SIGMA_S), (MU_D, SIGMA_D) = map(moments, (POOL, SPATIAL, DINO))


def written(folder, content, protocol=None):
    """An .npz of arrays; with a protocol a pickle."""
    file = folder / ("reference.npz" if protocol is None else "reference.pkl")
    if protocol is None:
        np.savez(file, **content)
    else:
        file.write_bytes(pickle.dumps(content, protocol))
    return file


def refusal(*args) -> str:
    with pytest.raises(UserError) as error:
        read(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_adms_file_has_the_spatial_features_too(tmp_path):
    content = {"mu": MU, "sigma": SIGMA, "mu_s": MU_S, "sigma_s": SIGMA_S, "arr_0": np.zeros((2, 4, 4, 3), np.uint8)}
    found = read(written(tmp_path, content))
    np.testing.assert_array_equal(found.mu, MU)
    assert list(found.more) == ["sfid"]
    np.testing.assert_array_equal(found.more["sfid"][0], MU_S)
    np.testing.assert_array_equal(found.more["sfid"][1], SIGMA_S)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ref_mu_and_ref_sigma(tmp_path, dtype):
    found = read(written(tmp_path, {"ref_mu": MU.astype(dtype), "ref_sigma": SIGMA.astype(dtype)}))
    np.testing.assert_array_equal(found.mu, MU.astype(dtype).astype(np.float64))
    np.testing.assert_array_equal(found.sigma, SIGMA.astype(dtype).astype(np.float64))
    assert not found.more


EDM2 = {
    "num_images": 40,
    "fid": {"mu": MU, "sigma": SIGMA},
    "fd_dinov2": {"mu": MU_D, "sigma": SIGMA_D},
    "another": {"mu": MU_S, "sigma": SIGMA_S},
}


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_edm2s_pickles(tmp_path, protocol):
    """Of the features that are asked for; those of the other distance stand beside them."""
    file = written(tmp_path, EDM2, protocol)
    by_fid, by_dino = read(file), read(file, "fd_dinov2")
    np.testing.assert_array_equal(by_fid.sigma, SIGMA)
    np.testing.assert_array_equal(by_fid.more["fd_dinov2"][1], SIGMA_D)
    np.testing.assert_array_equal(by_dino.mu, MU_D)
    assert (by_fid.n, list(by_fid.more), by_dino.more) == (40, ["fd_dinov2"], {})


def test_numpys_new_names_are_read_too(tmp_path):
    content = pickle.dumps(EDM2, 2)
    for old, new in ((b"numpy.core.", b"numpy._core."), (b"numpy._core.", b"numpy.core.")):
        (tmp_path / "other.pkl").write_bytes(content.replace(old, new))
        np.testing.assert_array_equal(read(tmp_path / "other.pkl").mu, MU)


@pytest.mark.parametrize("content, distance, said", [
    (EDM2, "frechet_distance", "holds statistics of fid, fd_dinov2, another; config.eval.extractor makes frechet_dist"),
    ([MU], "fid", "holds no statistics: a dict by the names of distances"),
    ({"fid": {"mu": MU}}, "fid", "holds no mu and sigma of fid"),
    ({"fid": {"mu": MU, "sigma": SIGMA[:3]}}, "fid", "sigma is float64 of shape (3, 6), mu of (6,)"),
    ({"fid": {"mu": MU.astype(">f8"), "sigma": SIGMA}}, "fid", "big-endian"),
    ({"fid": {"mu": MU.astype(complex), "sigma": SIGMA}}, "fid", "holds an array of 'c16'"),
    ({"fid": np.linalg.norm}, "fid", "which is code, not statistics"),
])  # fmt: skip
def test_pickles_of_something_else(tmp_path, content, distance, said):
    assert said in refusal(written(tmp_path, content, 4), distance)


def test_a_pickle_that_was_cut_off(tmp_path):
    file = written(tmp_path, EDM2, 4)
    file.write_bytes(file.read_bytes()[:-200])
    assert "cut off or damaged" in refusal(file)


@pytest.mark.parametrize("content, said", [
    ({"mu": MU, "sigma": SIGMA, "mu_s": MU_S}, "holds one of mu_s and sigma_s without the other"),
    ({"mu": MU, "sigma": SIGMA, "mu_s": MU_S, "sigma_s": SIGMA}, "sigma_s is float64 of shape (6, 6), mu_s of (5,)"),
    ({"mu": MU, "ref_mu": MU, "ref_sigma": SIGMA}, "holds both mu and ref_mu"),
    ({"ref_mu": MU}, "neither mu and sigma nor pool_3"),
])  # fmt: skip
def test_files_that_do_not_fit_themselves(tmp_path, content, said):
    assert said in refusal(written(tmp_path, content))


def test_every_distance_is_made_that_the_reference_has():
    """From moments added up in parts, each of its own features."""
    reference = Statistics(MU, SIGMA, more={"sfid": (MU_S, SIGMA_S)})
    spatial = RNG.normal(size=(30, 5)) + 1
    added = Moments.of(spatial[:11]).merge(Moments.of(spatial[11:]))
    classes = judging.ClassSums.empty(1, 1)
    state = {"features": POOL.astype(np.float32), "classes": classes, "more": {"sfid": added}}
    found = judging.figures((MU, SIGMA), state, reference, names=base.INCEPTION)
    assert set(found) == {"fid", "sfid"} and found["fid"] < 1e-9
    assert found["sfid"] == pytest.approx(frechet_distance(*moments(spatial), MU_S, SIGMA_S), rel=1e-10)
    assert found["sfid"] > 3
