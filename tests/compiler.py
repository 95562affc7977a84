"""Flags of the compiler that make small programs quick to build, as far as the installed jaxlib knows them."""

import os
import subprocess
import sys
from collections.abc import Sequence

FAST = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)


def takes(flags: Sequence[str]) -> bool:
    """Whether the installed jaxlib knows all of some flags: one that it does not ends the process, without an error."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)}
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0


def taken(flags: Sequence[str]) -> list[str]:
    """Those of some flags that the installed jaxlib knows."""
    return list(flags) if takes(flags) else [flag for flag in flags if takes([flag])]
