"""The interpolation job: rows from image to image, and how far decoding undoes encoding."""

import jax
import numpy as np
import pytest
from PIL import Image

from evaluation.context import Context, build_guide
from evaluation.fold import run as run_fold
from evaluation.jobs import interpolation
from evaluation.jobs.interpolation import N_BETWEEN, build
from evaluation.report import one_run
from sampling.building import build_sampler
from sampling.flow import Solver
from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.runs.sharding import replicated
from tests.launch import TINY


def context(directory, seed=0):
    """An untrained class-conditional model of the digits, whose flow is strong enough to bend."""
    flags = [flag for flag in TINY if not flag.startswith("--config=")]
    flags += ["--config.model.class_conditional=True"]
    config = load("configs/digits.py", [*flags, "--config.eval.solver.rtol=1e-4", "--config.eval.solver.atol=1e-4"])
    run = experiment(config)
    shapes, rng = jax.eval_shape(run.init, jax.random.key(0)), np.random.default_rng(seed)
    params = jax.tree.map(lambda p: rng.normal(0.0, 0.1, p.shape).astype(np.float32), shapes)
    params = jax.device_put(params, replicated(run.mesh))
    return Context(run, params, 1, build_sampler(config), build_guide(run, config), config.eval, directory)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    directory = tmp_path_factory.mktemp("eval") / "interpolation"
    directory.mkdir()
    job = context(directory)
    return job, run_fold(build(job, Solver(**job.options.solver.to_dict())), directory, "interpolation")


@pytest.mark.slow
def test_rows_go_from_image_to_image(done):
    job, _ = done
    with np.load(job.directory / "interpolation.npz", allow_pickle=False) as arrays:
        rows, latents, index = (arrays[name] for name in ("image", "latents", "index"))
    n = len(rows)
    assert rows.shape == (n, N_BETWEEN + 2, 8, 8, 1) and latents.shape == (2, n, 8, 8, 1) and n >= 8
    real = job.source.read(index.ravel())["image"].reshape(n, 2, 8, 8, 1)
    np.testing.assert_array_equal(rows[:, [0, -1]], real)
    assert len({*index.ravel().tolist()}) == 2 * n
    # Towards the middle a row leaves its ends.
    off = np.abs(rows.astype(float) - rows[:, :1]).mean(axis=(0, 2, 3, 4))
    assert 0 < off[1] < off[4]
    with Image.open(job.directory / "interpolation.png") as picture:
        zoom = picture.width // (10 * 9 - 1)
        assert picture.size == (zoom * (10 * 9 - 1), zoom * (n * 9 - 1))


def test_result(done):
    """Of the solver's tolerance, in levels; and moments of the latents that the file holds."""
    job, result = done
    assert 0 < result["round_trip_rms_levels"] < 1e-2 * job.run.scaling.levels
    with np.load(job.directory / "interpolation.npz", allow_pickle=False) as arrays:
        z = arrays["latents"].astype(np.float64)
    np.testing.assert_allclose(result["latent_mean_square"], np.mean(z**2), rtol=1e-12)
    np.testing.assert_allclose(result["latent_kurtosis"], np.mean(z**4) / np.mean(z**2) ** 2, rtol=1e-12)
    assert -1 < result["latent_neighbour_correlation"] < 1


def test_the_report_shows_it(done, tmp_path):
    job, result = done
    real = job.source.read(np.arange(4))["image"]
    jobs, shown = {"interpolation": interpolation.job}, {"real": real, "levels": 17, "facts": {}}
    page = one_run.write(tmp_path, job.directory.parent, jobs, **shown).read_text()
    assert "<h2>Interpolation</h2>" in page and f"{result['round_trip_rms_levels']:.2g} levels off" in page
    assert "<h2>Interpolation</h2>" not in one_run.write(tmp_path, tmp_path, jobs, **shown).read_text()
