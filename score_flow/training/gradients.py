"""The loss of a batch and its gradients, at once or in slices whose sum they are."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree, Shaped

from score_flow.errors import UserError
from score_flow.losses.base import Aux, ByExample, Loss
from score_flow.networks.blocks import devices
from score_flow.runs.sharding import batch_sharding
from score_flow.training.flat import as_in, is_flat, tree_of
from score_flow.types import Batch, Key, Params

# (loss, params, time_state, key, batch) -> (value, what else it says, gradients)
Gradients = Callable[[Loss, Params, PyTree, Key, Batch], tuple[Float[Array, ""], Aux, Params]]


def check_microbatches(n: int, loss: Loss, batch_size: int, n_devices: int) -> None:
    """Raise UserError unless n slices of a batch have the same number of examples of each device, and a loss has them.

    The batch divides among the devices.
    """
    if n == 1:
        return
    name, each = type(loss).__name__, batch_size // n_devices
    if not sliceable(loss):
        raise UserError(
            f"config.training.microbatches is {n}, and {name} has one loss for a whole batch, none of its examples "
            "(score_flow.losses.base.ByExample); allowed: 1."
        )
    if each % n:
        allowed = ", ".join(str(slices) for slices in range(1, each + 1) if each % slices == 0)
        raise UserError(
            f"config.training.microbatches is {n}; it must divide the {each} examples that each of {n_devices} "
            f"device(s) has of training.batch_size = {batch_size}; allowed: {allowed}."
        )


def sliceable(loss: Loss) -> bool:
    """Say whether a loss is that of examples alone, and not one of its own for a whole batch."""
    return isinstance(loss, ByExample) and type(loss).__call__ is ByExample.__call__


def at_once(layout: PyTree) -> Gradients:
    """Return the gradients of the whole batch, laid out as the parameters are."""

    def gradients(loss, params, time_state, key, batch):
        of_whole = lambda params, *rest: loss(_whole(params, loss.network), *rest)  # noqa: E731
        (value, aux), grads = jax.value_and_grad(of_whole, has_aux=True)(
            _ready(params, loss.network), time_state, key, batch
        )
        # Summed and scattered: each device has its part.
        return value, aux, jax.lax.with_sharding_constraint(_as_held(params, grads), layout)

    return gradients


def in_slices(n: int, layout: PyTree, mesh: Mesh) -> Gradients:
    """Return the same, of n slices one after the other: activations are of one slice, gradients are summed.

    What is random is drawn for the batch before it is sliced, but for dropout, whose masks differ. A slice has examples
    of every device, which keeps its own.
    """

    def gradients(loss, params, time_state, key, batch):
        drawn, dropout_key = loss.draw(time_state, key, batch, True)
        b, tree = len(drawn.t), _ready(params, loss.network)

        def share(params: Params, part: PyTree, i: Array) -> tuple[Float[Array, ""], Float[Array, "m"]]:
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, i)
            losses = loss.examples(_whole(params, loss.network), part, key)
            return jnp.sum(part.weight * losses) / b, losses

        def add(total: Params, each: tuple[PyTree, Array]) -> tuple[Params, Float[Array, "m"]]:
            total, each = jax.lax.optimization_barrier((total, each))  # one after the other, unrolled too
            grads, losses = jax.grad(share, has_aux=True)(tree, *each)
            grads = jax.lax.with_sharding_constraint(_as_held(params, grads), layout)
            return jax.tree.map(jnp.add, total, grads), losses

        zeros = jax.lax.with_sharding_constraint(jax.tree.map(jnp.zeros_like, params), layout)
        parts = jax.tree.map(lambda leaf: _sliced(leaf, n, mesh), drawn), jnp.arange(n)
        # XLA:CPU compiles gradients of convolutions badly in loops: twenty times the time.
        grads, losses = jax.lax.scan(add, zeros, parts, unroll=devices.platform() == "cpu")
        value, aux = loss.value(time_state, drawn, _joined(losses, mesh))
        return value, aux, grads

    return gradients


def _sliced(leaf: Shaped[Array, "b *d"], n: int, mesh: Mesh) -> Shaped[Array, "n m *d"]:
    """Cut the examples of each device into n parts: (b) -> (n, b / n)."""
    rows = leaf.reshape(mesh.size, n, -1, *leaf.shape[1:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(rows.reshape(n, -1, *leaf.shape[1:]), batch_sharding(mesh, leading=1))


def _joined(parts: Float[Array, "n m"], mesh: Mesh) -> Float[Array, "b"]:
    """Put the numbers of n slices back into the order of the batch."""
    rows = parts.reshape(len(parts), mesh.size, -1).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(rows.reshape(-1), batch_sharding(mesh))


def _ready(params: Params, network: nn.Module) -> Params:
    """Return parameters as a tree; what lay in vectors is cast to the dtype that a network uses it in, once a step."""
    if not is_flat(params):
        return params
    leaves, structure = jax.tree.flatten(tree_of(params))
    dtype = jnp.dtype(getattr(network, "dtype", "float32"))
    if getattr(network, "casts", False) and dtype.itemsize < 4:
        kernels = {place.path[:-1] for place in params.layout.places if place.path[-1] == "kernel"}
        cast = [
            i for i, place in enumerate(params.layout.places)
            if place.vector is not None and place.path[-1] in ("kernel", "bias") and place.path[:-1] in kernels
        ]  # fmt: skip
        # The barrier keeps it before all else: not once for each use, nor in the loop over slices.
        for i, leaf in zip(cast, jax.lax.optimization_barrier([leaves[i].astype(dtype) for i in cast]), strict=True):
            leaves[i] = leaf
    return jax.tree.unflatten(structure, leaves)


def _as_held(params: Params, grads: Params) -> Params:
    """Return gradients as parameters are held: they are put together in the dtype that they come in."""
    return jax.tree.map(lambda g, p: g.astype(p.dtype), as_in(params, grads), params) if is_flat(params) else grads


def _whole(params: Params, network: nn.Module) -> Params:
    """Gather parameters that are split over the devices, once a step, but for those that the network gathers itself.

    Without it XLA may move the activations of the whole batch instead.
    """
    own, casts = getattr(network, "gathers", ()), getattr(network, "casts", False)

    def gather(leaf):
        return devices.gathered(leaf, network.dtype if casts and leaf.ndim > 1 else None)

    if not own:
        return jax.tree.map(gather, params)
    return {name: part if name in own else jax.tree.map(gather, part) for name, part in params.items()}
