"""Classifiers of noisy images: the loss, the accuracy, and runs from the command line."""

import json
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from main import EXIT_USER_ERROR, main
from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.errors import UserError
from score_flow.losses.base import Noising
from score_flow.losses.classifier import Classification
from score_flow.model import Model, Preconditioning
from score_flow.networks.classifier import NETWORKS as CLASSIFIERS
from score_flow.networks.classifier import WideResNet
from score_flow.numerics import expand
from score_flow.paths.vp import VP
from score_flow.process.prediction import PREDICTIONS
from score_flow.process.times import loss_second_moment, uniform
from tests.exact import MixtureDenoiser
from tests.launch import ROOT, environment
from tests.toy_losses import as_given

# Numbers, no array: jax 0.12 keeps a numpy constant of compiled functions in the precision that the first one ran in.
MEANS, STD = [[-0.8, 0.4], [0.7, -0.2], [0.1, 0.9]], 0.5


class Bayes(nn.Module):
    """Logits of the classes N(MEANS[k], STD^2 I) under VP noise, plus a bias to be learned."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, x, time, condition=None, *, deterministic=True):
        assert condition is None, "the label is the target"
        alpha, sigma = (expand(f(time), x) for f in (VP().alpha, VP().sigma))
        distance = jnp.sum((x[:, None] - alpha[..., None] * jnp.asarray(MEANS)) ** 2, axis=2)
        bias = self.param("bias", nn.initializers.zeros, (3,))
        return -0.5 * distance / ((alpha * STD) ** 2 + sigma**2) + bias


def classification(times=None):
    model = Model(Bayes(), VP(), PREDICTIONS["noise"], Preconditioning(time_scale=1.0))
    return Classification(model, Noising(as_given, times or uniform(VP(), 1e-3)))


def batch(n, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, n)
    x0 = np.array(MEANS)[label] + STD * rng.normal(size=(n, 2))
    return jnp.asarray(x0, jnp.float32), {"label": jnp.asarray(label)}


ZERO = {"bias": jnp.zeros(3)}


def test_the_loss_is_the_cross_entropy_of_the_label():
    loss, (x0, condition) = classification(), batch(8)
    noise, t = jnp.asarray(np.random.default_rng(1).normal(size=(8, 2)), jnp.float32), jnp.linspace(0.1, 1.0, 8)

    @jax.jit
    def both(x0, noise):
        x = loss.model.path.perturb(x0, noise, t)
        return Bayes().apply({"params": ZERO}, x, t), loss.at(ZERO, x0, noise, t, condition)

    logits, ours = both(x0, noise)
    logits = np.asarray(logits, np.float64)
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(8), condition["label"]]
    # A few roundings of logits, which cancel.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=16 * np.finfo(np.float32).eps * np.abs(logits).max())


def test_the_gradient_of_log_prob_is_the_difference_of_scores():
    """grad log p(y | x_t) = score(x_t | y) - score(x_t), in closed form for a mixture."""
    with jax.enable_x64(True):
        loss, rng = classification(), np.random.default_rng(2)
        x, t = jnp.asarray(rng.normal(size=(6, 2))), jnp.asarray(0.3)
        label = jnp.arange(6) % 3
        params = {"bias": jnp.zeros(3)}
        chosen = [MEANS, *([mean] for mean in MEANS)]  # all classes, and each

        @jax.jit
        def both(x):
            ours = jax.grad(lambda x: loss.log_prob(params, x, jnp.full(6, t), label).sum())(x)
            everything, *own = (MixtureDenoiser(VP(), jnp.asarray(means), STD).score(x, t) for means in chosen)
            return ours, jnp.stack(own)[label, jnp.arange(6)] - everything

        ours, expected = both(x)
        assert ours.dtype == jnp.float64
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e3 * np.finfo(float).eps)


def test_bayes_classifier_is_the_minimum():
    """The gradient there is zero within its standard error, and clearly not with another bias."""
    loss, n = classification(), 4096
    x0, condition = batch(n)

    def one(params, x, y, e, t):
        return loss.at(params, x[None], e[None], t[None], {"label": y[None]})[0]

    each = jax.jit(jax.vmap(jax.grad(one), in_axes=(None, 0, 0, 0, 0)))
    rng = np.random.default_rng(3)
    noise, t = rng.normal(size=(n, 2)).astype(np.float32), rng.uniform(1e-3, 1.0, n).astype(np.float32)
    for bias, far in ((ZERO["bias"], False), (jnp.asarray([0.5, 0.0, -0.5]), True)):
        gradients = np.asarray(each({"bias": bias}, x0, condition["label"], noise, t)["bias"])
        z = np.abs(gradients.mean(0)) / (gradients.std(0) / np.sqrt(n))
        assert (z.max() > 10) if far else (z.max() < 5)


def test_the_sampler_of_times_sees_the_losses():
    times = loss_second_moment(VP(), 1e-3, n=10, history=2)
    loss, (x0, condition) = classification(times), batch(8)
    value, aux = jax.jit(loss)(ZERO, times.init(), jax.random.key(0), {"image": x0} | condition)
    assert value == jnp.mean(aux.losses)
    before, after = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(s)]) for s in (times.init(), aux.time_state))
    assert not np.array_equal(before, after)


def test_recipes_build_the_published_network_and_a_small_one():
    model = experiment(load("configs/cifar10_classifier.py", [])).model
    assert isinstance(model.network, WideResNet)
    assert (model.network.blocks_per_group, model.network.channel_multiplier) == (4, 10)  # 28 = 6 x 4 + 4 layers
    run = experiment(load("configs/digits_classifier.py", []))
    assert run.model.network.num_classes == 10 and isinstance(run.loss, Classification)


@pytest.mark.parametrize("flag, words", [
    ("model.class_conditional=True", "config.model.class_conditional is True"),
    ("model.low_res=4", "config.model.low_res is 4"),
    ("training.snapshot_sampling=True", "config.training.snapshot_sampling is True"),
    ("network.name=sit", "'sit'; allowed: adm_classifier, classifier"),
    ("network.chanel_multiplier=2", "Did you mean 'channel_multiplier'?"),
    ("data.image_shape=(8,8,1)", "training.objective is classifier, but the data have no labels"),
])  # fmt: skip
def test_mistakes_are_one_line(flag, words):
    with pytest.raises(UserError) as error:
        experiment(load("configs/digits_classifier.py", [f"--config.{flag}"]))
    assert words in str(error.value) and "\n" not in str(error.value)


TINY = (
    *("--config=configs/digits_classifier.py", "--config.training.batch_size=16", "--config.training.n_iters=3"),
    *("--config.training.eval_freq=0", "--config.eval.batch_size=304"),
)


class Dense(nn.Module):
    """A classifier that compiles in no time."""

    num_classes: int = 0
    blocks_per_group: int = 1
    channel_multiplier: int = 1
    fourier_scale: float = 1.0

    @nn.compact
    def __call__(self, x, time, condition=None, *, deterministic=True):
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1)) + time[:, None]


def run(workdir, mode, *flags):
    return main([*TINY, f"--workdir={workdir}", f"--mode={mode}", *flags])


@pytest.mark.slow
def test_from_the_command_line(tmp_path, capsys, monkeypatch):
    """Training, loss, accuracy and report; neither samples nor a likelihood."""
    monkeypatch.setitem(CLASSIFIERS, "classifier", Dense)
    assert run(tmp_path, "train") == 0 and run(tmp_path, "eval") == 0
    assert not (tmp_path / "samples").exists()
    results = json.loads((tmp_path / "eval" / "3" / "results.json").read_text())
    assert results["loss"]["n_images"] == results["accuracy"]["n_images"] == 297
    accuracy = np.array(results["accuracy"]["accuracy_by_time"])
    np.testing.assert_allclose(accuracy * 297, np.round(accuracy * 297), atol=1e-9)
    np.testing.assert_allclose(results["accuracy"]["times"], np.linspace(1e-5, 1, 11))
    assert (tmp_path / "report.html").exists()
    for mode, flags, word in (
        ("sample", (), "samples"), ("eval", ("--config.eval.enable_bpd=True",), "likelihood"),
        ("eval", ("--config.eval.enable_sampling=True",), "samples, trajectory"),
    ):  # fmt: skip
        capsys.readouterr()
        assert run(tmp_path, mode, *flags) == EXIT_USER_ERROR
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        assert len(lines) == 1 and f"a classifier (training.objective = classifier) has no {word}" in lines[0]


def test_accuracy_of_a_model_of_images_is_refused():
    from evaluation.jobs.base import find, refuse_unfit

    run = experiment(load("configs/digits.py", ["--config.network.name=mlp"]))
    with pytest.raises(UserError, match="the job accuracy is a classifier's: config.training.objective must be cl"):
        refuse_unfit(run, {"accuracy": find("accuracy")})


@pytest.mark.slow
def test_the_recipe_reaches_its_accuracy(tmp_path):
    """More than 95 % of the test digits at t = 1e-5, and what guessing gives, a tenth, at t = 1."""
    for mode in ("train", "eval"):
        flags = ("--config=configs/digits_classifier.py", f"--workdir={tmp_path}", f"--mode={mode}")
        subprocess.run([sys.executable, "main.py", *flags], cwd=ROOT, env=environment(), check=True)
    accuracy = json.loads(next(tmp_path.glob("eval/*/accuracy/result.json")).read_text())["accuracy_by_time"]
    assert accuracy[0] > 0.95
    assert abs(accuracy[-1] - 0.1) < 5 * np.sqrt(0.1 * 0.9 / 297)
