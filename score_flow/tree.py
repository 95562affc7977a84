"""Trees that compiled functions take as arguments."""

from typing import Any

import flax.struct


def static(**options: Any) -> Any:
    """Return a field of a flax.struct tree that is none of its leaves; options as those of dataclasses.field."""
    return flax.struct.field(pytree_node=False, **options)
