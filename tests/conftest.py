"""Eight devices on one CPU, shapes checked at run time, and no word from TensorFlow."""

import os

# Before jax starts: the flags are read once.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

from jaxtyping import install_import_hook

install_import_hook(["score_flow", "sampling", "evaluation"], "beartype.beartype")
