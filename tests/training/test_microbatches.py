"""Slices of a batch give the losses, the gradients, the times and hence the parameters of the batch, in less memory."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from score_flow.build import experiment
from score_flow.config import registries
from score_flow.config.loading import load
from score_flow.errors import UserError
from score_flow.losses.simple import Denoising
from score_flow.networks.blocks import devices
from score_flow.networks.classifier import NETWORKS as CLASSIFIERS
from score_flow.process.times import TIME_SAMPLERS
from score_flow.runs import memory
from score_flow.runs.sharding import make_mesh, state_shardings, to_host
from score_flow.training.ema import n_averages
from score_flow.training.gradients import check_microbatches
from score_flow.training.run import initial_state, program_of, train
from tests.losses.test_losses import CHAIN, Distance, Logits, built, settings
from tests.training.test_training import distance

B, STEPS = 32, 3
ADAPTIVE = ("training.time_sampler.n=4", "training.time_sampler.history=2")  # it adapts from the second step on
LEARNT = ("training.time_sampler.name=loss_second_moment", *ADAPTIVE)
SIT = ("name=sit", "width=32", "depth=2", "num_heads=2")
UNET = ("name=adm", "width=32", "channel_mult=(1,2)", "num_res_blocks=1", "attention_resolutions=(4,)")


def flags_of(objective):
    """What draws all that can be drawn: labels that are dropped, augmentations, couplings, learnt times."""
    if objective == "simple":
        return (*LEARNT, "model.class_conditional=True", "training.label_dropout=.3", "data.augment=.3",
                "training.coupling=ot")  # fmt: skip
    return LEARNT if "training.time_sampler.name=grid" in CHAIN and objective in ("vlb", "hybrid") else ()


class Trained:
    """A run of a loss on some devices: losses and gradient norms of a few steps, and the state after them."""

    def __init__(self, n, n_devices, fsdp, objective="simple", flags=()):
        known = "simple" if objective == "dequantiser" else objective
        config = settings(*flags, f"training.batch_size={B}", f"training.microbatches={n}", objective=known)
        mesh = make_mesh(fsdp, jax.devices()[:n_devices])
        run = dataclasses.replace(experiment(config), mesh=mesh)
        run = dataclasses.replace(run, loss=built(objective) if objective == "dequantiser" else run.loss)
        init = functools.partial(initial_state, run, n_averages(config.model))
        batch = run.train_source.read(np.arange(STEPS * B))
        first = {name: x[:B] for name, x in batch.items()}
        layout = state_shardings(mesh, jax.eval_shape(init, run.loss, first))
        state = jax.jit(init, out_shardings=layout)(run.loss, first)
        program = program_of(run, config, layout)
        batches = {name: x.reshape(STEPS, 1, B, *x.shape[1:]) for name, x in batch.items()}
        rows = []
        for step in range(STEPS):
            state, metrics = program(state, {name: x[step] for name, x in batches.items()})
            rows.append(np.concatenate(metrics))
        self.rows, self.state = np.array(rows), to_host(state)


def assert_same(one, other, norms=1e-6):
    """To 1e-6: losses and what the time sampler learnt; to `norms`: sizes of gradients, and so parameters."""
    np.testing.assert_allclose(one.rows[:, 0], other.rows[:, 0], rtol=1e-6)
    np.testing.assert_allclose(one.rows[:, 1], other.rows[:, 1], rtol=norms)
    assert distance(one.state.params, other.state.params) <= norms  # Adam divides by the gradient's size
    assert len(set(other.rows[:, 0])) == STEPS
    if jax.tree.leaves(other.state.time_state):
        assert distance(one.state.time_state, other.state.time_state) <= 1e-6
        assert np.ravel(other.state.time_state.counts).sum() == STEPS * B


def test_slices_are_the_batch():
    """On eight devices, the state split over them, with labels that are dropped and times that are learnt."""
    flags = (*LEARNT, "model.class_conditional=True", "training.label_dropout=.3")
    assert_same(Trained(2, 8, True, flags=flags), Trained(1, 1, False, flags=flags))


@pytest.mark.slow
@pytest.mark.parametrize("objective", [*registries.LOSSES.names(), "dequantiser"])
def test_every_loss_on_every_mesh(objective, monkeypatch):
    """On one device, on eight, and on eight in groups of one and of two with the state split."""
    monkeypatch.setitem(CLASSIFIERS, "classifier", Logits)
    flags = flags_of(objective)
    whole = Trained(1, 1, False, objective, flags)
    for n, n_devices, fsdp in ((4, 1, False), (32, 1, False), (2, 8, False), (4, 8, True), (2, 8, 4)):
        # The gradient of a dequantiser is a difference of larger terms: float32 knows it to 3e-5 (float64 to 5e-15).
        norms = 1e-4 if objective == "dequantiser" else 1e-6
        assert_same(Trained(n, n_devices, fsdp, objective, flags), whole, norms)


@pytest.mark.slow
def test_every_time_sampler_that_learns():
    """By the losses of the whole batch, in its order."""
    path, learning = experiment(settings()).model.path, []
    for name, make in TIME_SAMPLERS.items():
        learning += [name] if jax.tree.leaves(make(path, t_min=1e-3, t_max=0.999).init()) else []
    assert "loss_second_moment" in learning
    for name in learning:
        flags = (f"training.time_sampler.name={name}", *(ADAPTIVE if name == "loss_second_moment" else ()))
        whole = Trained(1, 1, False, flags=flags)
        assert jax.tree.leaves(whole.state.time_state)
        for n_devices, fsdp in ((1, False), (8, True)):
            assert_same(Trained(4, n_devices, fsdp, flags=flags), whole)


@pytest.mark.slow
def test_dropout_alone_differs():
    """Each slice has masks of its own: other gradients, by little."""
    flags = ("network.dropout=.5",)
    one, other = (Trained(n, 1, False, flags=flags) for n in (1, 4))
    assert 1e-5 < abs(other.rows[-1, 1] / one.rows[-1, 1] - 1) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("network", [SIT, UNET], ids=["sit", "adm"])
def test_memory_falls(network, monkeypatch):
    """In the loop that other platforms than a CPU get: four slices take less than half of what the whole batch does."""
    monkeypatch.setattr(devices, "platform", lambda: "tpu")
    needs, given = [], []
    for n in (1, 4):
        flags = [f"--config.network.{each}" for each in network]
        training = [f"--config.training.batch_size={8 * B}", f"--config.training.microbatches={n}"]
        config = load("configs/digits.py", [*flags, *training])
        run = dataclasses.replace(experiment(config), mesh=make_mesh(False, jax.devices()[:1]))
        first = run.train_source.read(np.arange(8 * B))
        state = jax.eval_shape(functools.partial(initial_state, run, n_averages(config.model)), run.loss, first)
        batch = {name: jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for name, x in first.items()}
        needs.append(memory.needed_by(program_of(run, config, state_shardings(run.mesh, state)), state, batch))
        given.append(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)))
    print([f"{need / 1e6:.1f} MB" for need in needs], f"{given[0] / 1e6:.1f} MB of them the state")
    assert needs[1] - given[1] < 0.5 * (needs[0] - given[0])


class OfItsOwn(Denoising):
    """A loss of examples whose value is not their mean."""

    def __call__(self, *args, **kwargs):
        value, aux = super().__call__(*args, **kwargs)
        return value**2, aux


def test_what_cannot_be_sliced_is_refused(tmp_path):
    """Before anything is written: a loss of a batch, or with a value of its own; numbers that do not divide."""
    run = experiment(settings())
    fields = {f.name: getattr(run.loss, f.name) for f in dataclasses.fields(run.loss)}
    for loss in (Distance(np.ones(2), run.loss.times, run.loss.network), OfItsOwn(**fields)):
        check_microbatches(1, loss, B, 8)
        with pytest.raises(UserError, match=r"^config.training.microbatches is 2, and \w+ has .* allowed: 1\.$"):
            check_microbatches(2, loss, B, 8)
    config = settings("training.batch_size=48", "training.microbatches=4")
    with pytest.raises(UserError, match=r"microbatches is 4; .* divide the 6 examples .* allowed: 1, 2, 3, 6\.$"):
        train(run, config, tmp_path / "run", lambda step, params: None)
    assert not (tmp_path / "run").exists()
