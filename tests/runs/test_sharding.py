"""What processes do together, and the layouts of arrays on their devices."""

import itertools
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from score_flow import build
from score_flow.errors import UserError
from score_flow.runs.sharding import arranged, group_size, make_mesh, multiple, replicated, state_shardings, whole
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


def test_large_leaves_are_split_by_rows_or_else_over_their_largest_axis_that_divides():
    mesh = make_mesh(fsdp=True)
    shapes = {"stacked": (8, 128), "blocks": (8, 16, 32)}
    shapes |= {"kernel": (16, 64), "wide": (64, 16), "odd": (33, 1024), "none": (33, 35), "bias": (64,), "count": ()}
    leaves = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    specs = {name: tuple(sharding.spec) for name, sharding in state_shardings(mesh, leaves).items()}
    split = {"kernel": ("fsdp",), "wide": ("fsdp",), "odd": (None, "fsdp")}
    split |= {"stacked": (None, "fsdp"), "blocks": (None, "fsdp")}
    assert specs == split | {"none": (), "bias": (), "count": ()}
    assert not any(tuple(leaf.spec) for leaf in jax.tree.leaves(state_shardings(make_mesh(), leaves)))


def test_groups_are_as_asked_and_divide_the_devices():
    assert [group_size(fsdp, 8) for fsdp in (False, 0, 1, 2, 4, 8, True)] == [1, 1, 1, 2, 4, 8, 8]
    assert [make_mesh(fsdp).shape["fsdp"] for fsdp in (False, 2, True)] == [1, 2, 8]
    assert make_mesh(True, jax.devices()[:4]).shape == {"data": 1, "fsdp": 4}
    for wrong in (3, 16):
        with pytest.raises(UserError, match=f"config.training.fsdp is {wrong}; .* the 8 devices; allowed: 1, 2, 4, 8"):
            make_mesh(wrong)
    # What was trained in groups is evaluated anywhere.
    assert build._mesh(3).shape == {"data": 8, "fsdp": 1}


def machine(platform: str, slices: int, nodes: int, devices: int) -> list[SimpleNamespace]:
    """Devices in an order that says nothing: nodes of a slice along y, two devices of a node along x."""
    places = itertools.product(range(slices), range(nodes), range(devices))
    made = [
        SimpleNamespace(
            platform=platform, device_kind="TPU v5 lite", id=i, slice_index=s, process_index=s * nodes + node,
            coords=[each % 2, node * (devices // 2) + each // 2, 0], core_on_chip=0,
        )
        for i, (s, node, each) in enumerate(places)
    ]  # fmt: skip
    return [made[i] for i in np.random.default_rng(0).permutation(len(made))]


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_a_group_lies_in_one_node_or_one_slice_where_it_fits(platform):
    """Two slices of two nodes of four devices: what a group gathers crosses neither the one nor the other."""
    devices = machine(platform, 2, 2, 4)
    for size, kind in ((2, "process_index"), (4, "process_index"), (8, "slice_index")):
        rows = arranged(devices, size)
        assert rows.shape == (16 // size, size) and {each.id for each in rows.flat} == set(range(16))
        assert all(len({getattr(each, kind) for each in row}) == 1 for row in rows)
    assert arranged(devices, 16).shape == (1, 16)


def test_what_is_split_is_made_whole_and_what_is_whole_is_not_copied():
    mesh = make_mesh(4)
    array = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    tree = jax.device_put({"x": array}, state_shardings(mesh, {"x": array}))
    assert not tree["x"].sharding.is_fully_replicated
    got = whole(mesh, tree)
    assert got["x"].sharding.is_equivalent_to(replicated(mesh), 2)
    np.testing.assert_array_equal(got["x"].addressable_shards[5].data, array)
    assert whole(mesh, got)["x"] is got["x"]
