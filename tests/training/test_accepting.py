"""Going on with other settings on purpose: what is accepted is said, kept and recorded; what cannot be says why."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.config.loading import load
from score_flow.errors import UserError
from score_flow.runs.sharding import make_mesh, state_shardings
from score_flow.training import history
from score_flow.training.accepting import accepted
from score_flow.training.optimiser import optimiser_of
from score_flow.training.restoring import restored
from score_flow.training.saver import Saver
from score_flow.training.steps import TrainState
from tests.launch import TINY
from tests.training.test_saver import Flushed

SHAPES = {"dense": {"kernel": np.zeros((16, 8), np.float32), "bias": np.zeros(8, np.float32)}}
N_ITERS = 40


def config_of(*flags):
    return load(TINY[0].split("=")[1], [*TINY[1:], *(f"--config.{flag}" for flag in flags)])


def accept(*names):
    return f"training.accept={names!r}"


def state_of(config, step, times=()):
    """A state of random numbers as this config lays it out; its counts are the step."""
    rng, n = np.random.default_rng(step), len(config.model.ema_rate) + len(config.model.ema_std)
    optimiser = optimiser_of(config.optim, N_ITERS)
    empty = TrainState(np.int32(step), SHAPES, (SHAPES,) * n, jax.eval_shape(optimiser.init, SHAPES), times)
    number = lambda leaf: rng.uniform(1, 2, leaf.shape) if np.issubdtype(leaf.dtype, np.floating) else step  # noqa: E731
    state = jax.tree.map(lambda leaf: np.asarray(number(leaf), leaf.dtype), empty)
    return jax.device_put(state, state_shardings(make_mesh(), state))


def saver_of(workdir, config, **options):
    saver = Saver(workdir, config, lambda step, params: None, **options)
    saver.recorder = Flushed()
    return saver


def resume(workdir, config, times=(), **options):
    """(step, state, saver) that a run of this config goes on from."""
    saver, begin = saver_of(workdir, config, **options), state_of(config, 0, times)
    shapes = jax.eval_shape(lambda: begin)
    step, state = saver.resume(config, lambda: begin, shapes, state_shardings(make_mesh(), begin))
    return step, state, saver


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with a state at step 10."""
    workdir = tmp_path_factory.mktemp("saved")
    config = config_of()
    saver = saver_of(workdir, config, facts={"name": "digits/train", "n": 1500, "first": "abc"})
    saver.finish(10, state_of(config, 10), milestone=True)
    saver.close()
    return workdir


def same(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one, other)


@pytest.mark.parametrize(
    "name, whole",
    [
        ("batch_size", "training.batch_size"), ("training.batch_size", "training.batch_size"), ("path", "path"),
        ("config.optim.lr", "optim.lr"), ("data", "data"), ("ema_rate", "model.ema_rate"), ("seed", "seed"),
        ("network.width", "network.width"), ("devices", "training.fsdp"),
    ],
)  # fmt: skip
def test_a_setting_is_named_by_its_last_word_too(name, whole):
    assert accepted(config_of(accept(name))) == (whole,)


@pytest.mark.parametrize(
    "name, said",
    [
        ("batch_siz", "Did you mean 'batch_size'?"),
        ("name", "give one of them"),
        ("bpd_dataset", "no setting of training"),
    ],
)
def test_what_is_no_setting_of_training_is_refused(name, said, tmp_path):
    with pytest.raises(UserError, match="config.training.accept names") as error:
        resume(tmp_path, config_of(accept(name)))
    assert said in str(error.value) and "\n" not in str(error.value) and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags, said",
    [
        (["training.batch_size=32"], "training.accept=('batch_size',)"),
        (["training.batch_size=32", "seed=1"], "training.accept=('seed', 'batch_size',)"),
        (["training.batch_size=32", "seed=1", accept("seed")], "training.accept=('batch_size',)"),
        (["path.name=gvp", accept("path")], "cannot be accepted, as path.name says what the weights mean"),
        (["model.prediction=noise", accept("prediction")], "model.prediction says what the weights mean"),
        (["optim.optimizer=AdamW"], "training.accept=('optimizer',)"),
        (["optim.optimizer=Muon"], "cannot be accepted, as the moments of Adam are none of Muon (a new run can begin"),
        (["optim.optimizer=Muon", accept("optimizer")], "the moments of Adam are none of Muon"),
    ],
)
def test_a_refusal_says_how_to_go_on(saved, flags, said):
    before = sorted(saved.rglob("*"))
    with pytest.raises(UserError) as error:
        resume(saved, config_of(*flags))
    assert said in str(error.value) and "\n" not in str(error.value)
    assert sorted(saved.rglob("*")) == before


def test_weights_of_other_shapes_cannot_be_accepted(saved, monkeypatch):
    """The network is another, and so are its arrays."""
    monkeypatch.setitem(SHAPES, "dense", {"kernel": np.zeros((16, 9), np.float32), "bias": np.zeros(9, np.float32)})
    with pytest.raises(UserError, match=r"network.width: 32 -> 9.* as dense.bias is \(8,\) there and \(9,\) here"):
        resume(saved, config_of("network.width=9", accept("network")))


def test_what_is_accepted_is_said_and_recorded(saved, tmp_path, capsys):
    """In the history of the run, of which every later state knows; what needs no acceptance too."""
    workdir = shutil.copytree(saved, tmp_path / "run")
    config = config_of("training.batch_size=32", "optim.lr=0.5", "training.log_freq=7", accept("batch_size", "seed"))
    _, state, saver = resume(workdir, config)
    same(state, state_of(config, 10))
    assert "from step 10 on: optim.lr: 0.002 -> 0.5; training.batch_size: 16 -> 32\n" in capsys.readouterr().out
    saver.finish(20, state_of(config, 20), milestone=True)
    meta = saver.milestones.meta(20)
    saver.close()
    assert meta["config"]["training"]["batch_size"] == 32 and meta["config"]["training"]["accept"] == []
    assert meta["history"] == history.read(workdir)
    assert history.told(meta["history"]) == {
        "optim.lr": "0.002 until step 10, 0.5 after", "training.batch_size": "16 until step 10, 32 after",
    }  # fmt: skip
    with pytest.raises(UserError, match="32 -> 64"):  # it was accepted once
        resume(workdir, config_of("training.batch_size=64"))
    _, _, saver = resume(workdir, config_of("training.batch_size=64", "optim.lr=0.5", accept("batch_size")))
    saver.close()
    told = history.told(history.read(workdir))
    assert told["training.batch_size"] == "16 until step 10, 32 until step 20, 64 after"


def test_other_data_are_accepted_by_name(saved, tmp_path):
    other = {"name": "other/train", "n": 9, "first": "xyz"}
    with pytest.raises(UserError, match=r"other data than other/train.*training.accept=\('data',\)"):
        resume(saved, config_of(), facts=other)
    workdir = shutil.copytree(saved, tmp_path / "run")
    resume(workdir, config_of(accept("data")), facts=other)[2].close()
    said = history.told(history.read(workdir))["data.source"]
    assert said == "digits/train (1500 images, abc) until step 10, other/train (9 images, xyz) after"


def test_averages_are_kept_by_their_rate(saved, capsys):
    old = state_of(config_of(), 10)
    config = config_of("model.ema_rate=(0.99,0.5,0.9)", accept("ema_rate"))
    _, state, saver = resume(saved, config)
    saver.close()
    same(state.ema, (old.ema[1], old.params, old.ema[0]))
    same((state.params, state.opt_state), (old.params, old.opt_state))
    assert state.ema[1]["dense"]["kernel"] is not state.params["dense"]["kernel"]  # both are donated
    assert "kept EMA 0.99, EMA 0.9; from the parameters of step 10 on EMA 0.5; dropped none" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"EMA power 0.1 is an average of all steps, and cannot begin at step 10"):
        resume(saved, config_of("model.ema_std=(0.1,)", accept("ema_std")))


@pytest.mark.parametrize("optimizer, schedule, warmup", [("Adam", "constant", 0), ("AdamW", "cosine", 5)])
def test_moments_and_counts_are_kept_in_another_layout(tmp_path, optimizer, schedule, warmup):
    """From each layout to each: Adam's moments under their names, every count that of the updates."""
    before = config_of(f"optim.optimizer={optimizer}", f"optim.schedule={schedule}", f"optim.warmup={warmup}")
    saver = saver_of(tmp_path, before)
    old = state_of(before, 10)
    saver.finish(10, old, milestone=True)
    moments = lambda state: [s for s in state.opt_state if hasattr(s, "mu")][0]  # noqa: E731, RUF015
    for name in ("Adam", "AdamW"):
        for flags in (("optim.schedule=constant", "optim.warmup=0"), ("optim.schedule=linear", "optim.warmup=3")):
            now = config_of(f"optim.optimizer={name}", *flags)
            begin = state_of(now, 0)
            shapes, shardings = jax.eval_shape(lambda b=begin: b), state_shardings(make_mesh(), begin)
            new = restored(saver.milestones, 10, lambda b=begin: b, shapes, shardings, now.model)
            same(moments(new), moments(old))
            counts = [int(leaf) for leaf in jax.tree.leaves(new.opt_state) if leaf.dtype == jnp.int32]
            assert counts == [10] * (2 if "linear" in flags[0] else 1)
            assert jax.tree.structure(new) == jax.tree.structure(begin)
    saver.close()


def test_another_optimiser_is_refused(saved):
    begin = state_of(config_of(), 0)
    begin = begin.replace(opt_state={"momentum": begin.params})
    shapes, shardings = jax.eval_shape(lambda: begin), state_shardings(make_mesh(), begin)
    with pytest.raises(
        UserError, match=r"of another optimiser \(this config needs opt_state.momentum.dense.bias and 1 "
    ):
        restored(saver_of(saved, config_of()).milestones, 10, lambda: begin, shapes, shardings, config_of().model)


def test_another_time_sampler_begins_anew(saved, capsys):
    config = config_of("training.time_sampler.name=stratified", accept("time_sampler"))
    _, state, saver = resume(saved, config, times={"losses": np.full(3, 7, np.float32)})
    saver.close()
    same(state.time_state, state_of(config, 0, {"losses": np.zeros(3, np.float32)}).time_state)
    same(state.opt_state, state_of(config_of(), 10).opt_state)
    assert "begins anew at step 10" in capsys.readouterr().out


def test_a_state_of_an_older_version_has_no_history(saved):
    assert history.of_state({"step": 3}) == {} and history.told({}) == {}
    facts = {"project": "sit", "file": "x.pt", "sha256": "ab" * 32, "holds": ["ema"]}
    imported = history.of_state({"step": 3, "imported": facts})
    assert history.told(imported) == {"began with": "ema of x.pt (sit) at step 3, sha256 abababababababab"}
