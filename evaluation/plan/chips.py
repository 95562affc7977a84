"""Chips and the machines made of them, which need not be here: what is published of a chip, and devices to compile for.

jax asks a plug-in's compiler for devices by a topology: no such device is opened, and none of this machine is needed.
"""

import os
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

from score_flow.errors import UserError, nearest
from score_flow.runs.files import first_line

GIB = 2**30
HERE = "here"
NODE = 8  # GPUs that NVLink joins; more of them are several nodes
SHARE = "XLA_PYTHON_CLIENT_MEM_FRACTION"  # jax's variable: the share of a GPU's memory that a process takes
DEFAULT_SHARE = 0.75


class Chip(NamedTuple):
    """What is published of a chip, one device of jax.

    memory: bytes that a program may use (of a GPU all, of which jax takes a share); kinds: how jax may call it.
    """

    peak: float  # dense bfloat16 FLOP/s
    memory: int
    bandwidth: float  # bytes/s between the chip and its memory
    kinds: tuple[str, ...]
    axes: int = 1  # of a topology


class GPU(NamedTuple):
    """What XLA's compiler asks of a GPU in whose absence it compiles."""

    capability: int
    cores: int
    fpus_per_core: int
    shared_per_core: int
    l2: int
    clock_ghz: float


# Peak and bandwidth: cloud.google.com/tpu/docs/v5e, v5p, v6e, and NVIDIA's data sheets (SXM, without sparsity). Memory:
# of a TPU what its compiler leaves to a program, of a GPU what its driver reports.
CHIPS = {
    "v5e": Chip(197e12, int(15.75 * GIB), 819e9, ("TPU v5 lite", "TPU v5e"), axes=2),
    "v5p": Chip(459e12, int(95.74 * GIB), 2765e9, ("TPU v5", "TPU v5p"), axes=3),
    "v6e": Chip(918e12, int(31.25 * GIB), 1640e9, ("TPU v6 lite", "TPU v6e"), axes=2),
    "a100": Chip(312e12, 85_100_068_864, 2039e9, ("NVIDIA A100-SXM4-80GB",)),
    "h100": Chip(989e12, 84_942_979_072, 3352e9, ("NVIDIA H100 80GB HBM3",)),
    "h200": Chip(989e12, 151_397_597_184, 4800e9, ("NVIDIA H200", "NVIDIA H200 141GB HBM3e")),
}
GPUS = {
    "a100": GPU(8, 108, 64, 164 * 1024, 40 * 2**20, 1.41),
    "h100": GPU(9, 132, 128, 228 * 1024, 50 * 2**20, 1.98),
    "h200": GPU(9, 132, 128, 228 * 1024, 50 * 2**20, 1.98),
}
# libtpu would ask a metadata server which machine this is, and warn that it is none: any answer will do.
NO_TPU_HERE = {
    "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-8",
}  # fmt: skip
CUDNN = 9, 8, 0  # whose kernels are compiled for
ALLOWED = "v5e:2x4, v6e:4x4, v5p:2x2x2 and the like (chips along each axis), a100:8, h100:8, h200:16, or here"


class Machine(NamedTuple):
    """Devices to compile for; chip: None where nothing is published of them; memory: bytes that each may use."""

    name: str
    devices: list[jax.Device]
    chip: Chip | None
    memory: int
    of_memory: str  # what `memory` is


def machine(topology: str) -> Machine:
    """Return the machine that a topology names; raises UserError for one that is none, or has no compiler here."""
    if topology == HERE:
        return _here()
    name, _, size = topology.partition(":")
    if name not in CHIPS or not re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){{{CHIPS[name].axes - 1}}}", size):
        meant = [f"{chip}:{_example(chip)}" for chip in ([name] if name in CHIPS else CHIPS)]
        near = nearest(topology, meant, cutoff=0.0) if name in CHIPS else nearest(topology, [HERE, *meant])
        raise UserError(f"--topology is {topology!r}; allowed: {ALLOWED}.{near}")
    chip, sides = CHIPS[name], [int(side) for side in size.split("x")]
    jax.config.update("jax_platforms", "cpu")  # devices of this machine are not looked for
    devices = _gpus(name, sides[0]) if name in GPUS else _tpus(topology, sides)
    if name not in GPUS:
        return Machine(topology, devices, chip, chip.memory, "what the compiler leaves to a program")
    share = float(os.environ.get(SHARE) or DEFAULT_SHARE)
    return Machine(topology, devices, chip, int(share * chip.memory), f"jax takes {share:g} of it: {SHARE}")


def chip_of(kind: str) -> Chip | None:
    """Return the chip that jax calls so; None: nothing is known of it."""
    return next((chip for chip in CHIPS.values() if kind in chip.kinds), None)


def _example(name: str) -> str:
    return {1: "8", 2: "2x4", 3: "2x2x2"}[CHIPS[name].axes]


def _here() -> Machine:
    device = jax.local_devices()[0]
    chip = chip_of(device.device_kind)
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit:
        return Machine(HERE, jax.devices(), chip, limit, "what jax may take of it")
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(HERE, jax.devices(), chip, ram // jax.local_device_count(), "its share of this machine's memory")


def _tpus(topology: str, sides: list[int]) -> list[jax.Device]:
    for variable, value in NO_TPU_HERE.items():
        os.environ.setdefault(variable, value)
    a_host = min(2, sides[0]), min(2, sides[1]), 1  # chips of it
    try:
        return topologies.get_topology_desc(topology, "tpu", chips_per_host_bounds=a_host).devices
    except RuntimeError as error:
        raise _cannot(topology, error, "TPU support not installed", "tpu") from error


def _gpus(name: str, n: int) -> list[jax.Device]:
    if n > NODE and n % NODE:
        raise UserError(f"--topology is '{name}:{n}': more than {NODE} GPUs are nodes of {NODE}.")
    slices = f"1x{-(-n // NODE)}x{min(n, NODE)}"  # slices x nodes x GPUs of a node
    try:
        found = topologies.get_topology_desc(slices, "cuda", target_config=target(name), topology=slices)
    except (RuntimeError, NotImplementedError) as error:
        raise _cannot(f"{name}:{n}", error, "topology not implemented", "cuda13") from error
    return found.devices


def _cannot(topology: str, error: Exception, absent: str, extra: str) -> UserError:
    """Say why there are no devices: their compiler is not installed, or does not know such a machine."""
    if absent in str(error):
        return UserError(
            f'--topology={topology} needs the compiler of jax[{extra}]: pip install "jax[{extra}]" '
            f"(make install DEVICE={extra}); no such device is needed."
        )
    return UserError(f"--topology is {topology!r}, of which the compiler says: {first_line(error)}")


def target(name: str) -> str:
    """Return the description of a GPU by which XLA compiles without it (stream_executor's GpuTargetConfigProto)."""
    chip, gpu = CHIPS[name], GPUS[name]
    device = {
        "threads_per_block_limit": 1024, "threads_per_warp": 32, "threads_per_core_limit": 2048,
        "shared_memory_per_block": 48 * 1024, "shared_memory_per_core": gpu.shared_per_core,
        "shared_memory_per_block_optin": gpu.shared_per_core - 1024, "core_count": gpu.cores,
        "fpus_per_core": gpu.fpus_per_core, "block_dim_limit_x": 2**31 - 1, "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1, "memory_bandwidth": int(chip.bandwidth), "l2_cache_size": gpu.l2,
        "clock_rate_ghz": gpu.clock_ghz, "device_memory_size": chip.memory, "registers_per_core_limit": 2**16,
        "registers_per_block_limit": 2**16, "cuda_compute_capability": f"{{ major: {gpu.capability} minor: 0 }}",
    }  # fmt: skip
    fields = " ".join(f"{key} {value}" if "{" in str(value) else f"{key}: {value}" for key, value in device.items())
    version = " ".join(f"{part}: {n}" for part, n in zip(("major", "minor", "patch"), CUDNN, strict=True))
    return (
        f'gpu_device_info {{ {fields} }} platform_name: "CUDA" dnn_version_info {{ {version} }} '
        f'device_description_str: "{chip.kinds[0]}"'
    )
