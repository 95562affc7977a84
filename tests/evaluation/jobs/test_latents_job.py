"""Latents: the figures of normal numbers and of numbers that are not, and the job against the solver alone."""

import jax
import numpy as np
import pytest

from evaluation.context import Context, build_guide
from evaluation.fold import run as run_fold
from evaluation.jobs.latents import EDGES, build, cumulative, moments, normality, summary
from sampling.building import build_sampler
from sampling.ode import Solver
from score_flow.build import experiment
from score_flow.config.loading import load, with_settings
from score_flow.runs.sharding import replicated
from tests.launch import TINY

SHAPE = (6, 5, 3)
NULL = {"latent_mean": 0.0, "latent_mean_square": 1.0, "latent_kurtosis": 3.0, "latent_neighbour_correlation": 0.0}
N = 40  # steps of the solver
RNG = np.random.default_rng(0)


def figures(z):
    z = z.astype(np.float32)
    return summary(moments(z), z.shape[-3:]) | normality(cumulative(z), z.size)


@pytest.fixture(scope="module")
def spread():
    """Figures of 200 sets of normal numbers."""
    return [figures(RNG.normal(size=(40, *SHAPE))) for _ in range(200)]


@pytest.mark.parametrize("name", NULL)
def test_of_normal_numbers(spread, name):
    """Mean and spread over 200 sets within four standard errors of what is said of them."""
    values = np.array([found[name] for found in spread])
    error = spread[0][f"{name}_normal_standard_error"]
    assert abs(values.mean() - NULL[name]) < 4 * error / np.sqrt(200) + 0.01 * error
    # The standard deviation of 200 values is itself known to 1/sqrt(400); of the kurtosis, whose tail is long, to more.
    assert abs(values.std() / error - 1) < 4 * (0.1 if name == "latent_kurtosis" else 0.05)
    # What the spread over the 40 images of a set says, each time, to 1/sqrt(78).
    estimated = np.mean([found[f"{name}_standard_error"] for found in spread])
    assert estimated / error == pytest.approx(1, abs=0.1)


def test_distance_from_the_normal_law(spread):
    """Kolmogorov's law: mean and spread; the thousandths see all of the supremum but a few per cent."""
    values = np.array([found["normal_distance"] for found in spread])
    mean = spread[0]["normal_distance_expected"]
    error = spread[0]["normal_distance_expected_standard_error"]
    assert abs(values.mean() - mean) < 4 * error / np.sqrt(200) + 0.05 * mean
    assert abs(values.std() / error - 1) < 0.25


def test_what_is_not_normal_is_told():
    """Uniform, shifted, wide and correlated numbers: their own moments, and distances far from the expected one."""
    n = (200, *SHAPE)
    uniform = figures(RNG.uniform(-np.sqrt(3), np.sqrt(3), n))
    assert uniform["latent_kurtosis"] == pytest.approx(1.8, abs=0.05)
    wide = figures(1.5 * RNG.normal(size=n) + 0.2)
    assert wide["latent_mean"] == pytest.approx(0.2, abs=0.05)
    assert wide["latent_mean_square"] == pytest.approx(2.25 + 0.04, abs=0.1)
    noise = RNG.normal(size=(200, 6, 6, 3))
    beside = figures((noise[:, :, 1:] + noise[:, :, :-1]) / np.sqrt(2))
    pairs_beside, pairs = 6 * 4, 6 * 4 + 5 * 5
    assert beside["latent_neighbour_correlation"] == pytest.approx(0.5 * pairs_beside / pairs, abs=0.03)
    for found in (uniform, wide):
        excess = found["normal_distance"] - found["normal_distance_expected"]
        assert excess > 10 * found["normal_distance_expected_standard_error"]


def test_neighbours_of_every_pair():
    """Against the products one by one."""
    z = RNG.normal(size=(2, 3, 4, 5, 2))
    found = moments(z)["neighbours"]
    assert found.shape == (2, 3)
    one = z[1, 2]
    products = [one[i, j, k] * one[i, j + 1, k] for i in range(4) for j in range(4) for k in range(2)]
    products += [one[i, j, k] * one[i + 1, j, k] for i in range(3) for j in range(5) for k in range(2)]
    np.testing.assert_allclose(found[1, 2], np.mean(products), rtol=1e-12)


def test_thousandths_are_counted():
    z = np.concatenate([EDGES - 1e-3, [9.0]]).astype(np.float32)
    np.testing.assert_array_equal(cumulative(z), np.arange(1, 1000))


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
