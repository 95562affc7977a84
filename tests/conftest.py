"""Eight devices on one CPU, shapes checked at run time, and no word from TensorFlow."""

import os

# Before jax starts: the flags are read once.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
from jaxtyping import install_import_hook

# Eight devices share two threads: programs in flight together can wait for each other in a collective for ever.
jax.config.update("jax_cpu_enable_async_dispatch", False)
install_import_hook(["score_flow", "sampling", "evaluation"], "beartype.beartype")
