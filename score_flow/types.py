"""The types that every layer speaks in (jaxtyping: b = batch, *d = the axes of one example)."""

from typing import Any

import jaxtyping
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

Key = PRNGKeyArray  # one typed key, jax.random.key(seed)
Keys = jaxtyping.Key[Array, "b"]  # one key for each example
Images = Float[Array, "b *d"]
Times = Float[Array, "b"] | Float[Array, ""]
Params = PyTree[Float[Array, "..."]]
Condition = dict[str, Array] | None  # {"label": (b,)}, {"low_res": (b, h, w, c)}, ...
Batch = dict[str, Any]  # {"image": uint8 (b, h, w, c), "label": int32 (b,)}

__all__ = ["Batch", "Condition", "Images", "Key", "Keys", "Params", "Times"]
