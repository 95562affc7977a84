"""What every loss is: a tree that training takes as it is, and whose weights no program holds."""

import ast
import dataclasses
from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from score_flow.build import experiment
from score_flow.config import registries
from score_flow.config.loading import load
from score_flow.data.pipeline import indices
from score_flow.errors import UserError
from score_flow.losses.base import Aux, Loss
from score_flow.networks.classifier import NETWORKS as CLASSIFIERS
from score_flow.process.times import TimeSampler, uniform
from score_flow.runs.progress import read_lines
from score_flow.runs.sharding import state_shardings
from score_flow.training.dequantiser import dequantisation
from score_flow.training.run import train
from score_flow.training.steps import init_state, make_train_steps
from score_flow.tree import static
from tests.discover import thinned
from tests.launch import ROOT, TINY, losses

CHAIN = (
    *("path.name=vp", "model.learn_sigma=True", "data.uniform_dequantization=False"),
    "training.time_sampler.name=grid",
)
FLAGS = {  # of each loss, what it needs
    "simple": (),
    "vlb": CHAIN,
    "hybrid": CHAIN,
    "flow_map": ("model.span=True",),
    "classifier": ("network.name=classifier", "network.blocks_per_group=1", "network.channel_multiplier=1"),
}


def settings(*flags, objective="simple"):
    wanted = {flag.partition("=")[0] for flag in FLAGS.get(objective, ())}
    tiny = [flag for flag in TINY[1:] if not ("network.name" in wanted and ".network." in flag)]
    flags = (f"training.objective={objective}", *FLAGS.get(objective, ()), *flags)
    return load("configs/digits.py", [*tiny, *(f"--config.{flag}" for flag in flags)])


class Flow(nn.Module):
    """A flow of one number on the unit cube, for networks that take minutes to compile."""

    @nn.compact
    def __call__(self, x, noise, *, deterministic=True):
        power = jnp.exp(self.param("log_power", nn.initializers.zeros, ()))
        u = jax.scipy.special.ndtr(noise)
        return u**power, -jnp.sum(jnp.log(power) + (power - 1) * jnp.log(u), axis=(1, 2, 3))


class Logits(nn.Module):
    """A classifier that compiles in no time."""

    num_classes: int = 0
    blocks_per_group: int = 1
    channel_multiplier: int = 1

    @nn.compact
    def __call__(self, x, time, condition=None, *, deterministic=True):
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1)) + time[:, None]


def built(objective):
    config = settings(objective="simple" if objective == "dequantiser" else objective)
    run = experiment(config)
    if objective == "dequantiser":
        return dequantisation(run, config, run.init(jax.random.key(1))).replace(network=Flow())
    return run.loss


@flax.struct.dataclass
class Distance:
    """(mean of an image's levels - scale x target)^2: a loss that no file of the project knows."""

    target: Array  # held fixed
    times: TimeSampler = static()
    network: nn.Module = static()
    produces: ClassVar[str] = "denoiser"

    def init(self, key, batch):
        return {"scale": jnp.mean(batch["image"].astype(jnp.float32))}

    def __call__(self, params, time_state, key, batch, *, train=True):
        means = batch["image"].astype(jnp.float32).mean(axis=(1, 2, 3))
        each = (means - params["scale"] * self.target[0]) ** 2
        return each.mean(), Aux(each, jnp.zeros(len(means)), time_state)


def test_a_loss_of_ten_lines_is_trained(tmp_path):
    """It begins with the first batch and sees the batch of every step: losses and gradients in closed form."""
    config = settings("training.n_iters=3", "training.eval_freq=3", "optim.warmup=0", "optim.lr=0.25")
    run = experiment(config)
    loss = Distance(jnp.asarray([0.5, 7.0]), uniform(run.model.path, 0.1), run.loss.network)
    train(dataclasses.replace(run, loss=loss), config, tmp_path, lambda step, params: None)
    source, got = run.train_source, losses(tmp_path)
    first, second = (
        source.read(indices(len(source), 16, seed=run.seed, step=i))["image"].mean(axis=(1, 2, 3)) for i in (0, 1)
    )
    error = first - 0.5 * first.mean()
    np.testing.assert_allclose(got[1], [(error**2).mean(), error.mean()], rtol=1e-5)
    error = second - 0.5 * (first.mean() + 0.25)  # Adam's first step is its rate, against the gradient
    np.testing.assert_allclose(got[2], [(error**2).mean(), error.mean()], rtol=1e-5)
    assert sorted(got) == [1, 2, 3] and "test_loss" in (tmp_path / "metrics.jsonl").read_text()
    assert [row["lr"] for row in read_lines(tmp_path / "metrics.jsonl") if "lr" in row] == [0.25] * 3


def test_weights_of_a_loss_are_arguments_of_the_program():
    """Of the lowered program no constant is as large as they are; other weights need no new program."""
    run = experiment(settings())
    target = jnp.asarray(np.random.default_rng(0).normal(size=4099), jnp.float32)
    loss = Distance(target, run.loss.times, run.loss.network)
    state = init_state({"scale": jnp.ones(())}, loss, run.optimiser, n_ema=1)
    steps = make_train_steps(
        loss,
        run.optimiser,
        ema_rates=(0.9,),
        ema_warmup=False,
        seed=0,
        mesh=run.mesh,
        shardings=state_shardings(run.mesh, state),
    )
    batch = {"image": np.ones((1, 16, 8, 8, 1), np.uint8)}
    text = steps.func.lower(*steps.args, state, batch).as_text()
    assert "tensor<4099xf32>" in text
    assert not [line for line in text.splitlines() if "constant" in line and "4099x" in line]
    first, second = (
        steps.func(other, None, jax.tree.map(jnp.copy, state), batch)[1].loss[0]
        for other in (loss, loss.replace(target=target + 1.0))
    )
    assert abs(first - (1 - target[0]) ** 2) < 1e-6 and abs(second - target[0] ** 2) < 1e-6
    assert steps.func._cache_size() == 1


@pytest.mark.parametrize("objective", thinned([*registries.LOSSES.names(), "dequantiser"], 2))
def test_every_loss_keeps_the_protocol(objective, monkeypatch):
    """A tree that says what it produces, begins with parameters, and is the mean of its losses, by the key alone."""
    monkeypatch.setitem(CLASSIFIERS, "classifier", Logits)
    loss = built(objective)
    assert isinstance(loss, Loss) and isinstance(loss.network, nn.Module)
    assert bool(jax.tree.leaves(loss)) == (objective == "dequantiser")  # the others hold nothing fixed
    assert loss.produces == {"classifier": "classifier", "dequantiser": "dequantiser"}.get(objective, "denoiser")
    batch = {"image": jnp.asarray(np.random.default_rng(0).integers(0, 17, (4, 8, 8, 1)), jnp.uint8)}
    batch["label"] = jnp.arange(4, dtype=jnp.int32)
    params = jax.jit(loss.init)(jax.random.key(0, impl="rbg"), batch)
    evaluate = jax.jit(lambda loss, key: loss(params, loss.times.init(), key, batch, train=False))
    value, aux = evaluate(loss, jax.random.key(0))
    assert value.shape == () and aux.losses.shape == aux.t.shape == (4,)
    np.testing.assert_allclose(value, np.mean(aux.losses), rtol=1e-6)
    assert value == evaluate(loss, jax.random.key(0))[0] != evaluate(loss, jax.random.key(1))[0]


def test_no_code_asks_what_class_a_loss_is():
    """A new loss would have to be added there."""
    names = {"Denoising", "ChainBound", "Hybrid", "Classification", "Dequantisation", "Loss"}
    found = []
    for path in [p for folder in ("score_flow", "sampling", "evaluation") for p in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass", "type"):
                words = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
                words |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
                found += [f"{path.name}:{node.lineno}"] if words & names else []
    assert not found


@pytest.mark.parametrize("flags, words", [
    (("training.likelihood_weighting=True",), "is True, but config.training.weighting is 'velocity': give one of them"),
    (("training.min_snr_gamma=3.",), "config.training.min_snr_gamma is 3.0, which training.weighting = velocity has"),
    (("training.vlb_weight=0.1",), "config.training.vlb_weight is 0.1, which training.objective = simple has no use"),
    (("training.decoder=exact",), "config.training.decoder is 'exact', which training.objective = simple has no use"),
    ((*CHAIN, "training.objective=vlb", "training.vlb_weight=0.1"), "leave it at 0.001"),
    (("training.label_dropout=0.1",), "config.model.class_conditional is False: there are no labels to hide"),
    (("training.importance_weighting=True",), "config.training.time_sampler.name is 'stratified': give one of them"),
    (("model.low_res=4",), "config.model.low_res is 4, which the network mlp cannot do"),
    (("model.low_res=4",), "networks that have: adm."),
    ((*CHAIN, "training.objective=vlb", "training.coupling=ot"), "config.training.coupling is 'ot'"),
    ((*CHAIN, "training.objective=hybrid", "training.coupling=ot"), "hybrid has no use for: leave it at 'independent'"),
    ((*CHAIN, "training.objective=vlb", "training.likelihood_weighting=True"), "vlb has no use for: leave it at False"),
])  # fmt: skip
def test_options_that_nothing_would_heed_are_refused(flags, words):
    with pytest.raises(UserError) as error:
        experiment(settings(*flags))
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("flag, words", [
    ("training.label_dropout=0.1", "config.training.label_dropout is 0.1, which training.objective = classifier"),
    ("training.coupling=ot", "config.training.coupling is 'ot'"),
    ("model.learn_sigma=True", "config.model.learn_sigma is True, which the network classifier cannot do"),
    ("model.low_res=4", "config.model.low_res is 4"),
    ("training.snapshot_sampling=True", "makes a classifier, which has no samples"),
])  # fmt: skip
def test_a_classifier_is_asked_for_nothing_else(flag, words):
    with pytest.raises(UserError) as error:
        experiment(settings(flag, objective="classifier"))
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow
def test_two_names_of_one_thing_agree():
    """likelihood_weighting beside weighting = likelihood; importance_weighting beside time_sampler = log_snr."""
    same = [
        ("training.weighting=likelihood", "training.time_sampler.name=log_snr"),
        ("training.weighting=simple", "training.likelihood_weighting=True", "training.time_sampler.name=uniform",
         "training.importance_weighting=True"),
        ("training.weighting=likelihood", "training.likelihood_weighting=True", "training.time_sampler.name=log_snr",
         "training.importance_weighting=True"),
    ]  # fmt: skip
    found = [experiment(settings(*flags, "training.largest_time=.999")).loss for flags in same]
    assert len({loss.weighting for loss in found}) == 1
    for loss in found:
        t, importance = loss.times.sample((), jax.random.key(0), 4)
        assert np.ptp(np.asarray(importance)) > 0
        np.testing.assert_array_equal(t, found[0].times.sample((), jax.random.key(0), 4)[0])
