"""Checkpoints: what is read back is what was written, on any layout, or it is refused by name."""

import concurrent.futures
import errno
import os
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_flow import __version__
from score_flow.errors import UserError
from score_flow.runs import checkpoint, manifest
from score_flow.runs.checkpoint import Checkpoints, good_states, target
from score_flow.runs.sharding import make_mesh, replicated, state_shardings, to_host
from tests.states import DAMAGE, files, items, make_state, write


def assert_equal(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("fsdp", [False, True])
def test_a_state_comes_back_bitwise_on_another_layout(written, fsdp):
    directory, states = written
    checkpoints = Checkpoints(directory)
    assert checkpoints.steps() == [5, 10] and checkpoints.newest_good() == 10
    mesh = make_mesh(fsdp)
    for step, state in states.items():
        shardings = state_shardings(mesh, state)
        wanted = items(target(jax.eval_shape(lambda state=state: state), shardings))
        restored = checkpoints.restore(step, wanted)
        assert jax.tree.structure(restored) == jax.tree.structure(items(state))
        assert_equal(to_host(restored), to_host(items(state)))
        assert [leaf.sharding for leaf in jax.tree.leaves(restored)] == [s.sharding for s in jax.tree.leaves(wanted)]
        assert checkpoints.meta(step) == {"version": __version__, "step": step, "name": f"é{step}"}
        alone = checkpoints.restore(step, {"ema": wanted["ema"]})  # all that an evaluation reads
        assert_equal(to_host(alone), to_host({"ema": list(state.ema)}))
    checkpoints.close()


def test_saving_in_the_background_survives_the_donation_of_the_state(tmp_path):
    checkpoints, mesh = Checkpoints(tmp_path), make_mesh()
    state, twin = make_state(mesh, 0), make_state(mesh, 0)
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    checkpoints.save(3, items(state), {})
    for _ in range(3):
        state = jax.block_until_ready(step(state))
    checkpoints.wait()
    restored = checkpoints.restore(3, items(target(twin, state_shardings(mesh, twin))))
    assert_equal(to_host(restored), to_host(items(twin)))
    checkpoints.close()


def test_a_save_is_committed_in_the_background(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"params": {"w": jnp.arange(3)}}, {})
    checkpoints._pending.result()
    checkpoints.poll()
    assert checkpoints.steps() == [1] and checkpoints.damage(1) is None
    checkpoints.save(1, {"params": {"w": jnp.zeros(3)}}, {}, wait=True)  # is there already: left alone
    restored = checkpoints.restore(1, {"params": {"w": jnp.zeros(3, int)}})
    np.testing.assert_array_equal(restored["params"]["w"], np.arange(3))
    checkpoints.close()


def test_only_the_newest_are_kept(tmp_path):
    write(tmp_path, 1, 2, 3, 5, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "3.manifest.json", "5", "5.manifest.json"]


def test_steps_of_a_lost_segment_are_removed(copied):
    checkpoints = Checkpoints(copied)
    checkpoints.delete_after(5)
    assert checkpoints.steps() == [5] and not (copied / "10").exists()
    checkpoints.save(10, {"params": {"w": jnp.arange(3)}}, {}, wait=True)  # and written again
    assert checkpoints.newest_good() == 10
    checkpoints.close()


def test_what_a_kill_left_behind_is_removed(copied):
    shutil.copytree(copied / "10", copied / "15")
    shutil.copytree(copied / "10", copied / "20.orbax-checkpoint-tmp-1234")
    (copied / "notes").mkdir()
    checkpoints = Checkpoints(copied)
    checkpoints.prepare()
    assert checkpoints.steps() == [5, 10] and checkpoints.newest_good() == 10
    left = {path.name for path in copied.iterdir()}
    assert left == {"5", "10", "5.manifest.json", "10.manifest.json", "notes"}
    checkpoints.save(15, {"params": {"w": jnp.arange(3)}}, {}, wait=True)
    assert checkpoints.newest_good() == 15
    checkpoints.close()


def test_the_newest_undamaged_step_is_used(copied, capsys):
    DAMAGE["zero page"](max(files(copied, 10), key=lambda path: path.stat().st_size))
    checkpoints = Checkpoints(copied)
    assert checkpoints.newest_good() == 5
    said = capsys.readouterr().out
    assert str(copied / "10") in said and "damaged" in said and said.count("\n") == 1
    DAMAGE["truncated"](copied / "5.manifest.json")
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged") as error:
        checkpoints.newest_good()
    assert "\n" not in str(error.value)
    checkpoints.close()
    assert Checkpoints(copied.parent / "none").newest_good() is None


def test_another_shape_or_name_is_refused_by_name(written):
    directory, states = written
    layout = replicated(make_mesh())

    def wanted(state, width=32):
        def shape(leaf):
            sizes = tuple(width if size == 32 else size for size in leaf.shape)
            return jax.ShapeDtypeStruct(sizes, leaf.dtype, sharding=layout)

        return items(jax.tree.map(shape, state))

    good, narrow = wanted(states[10]), wanted(states[10], width=24)
    cases = {
        r"params\.dense\.bias is \(32,\) there and \(24,\) here": {"params": narrow["params"]},
        r"train\.opt_state\.2\.mu\.dense\.bias is \(32,\) there and \(24,\) here": {"train": narrow["train"]},
        r"ema\.1\.dense\.bias is \(32,\) there and absent here": {"ema": good["ema"][:1]},
        r"params\.more is absent there and \(2,\) here": {
            "params": good["params"] | {"more": jax.ShapeDtypeStruct((2,), jnp.float32, sharding=layout)}
        },
        "it has no weights": {"weights": good["params"]},
    }
    checkpoints = Checkpoints(directory)
    for message, ask in cases.items():
        with pytest.raises(UserError, match=f"checkpoint {directory / '10'} does not hold .*: {message}") as error:
            checkpoints.restore(10, ask)
        assert "\n" not in str(error.value)
    checkpoints.close()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*file/checkpoints: Not a directory") as error:
        Checkpoints(tmp_path / "file" / "checkpoints").prepare()
    assert "\n" not in str(error.value)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
MOMENTS = ("begins", "in another language", "in the background", "unheard", "half", "hashing", "in place")


def in_background(then, otherwise):
    """`then` where a save is committed; orbax calls the same elsewhere too."""
    return lambda: then() if threading.current_thread().name.startswith("manifest") else otherwise()


def break_at(moment, checkpoints, monkeypatch):
    """Let the disk be full at a moment of the next save."""

    def full(*arguments, **options):
        raise FULL

    def full_elsewhere():
        raise ValueError("RESOURCE_EXHAUSTED: writing x: No space left on device [source locations='a.cc:1']")

    def half(then=None):
        """Orbax writes some of it, and goes on as if all was well; or says what it met."""
        wait()
        victim = next((checkpoints.directory / "15").rglob("params/_METADATA"))
        victim.unlink()
        if then:
            then()

    def nothing():
        wait()
        shutil.rmtree(checkpoints.directory / "15")

    wait = checkpoints._orbax.wait_until_finished
    at = {"begins": (checkpoints._orbax, "save", full), "hashing": (manifest, "hashes", full)}
    at |= {"in place": (os, "replace", full)}
    ends = {
        "in another language": lambda: half(full_elsewhere),
        "in the background": lambda: half(full),
        "unheard": nothing,
        "half": half,
    }
    if moment in ends:
        at[moment] = (checkpoints._orbax, "wait_until_finished", in_background(ends[moment], wait))
    monkeypatch.setattr(*at[moment])


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_save_that_fails_leaves_the_older_states_and_nothing_else(copied, monkeypatch, moment):
    before = {path.relative_to(copied): path.is_file() and path.read_bytes() for path in copied.rglob("*")}
    checkpoints = Checkpoints(copied, keep=1)
    tree = {"params": {"w": jnp.zeros(300_000)}}
    break_at(moment, checkpoints, monkeypatch)
    with pytest.raises(UserError, match=r"cannot write .*/15: ") as error:
        checkpoints.save(15, tree, {}, wait=True)
    monkeypatch.undo()
    assert "\n" not in str(error.value)
    after = {path.relative_to(copied): path.is_file() and path.read_bytes() for path in copied.rglob("*")}
    assert after == before
    checkpoints.save(20, tree, {}, wait=True)  # there is space again
    assert checkpoints.steps() == [20] and checkpoints.newest_good() == 20
    checkpoints.close()


def test_what_still_writes_of_a_failed_save_is_waited_for(copied, monkeypatch):
    """Orbax goes on with other items when one has failed: what they make is removed too."""
    checkpoints = Checkpoints(copied)

    class Writer(threading.Thread):
        def run(self):
            time.sleep(0.3)
            (copied / "15.orbax-checkpoint-tmp").mkdir()

        def join(self, timeout=None):
            super().join(timeout)
            raise FULL

    Writer.__module__ = "orbax.writing"

    def begun(*arguments, **options):
        Writer().start()
        raise FULL

    monkeypatch.setattr(checkpoints._orbax, "save", begun)
    with pytest.raises(UserError, match="cannot write .*/15: No space left"):
        checkpoints.save(15, {"params": {"w": jnp.ones(2)}}, {})
    assert not list(copied.glob("15*"))


def test_a_failed_save_is_said_once_and_by_whichever_call_comes_next(copied, monkeypatch):
    checkpoints = Checkpoints(copied)
    break_at("in the background", checkpoints, monkeypatch)
    for call in (checkpoints.poll, checkpoints.wait, lambda: checkpoints.save(25, {"x": {"w": jnp.ones(2)}}, {})):
        checkpoints.save(15, {"params": {"w": jnp.ones(2)}}, {})
        concurrent.futures.wait([checkpoints._pending])
        with pytest.raises(UserError, match="cannot write .*/15: No space left"):
            call()
    checkpoints.close()
    assert checkpoints.steps() == [5, 10]


def test_no_manifest_before_everything_else_is_whole_and_on_the_disk(tmp_path, monkeypatch):
    """The order of a commit: orbax is done, each file is flushed, the manifest is put in place, the old one goes."""
    write(tmp_path, 1)
    checkpoints, done = Checkpoints(tmp_path, keep=1), []
    wait, replace, sync, remove = checkpoints._orbax.wait_until_finished, os.replace, checkpoint.sync, shutil.rmtree

    def finished():
        time.sleep(0.2)
        assert checkpoints.steps() == [1]
        wait()
        done.append("saved")

    def put(one, other):
        done.append("manifest")
        replace(one, other)

    def flushed(path):
        done.append(path)
        sync(path)

    def removed(path, **options):
        assert checkpoints.steps() == [2], "its manifest goes first, and only when the newer state is there"
        done.append("removed")
        remove(path, **options)

    monkeypatch.setattr(checkpoints._orbax, "wait_until_finished", in_background(finished, wait))
    checkpoints.save(2, {"params": {"w": jnp.arange(3)}}, {})
    monkeypatch.setattr(os, "replace", put)
    monkeypatch.setattr(checkpoint, "sync", flushed)
    monkeypatch.setattr(shutil, "rmtree", removed)
    checkpoints.wait()
    monkeypatch.undo()
    assert [what for what in done if isinstance(what, str)] == ["saved", "manifest", "removed"]
    whole = set((tmp_path / "2").rglob("*")) | {tmp_path / "2", tmp_path}
    assert set(done[1 : done.index("manifest")]) == whole
    checkpoints.close()


def test_names_that_are_no_steps_are_left_alone(copied):
    for name in ("copy.manifest.json", "._10.manifest.json", "10.manifest.json.bak", "x10.manifest.json"):
        (copied / name).write_text("{}")
    checkpoints = Checkpoints(copied)
    checkpoints.prepare()
    assert checkpoints.steps() == [5, 10] and (copied / "._10.manifest.json").exists()


def test_one_list_of_all_states(tmp_path, capsys):
    """Whatever is damaged, and wherever: the newest of what is left, and a line for each that is passed over."""
    folders = [Checkpoints(tmp_path / name, keep=0) for name in ("meta", "milestones")]
    for step, folder in ((10, 1), (20, 1), (25, 0), (28, 0)):
        folders[folder].save(step, {"params": {"w": jnp.full(3, step)}}, {}, wait=True)
    assert [step for _, step in good_states(*folders)] == [28, 25, 20, 10]
    assert next(good_states(*folders, first=(folders[1], 20)))[1] == 20
    assert not capsys.readouterr().out
    for n, (step, folder, left) in enumerate([(28, 0, 25), (20, 1, 25), (25, 0, 10)], 1):
        (folders[folder].directory / f"{step}.manifest.json").write_text("{}")
        assert next(good_states(*folders))[1] == left
        said = capsys.readouterr().out.splitlines()
        assert all("is damaged" in line and "falling back" in line for line in said)
        assert len(said) == (1, 1, 3)[n - 1]
    DAMAGE["truncated"](tmp_path / "milestones" / "10" / "meta" / "metadata")
    with pytest.raises(UserError, match=r"every checkpoint in .*/meta and .*/milestones is damaged") as error:
        next(good_states(*folders))
    assert "\n" not in str(error.value)
    assert [step for _, step in good_states(Checkpoints(tmp_path / "none"))] == []


def test_opening_writes_nothing(copied):
    shutil.copytree(copied / "10", copied / "15")
    before = sorted(copied.rglob("*"))
    checkpoints = Checkpoints(copied)
    assert checkpoints.newest_good() == 10
    checkpoints.close()
    Checkpoints(copied.parent / "none").close()
    assert sorted(copied.rglob("*")) == before and not (copied.parent / "none").exists()


def test_a_file_in_the_place_of_checkpoints_is_refused(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match="is a file, where checkpoints belong"):
        Checkpoints(tmp_path / "checkpoints")
