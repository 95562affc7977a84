"""Real runs of the program in processes of their own."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).resolve().parent.parent
TINY = [
    "--config=configs/digits.py",
    "--config.network.name=mlp",
    "--config.network.width=32",
    "--config.network.depth=1",
    "--config.training.batch_size=16",
    "--config.training.n_iters=40",
    "--config.training.log_freq=1",
    "--config.training.eval_freq=20",
    "--config.training.snapshot_freq=0",
    "--config.training.snapshot_freq_for_preemption=10",
    "--config.training.snapshot_sampling=False",
    "--config.optim.warmup=5",
    "--config.model.ema_rate=(0.9,0.99)",
]


def environment(devices: int = 1, **extra: str) -> dict[str, str]:
    # Of a flag that comes twice the last counts; the others are those of the tests, for fast compilation.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, **extra}


def launch(
    workdir: Path,
    *flags: str,
    moment: str = "none",
    mode: str = "train",
    cache: Path | None = None,
    before: Sequence[str] = (),
    **env,
) -> subprocess.Popen:
    """Start main.py on the tiny recipe, by the command `before` it, with a signal at a moment (see driver.py)."""
    if cache:
        env |= {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        env |= {"JAX_ENABLE_COMPILATION_CACHE": "true"}
    command = [*before, sys.executable, "tests/driver.py", moment, *TINY]
    command += [f"--workdir={workdir}", f"--mode={mode}", *flags]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(**env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen, expected: int = 0) -> str:
    """Wait for a run and check its exit code; returns what it printed."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == expected, f"exit code {process.returncode}, expected {expected}:\n{output[-3000:]}"
    return output


def run(workdir: Path, *flags: str, expected: int = 0, **options) -> str:
    return finish(launch(workdir, *flags, **options), expected)


def places(n: int) -> list[dict[str, str]]:
    """What tells each of n processes on this machine where the others are."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    return [dict(zip(names, (address, str(n), str(i)), strict=True)) if n > 1 else {} for i in range(n)]


def start_together(n: int, workdir: Path, *flags: str, **options) -> list[subprocess.Popen]:
    """Start one run by n processes on this machine."""
    return [launch(workdir, *flags, **options, **place) for place in places(n)]


def run_together(n: int, workdir: Path, *flags: str, **options) -> None:
    """One run by n processes on this machine, which must all succeed."""
    for process in start_together(n, workdir, *flags, **options):
        finish(process)


def losses(workdir: Path) -> dict[int, tuple[float, float]]:
    """step -> (loss, gradient norm) as logged; every step once."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == sorted(set(steps)), "a step is logged twice or out of order"
    return {row["step"]: (row["loss"], row["grad_norm"]) for row in rows if "loss" in row}


def weights(workdir: Path, step: int) -> list[np.ndarray]:
    """Every array of a milestone: parameters, EMA, optimiser, step."""
    leaves = []
    for item in ("params", "ema", "train"):
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])  # also what other processes have saved
        read = ocp.args.StandardRestore(fallback_sharding=here)
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
            tree = reader.restore(workdir / "checkpoints" / str(step) / item, args=read)
        leaves += [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return leaves
