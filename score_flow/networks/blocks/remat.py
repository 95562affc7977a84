"""What the backward pass keeps of a block, by name; the rest it computes again (jax.checkpoint)."""

from typing import Annotated, Any

import flax.linen as nn
import jax

from score_flow.config.limits import Limits


def _products(primitive: Any, *shapes: Any, **params: Any) -> bool:
    """Say whether an operation is a product with weights: a convolution, or a matrix product without a batch axis."""
    keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return primitive is jax.lax.conv_general_dilated_p or keep(primitive, *shapes, **params)


POLICIES = {
    "dots": _products,  # computed again: norms, activations, and all of attention but its maps of channels
    "full": jax.checkpoint_policies.nothing_saveable,
}
# True, as it was written before there were names, is full; False the network's default.
Remat = Annotated[str, Limits(among=("none", *POLICIES))] | bool


def rematted(block: type[nn.Module], remat: Remat, usual: str = "none", **options: Any) -> type[nn.Module]:
    """Return the block's class, of which the backward pass keeps what a policy names; usual: the network's default.

    options: of flax.linen.remat.
    """
    name = {True: "full", False: usual}.get(remat, remat)
    return block if name == "none" else nn.remat(block, policy=POLICIES[name], **options)
