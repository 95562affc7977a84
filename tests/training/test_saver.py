"""What a run saves, and where it goes on: the newest good state of both folders, and nothing that is not finite."""

import json
import shutil
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_flow import __version__
from score_flow.config.loading import load
from score_flow.errors import NonFinite, UserError
from score_flow.runs import manifest
from score_flow.runs.sharding import make_mesh, state_shardings, to_host
from score_flow.training import saver as saver_module
from score_flow.training.saver import Saver
from score_flow.training.steps import Metrics
from tests.launch import TINY
from tests.states import DAMAGE, files, make_state

METRICS = Metrics(jnp.zeros(1), jnp.zeros(1))
FLAGS = [*TINY[1:], "--config.training.snapshot_freq=20"]


class Flushed:
    """A recorder of which every step was finite, or not."""

    finite = True

    def flush(self):
        if not self.finite:
            raise NonFinite("step 7: loss nan")


class Run:
    """A run whose states are random numbers of their step."""

    def __init__(self, workdir, *flags, **options):
        self.config = load(TINY[0].split("=")[1], [*FLAGS, *flags])
        self.saver = Saver(workdir, self.config, lambda step, params: None, **options)
        self.saver.recorder = Flushed()

    def train(self, *steps):
        """Save what is due after each of these steps."""
        for step in steps:
            self.saver(step - 1, step, make_state(make_mesh(), step), METRICS)
        self.saver.meta.wait()
        self.saver.milestones.wait()
        return self

    def resume(self):
        """(step, state) that a run like this goes on from, its folders afterwards."""
        begin = make_state(make_mesh(), 0)
        shapes = jax.eval_shape(lambda: begin)
        step, state = self.saver.resume(self.config, lambda: begin, shapes, state_shardings(make_mesh(), begin))
        return step, state, (self.saver.meta.steps(), self.saver.milestones.steps())


def assert_is(state, step):
    for one, other in zip(jax.tree.leaves(to_host(state)), jax.tree.leaves(make_state(make_mesh(), step)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Resumable states 30 and 38 and the milestones 20 and 40 of a run."""
    folder = tmp_path_factory.mktemp("trained")
    run = Run(folder).train(10, 20, 30)
    run.saver.finish(38, make_state(make_mesh(), 38), milestone=False)
    run.saver.finish(40, make_state(make_mesh(), 40), milestone=True)
    run.saver.close()
    return folder


@pytest.fixture
def workdir(trained, tmp_path):
    """The same, to damage."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def hurt(workdir, *states):
    for state in states:
        folder, step = state.split("/")
        DAMAGE["zero page"](max(files(workdir / folder, step)[:-1], key=lambda path: path.stat().st_size))


M, C = "checkpoints-meta", "checkpoints"


@pytest.mark.parametrize(
    "damaged, step, left",
    [
        ((), 40, ([30, 38], [20, 40])),
        ((f"{C}/40",), 38, ([30, 38], [20])),
        ((f"{C}/20", f"{C}/40"), 38, ([30, 38], [20])),
        ((f"{C}/40", f"{M}/38"), 30, ([30], [20])),
        ((f"{C}/40", f"{M}/38", f"{M}/30"), 20, ([], [20])),
    ],
)
def test_the_newest_good_state_wins_wherever_it_is(workdir, capsys, damaged, step, left):
    hurt(workdir, *damaged)
    run = Run(workdir)
    found, state, folders = run.resume()
    run.saver.close()
    assert found == step and int(state.step) == step and folders == left
    assert_is(state, step)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == sum(1 for name in damaged if int(name.split("/")[1]) > step)
    assert all("is damaged" in line for line in said)


def test_without_a_good_state_nothing_is_begun_anew(workdir):
    hurt(workdir, f"{C}/40", f"{M}/38", f"{M}/30", f"{C}/20")
    before = sorted(workdir.rglob("*"))
    with pytest.raises(UserError, match="every checkpoint in .*checkpoints-meta and .*checkpoints is damaged") as error:
        Run(workdir).resume()
    assert "\n" not in str(error.value) and sorted(workdir.rglob("*")) == before


def test_a_damaged_state_at_the_step_of_a_good_one_is_written_again(workdir):
    run = Run(workdir, "--config.training.snapshot_freq=40")
    run.saver.finish(40, make_state(make_mesh(), 40), milestone=False)
    hurt(workdir, f"{C}/40")
    step, state, folders = run.resume()
    assert step == 40 and folders == ([38, 40], [20])
    run.saver.finish(40, state, milestone=True)
    assert run.saver.milestones.damage(40) is None
    run.saver.close()


def test_an_empty_workdir_begins(tmp_path):
    step, state, folders = Run(tmp_path).resume()
    assert step == 0 and folders == ([], [])
    assert_is(state, 0)


def test_another_config_is_refused_and_nothing_is_changed(workdir):
    hurt(workdir, f"{C}/40")
    before = sorted(workdir.rglob("*"))
    with pytest.raises(UserError, match=r"network\.width: 32 -> 48"):
        Run(workdir, "--config.network.width=48").resume()
    assert sorted(workdir.rglob("*")) == before


def test_a_checkpoint_says_its_step_its_config_and_its_data(tmp_path):
    run = Run(tmp_path, facts={"name": "digits/train", "n": 1500}).train(10, 20)
    for checkpoints, step in ((run.saver.meta, 10), (run.saver.milestones, 20)):
        meta = checkpoints.meta(step)
        assert meta["version"] == __version__
        assert meta["step"] == step and meta["data"] == {"name": "digits/train", "n": 1500}
        assert meta["config"]["network"]["width"] == 32 and meta["weights"] == {"raw": "raw", "ema": "ema"}
        assert checkpoints.damage(step) is None
    run.saver.close()


def test_a_checkpoint_of_a_program_that_said_no_version_is_gone_on_from(tmp_path):
    Run(tmp_path).train(20).saver.close()
    folder = tmp_path / "checkpoints"
    file = folder / "20" / manifest.META
    older = json.loads(file.read_text())
    del older["version"]
    file.write_text(json.dumps(older))
    manifest.path_of(folder, 20).write_text(json.dumps(manifest.hashes(folder / "20")))
    step, state, _ = Run(tmp_path).resume()
    assert step == 20
    assert_is(state, 20)


def test_nothing_is_saved_after_a_step_that_was_not_finite(tmp_path):
    run = Run(tmp_path).train(10)
    run.saver.recorder.finite = False
    with pytest.raises(NonFinite, match="step 7"):
        run.train(20)
    with pytest.raises(NonFinite, match="step 7"):
        run.saver.finish(25, make_state(make_mesh(), 25), milestone=False)
    run.saver.close()
    assert run.saver.meta.steps() == [10] and run.saver.milestones.steps() == []


def spoilt(state, name, value):
    """The state with one number of a part replaced."""
    leaves, structure = jax.tree.flatten(getattr(state, name))
    i = max(range(len(leaves)), key=lambda i: leaves[i].size * jnp.issubdtype(leaves[i].dtype, jnp.floating))
    leaves[i] = jax.device_put(leaves[i].at[(-1,) * leaves[i].ndim].set(value), leaves[i].sharding)
    return state.replace(**{name: jax.tree.unflatten(structure, leaves)})


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "name, said", [("params", "parameters"), ("ema", "averaged parameters"), ("opt_state", "optimiser's moments")]
)
def test_a_state_that_is_not_finite_is_not_saved(tmp_path, name, said, value):
    run = Run(tmp_path)
    bad = spoilt(make_state(make_mesh(fsdp=True), 10), name, value)
    with pytest.raises(NonFinite, match=f"after step 10 the {said} are not finite, though its loss is") as error:
        run.saver(9, 10, bad, METRICS)
    run.saver.close()
    assert "\n" not in str(error.value) and not any(tmp_path.rglob("*.manifest.json"))


def test_a_state_that_an_older_version_saved_not_finite_is_passed_over(tmp_path, capsys):
    run = Run(tmp_path).train(10, 20)
    bad = spoilt(make_state(make_mesh(), 30), "ema", np.nan)
    meta = run.saver.meta.meta(10) | {"step": 30}
    tree = {"params": bad.params, "ema": list(bad.ema)}
    train = {"opt_state": bad.opt_state, "time_state": bad.time_state, "step": bad.step}
    run.saver.meta.save(30, tree | {"train": train}, meta, wait=True)
    step, state, folders = run.resume()
    assert step == 20 and folders == ([10], [20])
    assert_is(state, 20)
    assert "checkpoints-meta/30 holds numbers that are not finite" in capsys.readouterr().out
    run.saver.close()


@pytest.fixture
def clock(monkeypatch):
    """The time, in minutes, as a saver sees it."""
    minutes = [0.0]
    monkeypatch.setattr(saver_module, "time", types.SimpleNamespace(monotonic=lambda: 60 * minutes[0]))
    return minutes


def by_the_clock(run, clock, minutes):
    """The steps that are saved when each takes so long."""
    for step in range(1, 11):
        run.saver.asked.ask()
        run.train(step)
        clock[0] += minutes
    return run.saver.meta.steps(), run.saver.milestones.steps()


@pytest.mark.parametrize(
    "limit, minutes, expected",
    [(15, 6, [7, 10]), (15, 0.5, []), (0, 1000, []), pytest.param(0.1, 1, [9, 10], marks=pytest.mark.slow)],
)
def test_a_state_is_saved_at_the_latest_so_many_minutes_after_the_last(tmp_path, clock, limit, minutes, expected):
    """A loop asks before its step; the newest two are kept."""
    flags = [f"--config.training.{name}=0" for name in ("snapshot_freq", "snapshot_freq_for_preemption")]
    run = Run(tmp_path, *flags, f"--config.training.save_minutes={limit}")
    assert by_the_clock(run, clock, minutes) == (expected, [])


def test_a_save_by_steps_begins_the_minutes_anew(tmp_path, clock):
    flags = ["--config.training.snapshot_freq=4", "--config.training.snapshot_freq_for_preemption=0"]
    run = Run(tmp_path, *flags, "--config.training.save_minutes=15")
    assert by_the_clock(run, clock, 4) == ([], [4, 8])


def test_the_clock_of_the_main_process_decides_and_asks_once(tmp_path, clock, monkeypatch):
    run = Run(tmp_path, "--config.training.save_minutes=15")
    clock[0] = 16
    assert [run.saver.due() for _ in range(3)] == [True, False, False]
    clock[0] = 32
    monkeypatch.setattr(saver_module, "is_main", lambda: False)
    assert not run.saver.due()
    run.saver.asked.answers["save"] = True  # by the main process
    assert run.train(3).saver.meta.steps() == [3]
