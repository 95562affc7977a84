"""Guidance from the checkpoints of other runs: a classifier's and a worse model's."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evaluation.context import build_guide
from main import EXIT_USER_ERROR, main
from sampling.guided import Autoguided, ClassifierGuided, Extrapolation
from score_flow.build import experiment
from score_flow.config.loading import load, with_settings
from score_flow.errors import UserError
from score_flow.networks.classifier import NETWORKS as CLASSIFIERS
from score_flow.runs.checkpoint import Checkpoints
from tests.exact import GaussianDenoiser
from tests.launch import TINY

CLASSIFIER = (
    *("--config.training.objective=classifier", "--config.network.name=classifier"),
    *("--config.model.time_scale=1.", "--config.model.ema_rate=(0.9,)"),
)
LABELS = "--config.model.class_conditional=True"


class Quadratic(nn.Module):
    """Logits that compile in no time and have a gradient of their own for every label."""

    num_classes: int = 0

    @nn.compact
    def __call__(self, x, time, condition=None, *, deterministic=True):
        h = nn.Dense(16)(x.reshape(x.shape[0], -1))
        return nn.Dense(self.num_classes)(h**2 + time[:, None])


@pytest.fixture(scope="module", autouse=True)
def small_classifier():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CLASSIFIERS, "classifier", Quadratic)
        yield


def settings(*flags):
    """The tiny recipe, with flags; with another network, without the arguments of its own."""
    named = any(flag.startswith("--config.network.name=") for flag in flags)
    unwanted = ("--config=", *(["--config.network."] if named else []))
    return load("configs/digits.py", [*(flag for flag in TINY if not flag.startswith(unwanted)), *flags])


def make(workdir, *flags, seed=0):
    """A run with a checkpoint, as training leaves it but for the training: (Experiment, config, its first EMA)."""
    config = settings(*flags)
    run = experiment(config)
    shapes, rng = jax.eval_shape(run.init, jax.random.key(0)), np.random.default_rng(seed)
    params = jax.tree.map(lambda p: rng.normal(0.0, 0.2, p.shape).astype(np.float32), shapes)
    other = jax.tree.map(np.zeros_like, params)  # only the first EMA is what evaluations take
    meta = {"config": json.loads(config.to_json()), "step": 7, "weights": {"raw": "raw", "ema": "ema"}}
    checkpoints = Checkpoints(workdir / "checkpoints")
    emas = [params, *[other] * (len(config.model.ema_rate) - 1)]
    checkpoints.save(7, {"params": other, "ema": emas}, meta, wait=True)
    checkpoints.close()
    (workdir / "config.json").write_text(config.to_json())
    return run, config, jax.tree.map(jnp.asarray, params)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """folder, run, config and EMA of a model, a worse one, one with classes, and a classifier."""
    root, found = tmp_path_factory.mktemp("runs"), {}
    flags = {"model": (), "bad": ("--config.network.width=16",), "classes": (LABELS,), "classifier": CLASSIFIER}
    for seed, (name, extra) in enumerate(flags.items()):
        found[name] = (root / name, *make(root / name, *extra, seed=seed))
    return found


def guided_by(runs, name="model", **fields):
    """(guidance, the model's bound denoiser, its run) with fields of config.guidance set."""
    _, run, config, params = runs[name]
    config = load_again(config, **fields)
    guide = build_guide(run, config)
    return guide, run.model.bind(params, guide.in_turn(jnp.arange(12))), run


def load_again(config, **fields):
    return with_settings(config, {f"guidance.{name}": value for name, value in fields.items()})


X = jnp.asarray(np.random.default_rng(0).normal(size=(12, 8, 8, 1)), jnp.float32)
T = jnp.linspace(0.05, 0.95, 12)


def assert_same(one, other):
    one, other = jax.jit(lambda x, t: [d.estimate(x, t)[:2] for d in (one, other)])(X, T)
    for a, b in zip(one, other, strict=True):
        # The same sums, perhaps fused otherwise.
        np.testing.assert_allclose(a, b, rtol=0, atol=64 * np.finfo(np.float32).eps * float(jnp.abs(b).max()))


def test_a_classifier_guides_a_model_without_classes_to_labels_in_turn(runs):
    folder, classifier, _, weights = runs["classifier"]
    guide, denoiser, _ = guided_by(runs, classifier=str(folder), classifier_scale=3.0)
    label = jnp.arange(12) % 10
    np.testing.assert_array_equal(denoiser.condition["label"], label)

    def log_prob(x, t, label):
        return jax.nn.log_softmax(classifier.model.apply(weights, x, t))[jnp.arange(12), label]

    expected = ClassifierGuided(denoiser, log_prob, 3.0)
    assert_same(guide(denoiser), expected)
    moved = jax.jit(lambda x, t: guide(denoiser).x0(x, t) - denoiser.x0(x, t))(X, T)
    assert jnp.abs(moved).max() > 1e-3
    off, plain, _ = guided_by(runs, classifier=str(folder), classifier_scale=0.0)
    assert off(plain) is plain


def test_a_worse_model_guides(runs):
    folder, bad, _, weights = runs["bad"]
    guide, denoiser, _ = guided_by(runs, bad=str(folder), scale=2.0)
    assert denoiser.condition is None
    assert_same(guide(denoiser), Autoguided(denoiser, bad.model.bind(weights), Extrapolation(2.0)))
    # A model with classes but no null class: autoguidance needs none. The bad one may know no classes, or the same.
    for name in ("bad", "classes"):
        folder, bad, _, weights = runs[name]
        guide, denoiser, _ = guided_by(runs, "classes", bad=str(folder), scale=2.0)
        expected = Autoguided(denoiser, bad.model.bind(weights, denoiser.condition), Extrapolation(2.0))
        assert_same(guide(denoiser), expected)


def test_both_at_once_are_arguments_not_constants(runs):
    """Parameters of other runs come in as arguments: what is compiled holds none of them."""
    fields = {"classifier": str(runs["classifier"][0]), "bad": str(runs["bad"][0]), "scale": 1.5}
    guide, denoiser, run = guided_by(runs, **fields)
    largest = max(leaf.size for leaf in jax.tree.leaves(guide))

    def x0(guide, params, x):
        return guide(run.model.bind(params, guide.in_turn(jnp.arange(12)))).x0(x, T)

    def constants(f, *args):
        return max((np.size(c) for c in jax.make_jaxpr(f)(*args).consts), default=0)

    assert constants(x0, guide, denoiser.params, X) < largest
    assert constants(lambda params, x: x0(guide, params, x), denoiser.params, X) >= largest  # what is avoided


def test_guides_pass_through_jit_and_keep_their_program(runs):
    guide, denoiser, _ = guided_by(runs, classifier=str(runs["classifier"][0]))
    traced = []

    @jax.jit
    def draw(guide, x):
        traced.append(1)
        return guide(denoiser).denoiser.x0(x, T)

    draw(guide, X), draw(jax.tree.map(lambda p: p + 1, guide), X)
    assert len(traced) == 1
    assert guided_by(runs)[0](GaussianDenoiser(None)) == GaussianDenoiser(None)


@pytest.mark.parametrize("flags, field, words", [
    ((), "classifier", "was trained with training.objective = simple; give a classifier"),
    (CLASSIFIER, "bad", "was trained with training.objective = classifier; give a model of images"),
    ((*CLASSIFIER, "--config.path.name=vp"), "classifier", "has another path: VP(beta_min=0.1, beta_max=20.0)"),
    (("--config.path.name=gvp",), "bad", "has another path: GVP()"),
    ((*CLASSIFIER, "--config.data.image_shape=(12,12,1)", "--config.data.num_classes=10"), "classifier",
     "has another shape of images: (12, 12, 1), where this run has (8, 8, 1)"),
    ((*CLASSIFIER, "--config.data.centered=False"), "classifier", "has another range of pixels: (0.0, 1.0)"),
    ((LABELS,), "bad", "needs labels, which this run's samples have not"),
    (("--config.network.name=adm", "--config.model.low_res=4"), "bad", "has another side of low-resolution images: 4"),
])  # fmt: skip
def test_runs_that_do_not_fit_are_refused(runs, tmp_path, flags, field, words):
    config = settings(*flags)
    (tmp_path / "config.json").write_text(config.to_json())
    with pytest.raises(UserError) as error:
        guided_by(runs, **{field: str(tmp_path), "scale": 2.0 if field == "bad" else 1.0})
    assert words in str(error.value) and "\n" not in str(error.value)
    assert f"config.guidance.{field} = {tmp_path}" in str(error.value)


def test_a_classifier_of_other_classes_is_refused(runs, tmp_path):
    data = ("--config.data.image_shape=(8,8,1)", "--config.data.num_classes=7", "--config.data.levels=17")
    config = settings(*CLASSIFIER, *data)
    (tmp_path / "config.json").write_text(config.to_json())
    with pytest.raises(UserError, match="another number of classes: 7, where this run has 10"):
        guided_by(runs, "classes", classifier=str(tmp_path))


def test_folders_without_a_run_or_a_checkpoint_are_refused(runs, tmp_path):
    with pytest.raises(UserError, match="there is no .*config.json; give the --workdir of a trained run"):
        guided_by(runs, classifier=str(tmp_path))
    (tmp_path / "config.json").write_text((runs["classifier"][0] / "config.json").read_text())
    with pytest.raises(UserError, match="no checkpoint in"):
        guided_by(runs, classifier=str(tmp_path))
    with pytest.raises(UserError, match="config.guidance.scale is 1: nothing would be guided"):
        guided_by(runs, bad=str(runs["bad"][0]))


def test_from_the_command_line(runs, capsys):
    """--mode=sample: labels in turn for a model without classes, other images than unguided ones."""
    folder = runs["model"][0]
    flags = [*TINY, f"--workdir={folder}", "--mode=sample", "--config.eval.num_samples=16",
             "--config.eval.batch_size=16", "--config.sampling.name=ddim", "--config.sampling.n_steps=3"]  # fmt: skip
    guided = [*flags, f"--config.guidance.classifier={runs['classifier'][0]}", "--config.guidance.classifier_scale=50",
              f"--config.guidance.bad={runs['bad'][0]}", "--config.guidance.scale=1.5"]  # fmt: skip
    assert main(guided) == 0
    with np.load(folder / "samples" / "7" / "samples" / "samples.npz", allow_pickle=False) as arrays:
        assert arrays["image"].shape == (16, 8, 8, 1)
        np.testing.assert_array_equal(arrays["label"], np.arange(16) % 10)
    capsys.readouterr()
    assert main(flags) == EXIT_USER_ERROR
    assert "guidance.bad" in capsys.readouterr().err
