"""What a network knows of the devices that its program is for: their platform, and how parameters get to all.

The mesh in use says both: `jax.sharding.use_abstract_mesh` in a program or around its tracing, or `jax.set_mesh`.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import PyTree

from score_flow.types import Params


def platform() -> str:
    """Name what the program that is traced will run on, "cpu", "gpu" or "tpu": the mesh's; without one jax's own."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def gathered(params: Params, dtype: str | None = None) -> PyTree:
    """Return parameters that are split over the mesh's "fsdp" as whole ones, so that activations stay where they are.

    dtype: that of the arithmetic; in a shorter one than theirs they are sent in it. Outside of such a mesh they are
    returned as they are.
    """
    if jax.sharding.get_abstract_mesh().shape.get("fsdp", 1) == 1:
        return params

    def gather(leaf):
        shorter = dtype is not None and jnp.dtype(dtype).itemsize < leaf.dtype.itemsize
        return jax.lax.with_sharding_constraint(leaf.astype(dtype) if shorter else leaf, PartitionSpec())

    return jax.tree.map(gather, params)
