"""Latents: the job on an untrained model, against what its solver promises."""

import jax
import numpy as np
import pytest

from evaluation.context import Context, build_guide
from evaluation.fold import run as run_fold
from evaluation.jobs.latents import build
from sampling.building import build_sampler
from sampling.flow import Solver
from score_flow.build import experiment
from score_flow.config.loading import load, with_settings
from score_flow.runs.sharding import replicated
from tests.launch import TINY

N = 40  # steps of the solver


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The job on an untrained model of the digits, with 150 of the 297 images a round."""
    directory = tmp_path_factory.mktemp("eval") / "latents"
    directory.mkdir()
    flags = [flag for flag in TINY if not flag.startswith("--config=")]
    config = load(
        "configs/digits.py", [*flags, "--config.eval.solver.method=heun", f"--config.eval.solver.n_steps={N}"]
    )
    config = with_settings(config, {"eval.batch_size": 150})
    run = experiment(config)
    shapes, rng = jax.eval_shape(run.init, jax.random.key(0)), np.random.default_rng(0)
    params = jax.tree.map(lambda p: rng.normal(0.0, 0.1, p.shape).astype(np.float32), shapes)
    params = jax.device_put(params, replicated(run.mesh))
    context = Context(run, params, 1, build_sampler(config), build_guide(run, config), config.eval, directory)
    return context, run_fold(build(context, Solver(**config.eval.solver.to_dict())), directory, "latents")


def test_every_image_there_and_back(done):
    """Errors of a method of second order, of 1/N^2 levels times a constant of the flow's curvature, here below ten."""
    context, result = done
    with np.load(context.directory / "latents.npz", allow_pickle=False) as arrays:
        kept = dict(arrays)
    assert result["n_images"] == 297 and all(array.shape == (297,) for array in kept.values())
    assert all((array != 0).all() for array in kept.values())
    assert 0 < result["round_trip_rms_levels"] <= result["round_trip_max_levels"] < 10 * 17 / N**2
    assert result["round_trip_max_levels"] == kept["round_trip_max"].max()
    assert result["latent_mean_square"] == pytest.approx(kept["mean_square"].mean(), rel=1e-12)
    assert result["latent_kurtosis"] == pytest.approx(
        kept["fourth"].mean() / kept["mean_square"].mean() ** 2, rel=1e-12
    )
    assert result["network_calls_per_image"] == 2 * 2 * N and result["split"] == "digits/test"


def test_latents_of_an_untrained_model_are_not_normal(done):
    _, result = done
    assert result["normal_distance"] > result["normal_distance_expected"] * 3
