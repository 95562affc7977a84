"""The place of a process among the others, as the environment says it, and what processes do together."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from score_flow.runs.processes import PLACE, place_of
from score_flow.runs.sharding import make_mesh, multiple, state_shardings
from score_flow.types import UserError
from tests.launch import ROOT, environment, finish, places

GOOD = ("localhost:12345", "2", "1")


def given(*values):
    return dict(zip(PLACE, values, strict=True))


@pytest.mark.parametrize("address", ["localhost:1", "10.0.0.7:65535", "[::1]:8476", "node-3.cluster.local:8476"])
def test_a_place_is_an_address_a_number_of_processes_and_ones_own(address):
    assert place_of(given(address, "3", " 2 ")) == (address, 3, 2)
    assert place_of(given(address, "1", "0")) == (address, 1, 0)


def test_without_any_variable_a_process_is_on_its_own():
    assert place_of({"PATH": "/bin", "JAX_PLATFORMS": "cpu"}) is None


@pytest.mark.parametrize("missing", PLACE)
def test_a_missing_variable_is_named(missing):
    values = given(*GOOD)
    del values[missing]
    with pytest.raises(UserError, match=f"missing: {missing}\\.$"):
        place_of(values)


NUMBERS = ["", " ", "two", "-1", "+1", "1.0", "1e0", "1_0", "0x1", "१", "99999999999"]
WRONG = [(PLACE[1], value) for value in [*NUMBERS, "0"]] + [(PLACE[2], value) for value in [*NUMBERS, "2", "5"]]
WRONG += [(PLACE[0], value) for value in ["", "localhost", "localhost:", ":12345", "localhost:port", "localhost:0"]]
WRONG += [(PLACE[0], value) for value in ["localhost:70000", "http://localhost:80", "two hosts:80", "::1:80"]]


@pytest.mark.parametrize("name, value", WRONG)
def test_a_wrong_value_is_refused_in_one_line_that_names_it(name, value):
    with pytest.raises(UserError, match=f"^{name} is .*; allowed: ") as error:
        place_of(given(*GOOD) | {name: value})
    assert repr(value) in str(error.value) and "\n" not in str(error.value)


def test_a_run_is_refused_before_it_writes(tmp_path):
    command = [sys.executable, "main.py", "--config=configs/digits.py", f"--workdir={tmp_path / 'run'}", "--mode=train"]
    place = os.environ | given(*GOOD[:2], "5")
    run = subprocess.run(command, cwd=ROOT, env=place, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.strip() == "error: JAX_PROCESS_ID is '5'; allowed: an integer from 0 to 1."
    assert not (tmp_path / "run").exists()


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
