"""The job fid: the figures of its own samples, whatever the batches and wherever it was interrupted."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evaluation.context import Context, build_guide
from evaluation.drawing import drawer
from evaluation.fold import run as run_fold
from evaluation.jobs import fid, judging, rounds
from evaluation.metrics.extractors import base, small
from evaluation.metrics.frechet import frechet_distance, inception_score, moments
from evaluation.metrics.kernel_distance import kernel_distance
from evaluation.metrics.manifold import precision_recall
from evaluation.metrics.statistics import Statistics, read
from evaluation.modes.statistics import write_statistics
from sampling.building import build_sampler
from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.errors import Preempted, UserError

N = 100
FLAGS = (
    "network.name=mlp", "network.width=8", "network.depth=1", "sampling.name=ddim", "sampling.n_steps=2",
    f"eval.num_samples={N}", "eval.save_npz=True", "eval.batch_size=1500",
)  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(workdir with statistics, run, config, parameters, extractor), all made once."""
    workdir = tmp_path_factory.mktemp("run")
    config = load("configs/digits.py", [f"--config.{flag}" for flag in FLAGS])
    run = experiment(config)
    fitted = small.fit(run.train_source, labelled=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small, "fit", lambda train, labelled: fitted)
        write_statistics(run, config, workdir)
        yield workdir, run, config, run.init(jax.random.key(0, impl="rbg")), fitted


@pytest.fixture(scope="module")
def context(prepared, tmp_path_factory):
    """The context of a job in a folder of its own, with other options."""
    workdir, run, config, params, _ = prepared

    def make(folder, **options):
        changed = dataclasses.replace(config.eval, **options)
        directory = tmp_path_factory.mktemp(folder)
        guide, sampler = build_guide(run, config), build_sampler(config)
        return Context(run, params, 1, sampler, guide, changed, directory, workdir=workdir)

    return make


def built(context):
    """The job, with what it opens."""
    return fid.build(context, fid.open_reference(context.run, context.options, context.workdir).value)


def done(context):
    """(result, samples.npz) of the job."""
    result = run_fold(built(context), context.directory, "fid")
    with np.load(context.directory / "samples.npz", allow_pickle=False) as archive:
        return result, dict(archive)


@pytest.fixture(scope="module")
def whole(context):
    return done(context("whole", batch_size=40))


def test_figures_are_those_of_the_samples(whole, prepared):
    """Computed anew from samples.npz, all at once; features are float32."""
    workdir, _, _, _, extractor = prepared
    result, samples = whole
    levels = np.rint(samples["arr_0"] * (16 / 255)).astype(np.uint8)
    pool, logits = (np.asarray(x) for x in extractor(jnp.asarray(levels))[:2])
    reference = read(workdir / "stats" / "digits-train-small.npz")
    expected = {"frechet_distance": frechet_distance(*moments(pool), reference.mu, reference.sigma)}
    expected["kid"], expected["kid_standard_error"] = kernel_distance(pool, reference.features)
    expected["precision"], expected["recall"] = precision_recall(pool, reference.features)
    expected["classifier_score"], _ = inception_score(logits)
    expected["classifier_score_splits"], expected["classifier_score_splits_deviation"] = inception_score(logits, 10)
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, rel=1e-5), name


def test_what_a_result_says(whole, prepared):
    workdir, _, _, _, extractor = prepared
    result, samples = whole
    file = workdir / "stats" / "digits-train-small.npz"
    assert (result["n_samples"], len(samples["arr_0"])) == (N, N)
    assert (result["features"], result["n_features"]) == (extractor.name, 64)
    assert (result["reference"], result["split"], result["n_reference"]) == (str(file), "digits/train", 1500)
    assert result["reference_sha256"] == read(file).file_sha256
    assert result["network_calls_per_sample"] == 2
    assert json.loads(json.dumps(result)) == result
    assert all(np.isfinite(value) for value in result.values() if isinstance(value, float))


def test_samples_are_as_outside_evaluators_read_them(whole, prepared):
    """Every sample of the job samples, its 17 levels spread over 0 .. 255."""
    _, run, config, params, _ = prepared
    samples = whole[1]
    draw = drawer(run, build_sampler(config))
    levels = draw(params, build_guide(run, config), None, np.arange(104))[0]["image"][:N]  # 104 = 13 x 8 devices
    assert set(samples) == {"arr_0"}
    assert samples["arr_0"].dtype == np.uint8
    np.testing.assert_array_equal(samples["arr_0"], np.rint(levels * (255 / 16)))
    assert len(np.unique(samples["arr_0"].reshape(N, -1), axis=0)) == N  # each is drawn once


@pytest.mark.parametrize("size", [pytest.param(24, marks=pytest.mark.slow), 104])
def test_batches_change_nothing(context, whole, size):
    result, samples = done(context("other", batch_size=size))
    np.testing.assert_array_equal(samples["arr_0"], whole[1]["arr_0"])
    for name, value in whole[0].items():
        assert result[name] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), name


def stopping(fold):
    """The fold, stopped by SIGTERM in every round."""

    def step(state):
        os.kill(os.getpid(), signal.SIGTERM)
        return fold.step(state)

    return fold._replace(step=step)


def test_interrupted_and_gone_on(context, whole):
    """After each of its rounds but the last: bitwise the figures and the samples of an unbroken run."""
    broken = context("broken", batch_size=40)
    fold = stopping(built(broken))
    for number in (1, 2):
        with pytest.raises(Preempted, match=f"after {number} of 3 rounds"):
            run_fold(fold, broken.directory, "fid")
    result, samples = done(broken)
    assert result == whole[0]
    np.testing.assert_array_equal(samples["arr_0"], whole[1]["arr_0"])


def test_pixels_stay_on_the_device(context, monkeypatch):
    """Unless they are wanted, what leaves the program that draws is features."""
    quiet, left = context("quiet", batch_size=104, save_npz=False), set()

    def watched(*args, **options):
        draw = drawer(*args, **options)

        def drawn(*args):
            arrays, calls, ok = draw(*args)
            left.update(arrays)
            return arrays, calls, ok

        return drawn

    monkeypatch.setattr(rounds, "drawer", watched)
    result = run_fold(built(quiet), quiet.directory, "fid")
    assert left == {"pool", "logits"}
    assert not list(quiet.directory.rglob("*.npz"))
    assert result["n_samples"] == N and np.isfinite(result["frechet_distance"])


def test_labels_are_the_second_array(context):
    labelled = context("labelled", batch_size=8, num_samples=10)
    fid.save_samples(labelled, {"image": np.full((1, 10, 8, 8, 1), 16, np.uint8), "label": np.arange(10)[None]})
    with np.load(labelled.directory / "samples.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["arr_1"], np.arange(10))
        assert archive["arr_0"].shape == (10, 8, 8, 1) and (archive["arr_0"] == 255).all()


def test_one_sample_is_refused_early(prepared):
    workdir, run, config, _, _ = prepared
    options = dataclasses.replace(config.eval, num_samples=1)
    with pytest.raises(UserError, match="num_samples is 1; a Fréchet distance needs at least 2"):
        fid.open_reference(run, options, workdir)


def state_of(pool, logits=None):
    collector = judging.Collector(len(pool), pool.shape[1], len(pool))
    classes = judging.ClassSums.empty(1, 1 if logits is None else logits.shape[1])
    if logits is not None:
        classes = classes.add(logits, np.zeros(len(pool), int))
    return collector.add(collector.init(), np.arange(len(pool)), pool) | {"classes": classes}


def test_a_set_with_itself():
    pool = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    itself = Statistics(*moments(pool), features=pool)
    figures = judging.figures(moments(pool), state_of(pool), itself, names=base.OTHER)
    assert figures["frechet_distance"] < 1e-3
    assert figures["precision"] == figures["recall"] == 1
    assert figures["kid"] < 0  # unbiased: pairs of a vector with itself count across the sets alone
    assert "classifier_score" not in figures and "kid_blocks" not in figures


def test_a_reference_of_mu_and_sigma_has_a_distance_alone():
    pool = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    for extractor, name in ((base.OTHER, "frechet_distance"), (base.INCEPTION, "fid")):
        figures = judging.figures(moments(pool), state_of(pool), Statistics(*moments(pool)), names=extractor)
        assert set(figures) == {name}


def test_only_inceptions_figures_have_its_names():
    """FID and Inception score are of one network; those of others are called what they are."""
    pool, logits = np.random.default_rng(0).normal(size=(2, 300, 8)).astype(np.float32)
    reference, state = Statistics(*moments(pool), features=pool), state_of(pool, logits)
    named = {
        name
        for name in judging.figures(moments(pool), state, reference, names=base.INCEPTION)
        if "score" in name or "fid" in name
    }
    assert named == {"fid", "inception_score", "inception_score_splits", "inception_score_splits_deviation"}
    others = judging.figures(moments(pool), state, reference, names=base.OTHER)
    assert not [name for name in others if "inception" in name or "fid" in name]
