"""A state split over the devices: parameters travel, activations do not, and nothing else changes."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from evaluation.plan.program import collectives, read
from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.data.pipeline import Batches
from score_flow.networks.blocks import devices
from score_flow.runs.sharding import batch_sharding, make_mesh, state_shardings
from score_flow.training.run import initial_state, program_of

BATCH = 56  # on eight devices 7: no size of a parameter is either
FLAGS = (f"--config.training.batch_size={BATCH}", "--config.optim.warmup=0")
UNET = ("width=32", "channel_mult=(1,2)", "num_res_blocks=1", "attention_resolutions=(4,)")
NETWORKS = {
    "sit": ("width=64", "depth=3", "num_heads=2"),
    "dit": ("width=64", "depth=5", "num_heads=2", "register_tokens=3", "context_start=2"),
    "ncsnpp": (*UNET, "embedding='fourier'", "fir=True", "progressive_input='residual'"),
    "adm": UNET,
    "edm2": (*UNET, "head_channels=32"),
}
ROUNDING = 16 * np.finfo("float32").eps  # sums over parts are in another order, three steps in a row
EVERY = ["sit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dit", "ncsnpp", "adm", "edm2"))]


class Program:
    """The compiled step of a small network on some devices, in groups of `fsdp`."""

    def __init__(self, name: str, fsdp: bool | int, n_devices: int = 8, k: int = 1, width: int | None = None):
        network = [f"--config.network.{setting}" for setting in (f"name={name}", *NETWORKS[name])]
        network += [f"--config.network.width={width}"] if width else []
        self.config = load("configs/digits.py", [*FLAGS, *network])
        mesh = make_mesh(fsdp, jax.devices()[:n_devices])
        self.run = dataclasses.replace(experiment(self.config), mesh=mesh)
        source, init = self.run.train_source, functools.partial(initial_state, self.run, 1)
        first = source.read(np.arange(1))
        shardings = state_shardings(mesh, jax.eval_shape(init, self.run.loss, first))
        self.state = jax.jit(init, out_shardings=shardings)(self.run.loss, first)
        program = program_of(self.run, self.config, shardings)
        self.batches = Batches(source, BATCH, seed=0, sharding=batch_sharding(mesh, leading=1))
        self.compiled = program.func.lower(*program.args, self.state, self.batches(0, k)).compile()
        self.held = program.args

    def losses(self, n: int) -> np.ndarray:
        """The losses and gradient norms of the first n steps."""
        rows = []
        for step in range(n):
            self.state, metrics = self.compiled(*self.held, self.state, self.batches(step, 1))
            rows.append(np.concatenate(metrics))
        self.batches.close()
        return np.array(rows)


@functools.cache
def alone(name: str) -> np.ndarray:
    return Program(name, False, 1).losses(3)


def assert_parameters_alone_travel(program: Program) -> None:
    """No collective has the size of a batch, global or of a device, among its sizes."""
    sent = collectives(read(program.compiled.as_text()))
    local = BATCH // program.run.mesh.size
    sizes = {size for each in sent for shape in each.shapes for size in shape.sizes}
    assert {"all-gather", "all-reduce"} <= {each.kind for each in sent}
    assert not sizes & {BATCH, local} and not {each.kind for each in sent} & {"all-to-all", "collective-permute"}


@pytest.mark.parametrize("name", EVERY)
def test_parameters_travel_and_activations_do_not(name):
    """In groups of four, and the losses are those of one device."""
    program = Program(name, 4)
    assert_parameters_alone_travel(program)
    split = [leaf for leaf in jax.tree.leaves(program.state.params) if not leaf.sharding.is_fully_replicated]
    assert sum(leaf.size for leaf in split) > 0.9 * sum(leaf.size for leaf in jax.tree.leaves(program.state.params))
    np.testing.assert_allclose(program.losses(3), alone(name), rtol=ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_mesh_has_the_losses_of_one_device(name, fsdp):
    program = Program(name, fsdp)
    if fsdp:
        assert_parameters_alone_travel(program)
    np.testing.assert_allclose(program.losses(3), alone(name), rtol=ROUNDING)


@pytest.mark.slow
def test_five_steps_in_a_loop_hold_one_state(monkeypatch):
    """In the loop that other platforms than a CPU get; five batches aside, one step needs as much."""
    monkeypatch.setattr(devices, "platform", lambda: "tpu")
    peaks = []
    for k in (1, 5):
        program = Program("sit", False, k=k, width=128)
        used, batches = program.compiled.memory_analysis(), program.batches(0, k)
        program.batches.close()
        mine = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(batches))
        peaks.append(used.argument_size_in_bytes + used.temp_size_in_bytes - mine)
    assert peaks[1] <= 1.02 * peaks[0]
