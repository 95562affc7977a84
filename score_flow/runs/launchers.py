"""Who started this process together with others, and what jax needs to join them: facts of the environment alone.

The first of these that speaks decides: the three JAX_* variables, OpenMPI, SLURM, a slice of TPUs. A launcher that
started several processes and is not joined is refused: each would train alone, on the same workdir.
"""

import glob
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple

from score_flow.errors import UserError
from score_flow.runs.files import first_line

PLACE = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")  # of a process among the others
ALONE = "SCORE_FLOW_ALONE"
OPENMPI = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
OPENMPI_ADDRESS = "OMPI_MCA_orte_hnp_uri"  # until OpenMPI 4
SLURM = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID", "SLURM_STEP_NODELIST")
SLURM_STEP = "SLURM_STEP_NODELIST"  # set by srun alone: a batch script and salloc's shell have the others
SLICES = ("MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID", "MEGASCALE_COORDINATOR_ADDRESS")
HOSTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")  # of a slice, as GKE gives them

# The variable in which a launcher says how many processes it started, and what joins them.
COUNTS = {
    "OMPI_COMM_WORLD_SIZE": "OpenMPI's mpirun",
    "SLURM_NTASKS": "srun python main.py ..., which makes a step of the job",
    "MEGASCALE_NUM_SLICES": 'a jax that sees the TPUs (pip install "jax[tpu]")',
    "SKYPILOT_NUM_NODES": f"{', '.join(PLACE)}, as in launch/skypilot.yaml",
    "PMI_SIZE": f"{', '.join(PLACE)}",
    "WORLD_SIZE": f"{', '.join(PLACE)} (a process drives all GPUs of its node, without torchrun)",
}


class Launch(NamedTuple):
    """How a process joins the others: by whom it was started, and the arguments of jax.distributed.initialize."""

    name: str
    arguments: dict[str, Any]


def launch_of(environment: Mapping[str, str]) -> Launch | None:
    """Find who started this process; None for a process on its own.

    Raises UserError where what a launcher says is incomplete or out of range.
    """
    if alone(environment):
        return None
    if place := place_of(environment):
        return Launch("as given", _placed(place, environment))
    return _openmpi(environment) or _slurm(environment) or _tpu(environment)


def alone(environment: Mapping[str, str]) -> bool:
    """Say whether a person wants one process, whatever started it."""
    if (given := environment.get(ALONE, "0")) not in ("", "0", "1"):
        raise UserError(f"{ALONE} is {given!r}; allowed: 1 (one process, whatever started it) and 0.")
    return given == "1"


def place_of(environment: Mapping[str, str]) -> tuple[str, int, int] | None:
    """(address of process 0, number of processes, own number) by JAX_* variables; None where there is none of them.

    Raises UserError where a variable is missing, empty or out of range.
    """
    if not _complete("a run of several processes", environment, PLACE):
        return None
    address = environment[PLACE[0]]
    port = re.fullmatch(r"(?:\[[\da-fA-F:.]+\]|[^\s:/]+):(\d{1,5})", address.strip(), re.ASCII)
    if not port or not 1 <= int(port[1]) <= 65535:
        raise UserError(f"{PLACE[0]} is {address!r}; allowed: HOST:PORT of process 0, a port being 1 to 65535.")
    count = _integer(environment, PLACE[1], 1, None)
    return address.strip(), count, _integer(environment, PLACE[2], 0, count - 1)


def refuse_unjoined(environment: Mapping[str, str]) -> None:
    """Raise UserError when a launcher started several processes and this one has joined none of them."""
    if alone(environment):
        return
    seen = {name: _integer(environment, name, 0, None) for name in COUNTS if environment.get(name, "").strip()}
    if hosts := _hosts(environment):
        seen[hosts] = environment[hosts].count(",") + 1
    for name, count in seen.items():
        if count > 1:
            raise UserError(
                f"by {name} this is one of {count} processes, but it has joined no other one: they are joined by "
                f"{COUNTS.get(name, COUNTS[SLICES[0]])}; set {ALONE}=1 if it is to be alone."
            )


def _openmpi(environment: Mapping[str, str]) -> Launch | None:
    count = OPENMPI[0]
    if count not in environment or _integer(environment, count, 1, None) == 1:
        return None
    _complete("OpenMPI", environment, OPENMPI[:3])
    local = _integer(environment, OPENMPI[2], 0, None)
    _integer(environment, OPENMPI[1], 0, int(environment[count]) - 1)
    method = "ompi" if OPENMPI_ADDRESS in environment else "mpi4py"
    if method == "mpi4py" and find_spec(method) is None:
        raise UserError(
            "OpenMPI 5 does not say where process 0 is: pip install mpi4py, or give each process "
            f"{PLACE[0]}=HOST:PORT of it, {PLACE[1]}=${count} and {PLACE[2]}=${OPENMPI[1]}."
        )
    here = _integer(environment, OPENMPI[3], 1, None) if OPENMPI[3] in environment else 1
    return Launch("openmpi", _detected(method, environment, share(gpus(environment), here, local)))


def _slurm(environment: Mapping[str, str]) -> Launch | None:
    if SLURM_STEP not in environment or SLURM[0] not in environment or _integer(environment, SLURM[0], 1, None) == 1:
        return None
    _complete("SLURM", environment, SLURM)
    local = _integer(environment, SLURM[2], 0, None)
    _integer(environment, SLURM[1], 0, int(environment[SLURM[0]]) - 1)
    return Launch("slurm", _detected("slurm", environment, share(gpus(environment), tasks_here(environment), local)))


def _tpu(environment: Mapping[str, str]) -> Launch | None:
    """Ask GKE's variables, then the metadata server, as jax does, and join where there is more than one host."""
    from jax._src import cloud_tpu_init, clusters

    if not cloud_tpu_init.running_in_cloud_tpu_vm:
        return None
    if hosts := _hosts(environment):
        _complete("a TPU slice", environment, (hosts, "TPU_WORKER_ID"))
        _integer(environment, "TPU_WORKER_ID", 0, environment[hosts].count(","))
        if _complete("a run on several slices", environment, SLICES):
            _integer(environment, SLICES[1], 0, _integer(environment, SLICES[0], 1, None) - 1)
    try:
        cluster = next((c for c in (clusters.GkeTpuCluster, clusters.GceTpuCluster) if c.is_env_present()), None)
        if cluster is None or (count := cluster.get_process_count()) == 1:
            return None
        index = cluster.get_process_id()
        address = cluster.get_coordinator_address(300, environment.get("JAX_COORDINATOR_PORT"))
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise UserError(
            f"this is a TPU, and its hosts cannot be found ({type(error).__name__}: {first_line(error)}): "
            f"set {', '.join(PLACE)}, or {ALONE}=1 for a TPU of one host."
        ) from error
    if not 0 <= index < count:
        raise UserError(f"this is process {index} of a TPU of {count} processes: allowed are 0 to {count - 1}.")
    return Launch("tpu", _placed((address, count, index), environment))


def _placed(place: tuple[str, int, int], environment: Mapping[str, str]) -> dict[str, Any]:
    names = ("coordinator_address", "num_processes", "process_id")
    return dict(zip(names, place, strict=True)) | _detected("deactivate", environment, [])


def _detected(method: str, environment: Mapping[str, str], devices: list[int]) -> dict[str, Any]:
    """The arguments by which jax finds the others by a method, and which local devices are ours ([] for all)."""
    ids = None if environment.get("JAX_LOCAL_DEVICE_IDS") else devices  # None: jax reads the variable
    return {"cluster_detection_method": method, "local_device_ids": ids}


def share(n_gpus: int, tasks: int, local: int) -> list[int]:
    """Give the GPUs of the task `local` among those of a node which all see the same; [] where they see their own."""
    each = n_gpus // tasks
    return list(range(local * each, (local + 1) * each)) if tasks > 1 and n_gpus > 1 else []


def gpus(environment: Mapping[str, str]) -> int:
    """Count the NVIDIA GPUs that this process and the other tasks of its node see; 0 where SLURM gave each its own."""
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    n = len(glob.glob("/dev/nvidia[0-9]*")) if listed is None else len([id for id in listed.split(",") if id.strip()])
    node = environment.get("SLURM_GPUS_ON_NODE", "")
    return 0 if node.isdecimal() and n < int(node) else n


def tasks_here(environment: Mapping[str, str]) -> int:
    """Count the tasks of this node: 2 of "4,2" or "4(x3),2" by SLURM_NODEID; 1 where SLURM does not say."""
    text, node = environment.get("SLURM_STEP_TASKS_PER_NODE", ""), environment.get("SLURM_NODEID", "")
    each = [int(n) for n, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text) for _ in range(int(times or 1))]
    return each[int(node)] if node.isdecimal() and int(node) < len(each) else 1


def _hosts(environment: Mapping[str, str]) -> str | None:
    """The name of the variable that lists the hosts of a slice of TPUs."""
    return next((name for name in HOSTS if environment.get(name)), None)


def _complete(what: str, environment: Mapping[str, str], names: tuple[str, ...]) -> bool:
    """Say whether variables that belong together are there; raises UserError where only some are."""
    missing = [name for name in names if name not in environment]
    if missing and len(missing) < len(names):
        raise UserError(f"{what} needs {', '.join(names)}; missing: {', '.join(missing)}.")
    return not missing


def _integer(environment: Mapping[str, str], name: str, least: int, most: int | None) -> int:
    """Return the integer that a variable holds."""
    text = environment[name].strip()
    value = int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else -1
    if value < least or (most is not None and value > most):
        allowed = f"an integer from {least} on" if most is None else f"an integer from {least} to {most}"
        raise UserError(f"{name} is {environment[name]!r}; allowed: {allowed}.")
    return value
