"""Checkpoints: what is read back is what was written, on any layout, or it is refused by name."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.checkpoint import Checkpoints, target
from score_flow.sharding import make_mesh, replicated, state_shardings, to_host
from score_flow.training import TrainState, make_optimiser
from score_flow.types import UserError
from tests.test_training import ADAM

RNG = np.random.default_rng(0)


def make_state(mesh, seed):
    """A training state of random numbers, laid out on a mesh."""
    rng = np.random.default_rng(seed)
    params = {"dense": {"kernel": np.zeros((32, 64)), "bias": np.zeros(32)}, "scale": np.zeros(())}
    params = jax.tree.map(np.float32, params)
    optimiser = make_optimiser("Adam", **ADAM | {"warmup": 3, "grad_clip": 1.0})
    shapes = TrainState(np.int32(0), params, (params, params), jax.eval_shape(optimiser.init, params), ())
    state = jax.tree.map(lambda leaf: (100 * rng.normal(size=leaf.shape)).astype(leaf.dtype), shapes)
    return jax.device_put(state.replace(step=np.int32(seed)), state_shardings(mesh, state))


def items(state):
    rest = {"opt_state": state.opt_state, "time_state": state.time_state, "step": state.step}
    return {"params": state.params, "ema": list(state.ema), "train": rest}


def write(directory, *steps, keep=0):
    """A folder with these steps, each of its own state; returns the states."""
    checkpoints, states = Checkpoints(directory, keep), {}
    for step in steps:
        states[step] = make_state(make_mesh(), step)
        checkpoints.save(step, items(states[step]), {"step": step, "name": f"é{step}"}, wait=True)
    checkpoints.close()
    return states


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("written") / "checkpoints"
    return directory, write(directory, 5, 10)


@pytest.fixture
def copied(written, tmp_path):
    """The folder, to damage."""
    directory, _ = written
    shutil.copytree(directory, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


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
        assert checkpoints.meta(step) == {"step": step, "name": f"é{step}"}
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


def files(directory, step):
    """Every file of a checkpoint, its manifest last."""
    found = sorted(path for path in (directory / str(step)).rglob("*") if path.is_file())
    return [*found, directory / f"{step}.manifest.json"]


def test_no_flipped_bit_is_silent(copied):
    """200 random bits, each byte of the checkpoint equally likely."""
    checkpoints, paths = Checkpoints(copied), files(copied, 10)
    sizes = np.array([path.stat().st_size for path in paths])
    silent = []
    for path in [paths[i] for i in RNG.choice(len(paths), 200, p=sizes / sizes.sum())]:
        whole = path.read_bytes()
        data = bytearray(whole)
        place, bit = int(RNG.integers(len(data))), int(RNG.integers(8))
        data[place] ^= 1 << bit
        path.write_bytes(data)
        if checkpoints.damage(10) is None:
            silent.append((path.name, place, bit))
        path.write_bytes(whole)
    assert not silent
    assert checkpoints.damage(10) is None
    checkpoints.close()


DAMAGE = {
    "flip": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "zero page": lambda path: path.write_bytes(bytes(min(4096, path.stat().st_size)) + path.read_bytes()[4096:]),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_every_kind_of_damage_to_any_file_is_found(copied, kind):
    checkpoints = Checkpoints(copied)
    # Without its manifest a checkpoint does not exist.
    for path in files(copied, 10)[: -1 if kind == "missing" else None]:
        whole = path.read_bytes()
        DAMAGE[kind](path)
        problem = checkpoints.damage(10)
        assert problem and path.name in problem, path
        path.write_bytes(whole)
    (copied / "10" / "more").write_text("")
    assert "more" in checkpoints.damage(10)
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
