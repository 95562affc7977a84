"""The place of a process among the others, as the environment says it: what is complete, and what is refused."""

import os
import subprocess
import sys

import pytest

from score_flow.errors import UserError
from score_flow.runs import launchers
from score_flow.runs.launchers import (
    ALONE,
    COUNTS,
    PLACE,
    gpus,
    launch_of,
    place_of,
    refuse_unjoined,
    share,
    tasks_here,
)
from tests.launch import ROOT
from tests.runs.test_processes import gke, openmpi, slices, slurm

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


def method(environment):
    launch = launch_of(environment)
    return launch and launch.arguments["cluster_detection_method"]


def test_what_is_given_comes_before_openmpi_and_openmpi_before_slurm():
    everything = slurm(1) | openmpi(1)
    assert method(everything | given(*GOOD)) == "deactivate"
    assert method(everything) == "ompi"
    assert method(slurm(1)) == "slurm"
    assert launch_of(given(*GOOD)).arguments["local_device_ids"] == []
    assert launch_of(given(*GOOD) | {"JAX_LOCAL_DEVICE_IDS": "0,1"}).arguments["local_device_ids"] is None


@pytest.mark.parametrize("launcher", [slurm, openmpi, lambda i: given(*GOOD)])
def test_alone_means_alone(launcher):
    assert launch_of(launcher(1) | {ALONE: "1"}) is None
    refuse_unjoined(launcher(1) | {ALONE: "1"})
    assert launch_of(launcher(1) | {ALONE: "0"})
    with pytest.raises(UserError, match=f"{ALONE} is 'yes'; allowed: 1"):
        launch_of({ALONE: "yes"})


SLURM = [name for name in slurm(0) if name not in ("SLURM_NODEID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_NTASKS")]
OPENMPI = ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"]


@pytest.mark.parametrize(
    "launcher, missing",
    [(slurm, name) for name in SLURM if name != "SLURM_STEP_NODELIST"] + [(openmpi, name) for name in OPENMPI],
)
def test_half_of_a_launchers_variables_are_refused_in_one_line(launcher, missing):
    with pytest.raises(UserError, match=f"missing: {missing}\\.$") as error:
        launch_of({name: value for name, value in launcher(0).items() if name != missing})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "environment, name",
    [
        (slurm(0) | {"SLURM_PROCID": "2"}, "SLURM_PROCID"),
        (slurm(0) | {"SLURM_NTASKS": "two"}, "SLURM_NTASKS"),
        (openmpi(0) | {"OMPI_COMM_WORLD_RANK": "-1"}, "OMPI_COMM_WORLD_RANK"),
        (openmpi(0) | {"OMPI_COMM_WORLD_SIZE": ""}, "OMPI_COMM_WORLD_SIZE"),
    ],
)
def test_a_number_out_of_range_is_refused(environment, name):
    with pytest.raises(UserError, match=f"^{name} is .*; allowed: an integer from "):
        launch_of(environment)


def test_openmpi_5_needs_mpi4py_or_an_address(monkeypatch):
    """It no longer says where it runs."""
    environment = {name: value for name, value in openmpi(0).items() if "uri" not in name}
    monkeypatch.setattr(launchers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install mpi4py, or give each process JAX_COORDINATOR_ADDRESS"):
        launch_of(environment)
    monkeypatch.setattr(launchers, "find_spec", lambda name: name)
    assert method(environment) == "mpi4py"


@pytest.fixture
def tpu(monkeypatch):
    """A machine that jax takes for one of Cloud TPU."""
    from jax._src import cloud_tpu_init
    from jax._src.clusters import cloud_tpu_cluster

    for module in (cloud_tpu_init, cloud_tpu_cluster):
        monkeypatch.setattr(module, "running_in_cloud_tpu_vm", True)

    def at(environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return launch_of(environment)

    return at


@pytest.mark.parametrize(
    "environment, said",
    [
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "missing: TPU_WORKER_ID"),
        (gke(2), "TPU_WORKER_ID is '2'; allowed: an integer from 0 to 1"),
        ({k: v for k, v in slices(0).items() if k != "MEGASCALE_SLICE_ID"}, "missing: MEGASCALE_SLICE_ID"),
        (slices(2), "MEGASCALE_SLICE_ID is '2'"),
    ],
)
def test_half_a_slice_is_refused(tpu, environment, said):
    with pytest.raises(UserError, match=said):
        tpu(environment)


def test_a_tpu_whose_metadata_server_does_not_answer_is_refused(tpu, monkeypatch):
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    with pytest.raises(UserError, match=f"its hosts cannot be found .*{ALONE}=1 for a TPU of one host"):
        tpu({"GCE_METADATA_IP": "127.0.0.1:1"})


@pytest.mark.parametrize("name", [*COUNTS, "TPU_WORKER_HOSTNAMES"])
def test_a_launcher_that_is_seen_and_not_joined_is_refused(name):
    """As a batch script of SLURM without srun, torchrun, or a TPU with a jax for the CPU."""
    one, two = ("a", "a,b") if name == "TPU_WORKER_HOSTNAMES" else ("1", "2")
    refuse_unjoined({name: one})
    with pytest.raises(UserError, match=f"^by {name} this is one of 2 processes, .*{ALONE}=1") as error:
        refuse_unjoined({name: two})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, node, n", [("2", 0, 2), ("4(x3),2", 2, 4), ("4(x3),2", 3, 2), ("4,2", 1, 2), ("", 0, 1)]
)
def test_tasks_of_a_node(text, node, n):
    assert tasks_here({"SLURM_STEP_TASKS_PER_NODE": text, "SLURM_NODEID": str(node)}) == n


def test_gpus_that_all_tasks_see_are_shared_and_those_that_are_given_are_all_used():
    assert share(8, 1, 0) == []  # all that the process sees
    assert [share(8, 8, i) for i in range(8)] == [[i] for i in range(8)]
    assert [share(8, 2, i) for i in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert share(1, 4, 3) == share(0, 4, 3) == []  # a GPU each, or none
    assert gpus({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_GPUS_ON_NODE": "4"}) == 4
    assert gpus({"CUDA_VISIBLE_DEVICES": "2,3", "SLURM_GPUS_ON_NODE": "4"}) == 0  # by --gpus-per-task
    assert gpus({"CUDA_VISIBLE_DEVICES": ""}) == 0
    four = {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_GPUS_ON_NODE": "4"}
    assert launch_of(slurm(1) | four).arguments["local_device_ids"] == [2, 3]
    assert launch_of(openmpi(1) | four).arguments["local_device_ids"] == [2, 3]
