"""States of training, written as checkpoints, and what can happen to their files."""

import jax
import numpy as np

from score_flow.runs.checkpoint import Checkpoints
from score_flow.runs.sharding import make_mesh, state_shardings
from score_flow.training.optimiser import make_optimiser
from score_flow.training.steps import TrainState
from tests.training.test_training import ADAM


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


def files(directory, step):
    """Every file of a checkpoint, its manifest last."""
    found = sorted(path for path in (directory / str(step)).rglob("*") if path.is_file())
    return [*found, directory / f"{step}.manifest.json"]


DAMAGE = {
    "flip": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "zero page": lambda path: path.write_bytes(bytes(min(4096, path.stat().st_size)) + path.read_bytes()[4096:]),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "missing": lambda path: path.unlink(),
}
