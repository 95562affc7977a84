"""The jobs of pictures and of quality against calls, on a small untrained model of classes."""

import jax
import numpy as np
import pytest

from evaluation.context import Context, build_guide
from evaluation.drawing import drawer
from evaluation.fold import run as run_fold
from evaluation.jobs import calls, gallery
from evaluation.report import one_run
from sampling.building import build_sampler
from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.runs.sharding import replicated
from tests.launch import TINY

FLAGS = [flag for flag in TINY if not flag.startswith("--config=")] + [
    "--config.model.class_conditional=True",
    "--config.training.label_dropout=0.1",
    "--config.sampling.name=ddim",
    "--config.sampling.n_steps=3",
    "--config.eval.num_samples=20",
    "--config.eval.batch_size=16",
]


@pytest.fixture(scope="module")
def model():
    """(run, parameters, config) of a network whose output is no constant."""
    config = load("configs/digits.py", FLAGS)
    run, rng = experiment(config), np.random.default_rng(0)
    shapes = jax.eval_shape(run.init, jax.random.key(0))
    params = jax.tree.map(lambda p: rng.normal(0.0, 0.1, p.shape).astype(np.float32), shapes)
    return run, jax.device_put(params, replicated(run.mesh)), config


def context(model, directory):
    run, params, config = model
    directory.mkdir(parents=True, exist_ok=True)
    return Context(run, params, 1, build_sampler(config), build_guide(run, config), config.eval, directory)


def test_an_index_is_a_sample_whatever_its_batch(model, tmp_path):
    run, params, config = model
    draw, guide = drawer(run, build_sampler(config)), build_guide(run, config)
    whole = draw(params, guide, None, np.arange(16))[0]
    part = draw(params, guide, None, np.arange(8, 16))[0]
    np.testing.assert_array_equal(whole["label"], np.arange(16) % 10)
    assert len(np.unique(whole["image"], axis=0)) == 16
    # Programs of other batches may round otherwise, by which a pixel can pass from one level to the next.
    assert np.abs(whole["image"][8:].astype(int) - part["image"]).max() <= 1


@pytest.mark.parametrize(("hidden", "drawn"), [(0.1, True), (0.0, False)])
def test_guidance_is_drawn_of_a_model_that_has_it(model, tmp_path, hidden, drawn):
    """Trained without ever hiding a label, a network has no flow without one to guide from."""
    run, params, _ = model
    hiding = load("configs/digits.py", [*FLAGS, f"--config.training.label_dropout={hidden}"])
    names = [picture.name for picture in gallery.Gallery(context((run, params, hiding), tmp_path)).pictures()]
    assert ("guidance" in names) == drawn and "classes" in names


@pytest.mark.slow
def test_gallery(model, tmp_path, monkeypatch):
    """Every picture that digits allow; what was measured of an input is seen in its samples; the report has them."""
    monkeypatch.setattr(gallery, "SCALES", (0.0, 3.0))
    monkeypatch.setattr(gallery, "STRENGTHS", (0.5,))
    job = context(model, tmp_path / "eval" / "gallery")
    result = run_fold(gallery.build(job, None), job.directory, "gallery")
    names = [picture["name"] for picture in result["pictures"]]
    assert names == ["classes", "guidance", "inpainting", "sdedit", "super_resolution"]
    arrays = {name: np.load(job.directory / f"{name}.npz", allow_pickle=False)["image"] for name in names}
    assert all((job.directory / f"{name}.png").exists() for name in names)
    guided = arrays["guidance"].reshape(len(gallery.SCALES), 10, 8, 8, 1)
    assert (guided[0] != guided[-1]).any()
    rows = arrays["inpainting"].reshape(10, -1, 8, 8, 1)
    # The last step ends at t_min = 1e-3, from where the known half is a level's share away.
    assert np.abs(rows[:, 2:, :4].astype(int) - rows[:, :1, :4]).max() <= 1
    assert (rows[:, 2, 4:] != rows[:, 3, 4:]).any()
    labels = [
        job.run.test_source.label[(job.run.test_source.image == image).all(axis=(1, 2, 3))] for image in rows[:, 0]
    ]
    assert [label[0] for label in labels] == list(range(10))
    page = one_run.write(
        tmp_path, tmp_path / "eval", {"gallery": gallery.job}, real=rows[:, 0], levels=17, facts={}
    ).read_text()
    assert page.count("Guidance scales") == 2 and "<h2>Gallery</h2>" in page


@pytest.mark.slow
def test_calls(model, tmp_path, monkeypatch):
    """The calls are counted, not copied from the request; every row judges as many samples; the report has a table."""
    few = {"DDIM": ((2, 4), calls.SAMPLERS["DDIM"][1]), "EDM Heun": ((3,), calls.SAMPLERS["EDM Heun"][1])}
    monkeypatch.setattr(calls, "SAMPLERS", few)
    job = context(model, tmp_path / "eval" / "calls")
    result = run_fold(calls.build(job, calls.budgets()), job.directory, "calls")
    # Heun's two steps are Euler's here: the first starts at alpha = 0, the last ends the run.
    assert [(row["sampler"], row["calls"]) for row in result["rows"]] == [("DDIM", 2), ("DDIM", 4), ("EDM Heun", 2)]
    assert all(row["frechet_distance"] > 0 and 0 <= row["classifier_accuracy"] <= 1 for row in result["rows"])
    assert np.load(job.directory / "calls.npz", allow_pickle=False)["image"].shape == (3, 16, 8, 8, 1)
    page = one_run.write(
        tmp_path, tmp_path / "eval", {"calls": calls.job}, real=job.run.test_source.image[:8], levels=17, facts={}
    ).read_text()
    assert "<h2>Quality against network calls</h2>" in page and page.count("EDM Heun") >= 1


def test_budgets_are_met():
    """What a row asks of its sampler is at most its budget, and all but one call of it."""
    for budget in calls.budgets():
        section = budget.section
        per_step = 2 if section["name"] in ("ode", "heun", "predictor_corrector") else 1
        assert budget.calls - 1 <= section["n_steps"] * per_step <= budget.calls + 1
