"""What processes do together, and the layouts of arrays on their devices."""

import subprocess
import sys

import jax
import numpy as np

from score_flow.runs.sharding import make_mesh, multiple, state_shardings
from tests.launch import ROOT, environment, finish, places

# Two processes of two devices each, one of which has something to say.
TOGETHER = """
import jax
import numpy as np
from score_flow.runs import processes, sharding

processes.initialise()
rank, mesh = jax.process_index(), sharding.make_mesh(fsdp=True)
assert (jax.process_count(), jax.device_count(), processes.is_main()) == (2, 4, rank == 0)
assert [processes.agree(rank == last) for last in (0, 1, 2)] == [True, True, False]
array = np.arange(24.0, dtype=np.float32).reshape(8, 3)
for split, rows in ((True, 2), (False, 8)):
    placed = sharding.place(mesh, array, split=split)
    assert [shard.data.shape for shard in placed.addressable_shards] == [(rows, 3)] * 2
    np.testing.assert_array_equal(sharding.to_host({"x": placed})["x"], array)
processes.barrier("end")
print("agreed")
"""


def test_two_processes_agree_and_hold_parts_of_one_array():
    command = [sys.executable, "-c", TOGETHER]
    options = dict(cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    processes = [subprocess.Popen(command, env=environment(2, **place), **options) for place in places(2)]
    assert [finish(process).splitlines()[-1] for process in processes] == ["agreed"] * 2


def test_a_batch_is_the_least_multiple_of_the_devices():
    mesh = make_mesh()
    assert [multiple(mesh, n) for n in (1, 7, 8, 9, 16, 17)] == [8, 8, 8, 16, 16, 24]


def test_large_leaves_are_split_over_their_largest_axis_that_divides():
    mesh = make_mesh(fsdp=True)
    shapes = {"kernel": (16, 64), "wide": (64, 16), "odd": (33, 1024), "none": (33, 35), "bias": (64,), "count": ()}
    leaves = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    specs = {name: tuple(sharding.spec) for name, sharding in state_shardings(mesh, leaves).items()}
    split = {"kernel": (None, "fsdp"), "wide": ("fsdp",), "odd": (None, "fsdp")}
    assert specs == split | {"none": (), "bias": (), "count": ()}
    assert not any(tuple(leaf.spec) for leaf in jax.tree.leaves(state_shardings(make_mesh(), leaves)))
