"""Which noise goes with which image of a training batch."""

import jax
import jax.numpy as jnp
import optax

from score_flow.types import Images


def optimal(x0: Images, noise: Images) -> Images:
    """Return the noise of a batch, permuted so that the sum of |x0 - noise|^2 is least: an exact assignment.

    The flow of such pairs, of a batch each, is straighter, hence solved in fewer steps (Tong et al. 2023,
    arXiv:2302.00482; Pooladian et al. 2023, arXiv:2304.14772).
    """
    rows, columns = (z.reshape(z.shape[0], -1) for z in (x0, noise))
    # |a - b|^2 = |a|^2 + |b|^2 - 2 a.b, where only the product depends on who goes with whom.
    product = jnp.einsum("id,jd->ij", rows, columns, precision=jax.lax.Precision.HIGHEST)
    row, column = optax.assignment.hungarian_algorithm(-product)
    return noise[jnp.zeros_like(column).at[row].set(column)]
