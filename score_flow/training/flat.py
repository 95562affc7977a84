"""Parameters, and what has their shapes, as few vectors: an update is then one kernel, and not one a parameter.

It is a form of a state while it is trained; what is saved, drawn from and compared is the tree of its names.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Shaped

# (names of the modules and of the parameter, shape) -> its kind, of which each has a vector; None: it stays as it is
Kind = Callable[[tuple[str, ...], tuple[int, ...]], str | None]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a parameter lies: its numbers follow those of the others of its vector; None: it stays as it is."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    vector: str | None


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a tree of parameters lies in vectors.

    outputs_first: kernels of convolutions, (..., h, w, in, out), lie as (..., out, h, w, in): the order in which cuDNN
    takes them and gives their gradients.
    """

    structure: Any
    places: tuple[Place, ...]
    outputs_first: bool = False

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:  # asked for at each call of a program
        return hash((self.structure, self.places, self.outputs_first))

    def packed(self, tree: PyTree) -> "Flat":
        """Return a tree of these parameters' structure in vectors; what is masked, and has no leaves, stays so."""
        joined: dict[str, list] = {}
        apart = {}
        for place, leaf in zip(self.places, self.structure.flatten_up_to(tree), strict=True):
            if place.vector is None:
                apart["/".join(place.path)] = leaf
            else:
                joined.setdefault(place.vector, []).append(leaf)
        vectors = {
            name: leaves[0] if _absent(leaves[0]) else _joined(leaves, self.outputs_first)
            for name, leaves in joined.items()
        }
        return Flat(vectors, apart, self)

    def tree(self, flat: "Flat") -> PyTree:
        """Return the tree whose numbers lie in vectors."""
        leaves = {None: iter([flat.apart["/".join(place.path)] for place in self.places if place.vector is None])}
        for name, vector in flat.vectors.items():
            shapes = tuple(place.shape for place in self.places if place.vector == name)
            parts = [vector] * len(shapes) if _absent(vector) else _parted(vector, shapes, self.outputs_first)
            leaves[name] = iter(parts)
        return jax.tree.unflatten(self.structure, [next(leaves[place.vector]) for place in self.places])


class Flat(flax.struct.PyTreeNode):
    """Parameters, or what has their shapes, in vectors, and those apart by their names; leaves may stand for arrays."""

    vectors: dict[str, Any]
    apart: dict[str, Any]
    layout: Layout = flax.struct.field(pytree_node=False)


def layout_of(params: PyTree, kind: Kind, outputs_first: bool = False) -> Layout:
    """Return the layout of parameters, a vector for each kind and dtype."""
    places = []
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = _names(keys)
        its = kind(path, leaf.shape)
        places.append(Place(path, leaf.shape, its and f"{its} {leaf.dtype}"))
    return Layout(jax.tree.structure(params), tuple(places), outputs_first)


def by_name(f: Callable[[tuple[str, ...], int], Any], params: PyTree) -> PyTree:
    """Return f(names of the modules and of the parameter, number of axes) of each parameter, and of each vector.

    Of a vector it is that of its first parameter: f must be the same for all that are of one kind.
    """
    if not is_flat(params):
        return jax.tree_util.tree_map_with_path(lambda path, leaf: f(_names(path), jnp.ndim(leaf)), params)
    firsts = {place.vector: place for place in reversed(params.layout.places)}
    alone = {"/".join(place.path): place for place in params.layout.places if place.vector is None}

    def of(places: dict[str, Place], parts: dict[str, Any]) -> dict[str, Any]:
        each = {name: f(places[name].path, len(places[name].shape)) for name in parts}
        return {name: part if _absent(part) else each[name] for name, part in parts.items()}

    return params.replace(vectors=of(firsts, params.vectors), apart=of(alone, params.apart))


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(str(getattr(key, "key", getattr(key, "idx", ""))) for key in path)


def _absent(part: Any) -> bool:
    return not jax.tree.leaves(part)


def is_flat(part: Any) -> bool:
    return isinstance(part, Flat)


def tree_of(state: PyTree) -> PyTree:
    """Return a state, or a part of one, with a tree in place of all that is flat in it."""
    return jax.tree.map(lambda part: part.layout.tree(part) if is_flat(part) else part, state, is_leaf=is_flat)


def as_in(like: PyTree, state: PyTree) -> PyTree:
    """Return a state with vectors in place of each tree that has them in another state of its kind."""

    def packed(part: Any, own: PyTree) -> Any:
        return part.layout.packed(own) if is_flat(part) else own

    return jax.tree.map(packed, like, state, is_leaf=is_flat)


# Compiled each on its own: of a state outside of a program nothing is copied but what changes its form.
@functools.partial(jax.jit, static_argnums=1, inline=True)
def _joined(leaves: list[Shaped[Array, "..."]], outputs_first: bool) -> Shaped[Array, "n"]:
    moved = [jnp.moveaxis(leaf, -1, -4) if outputs_first and leaf.ndim > 3 else leaf for leaf in leaves]
    dtype = jnp.result_type(*leaves)
    return jnp.concatenate([leaf.reshape(-1).astype(dtype) for leaf in moved])


@functools.partial(jax.jit, static_argnums=(1, 2), inline=True)
def _parted(vector: Shaped[Array, "n"], shapes: tuple[tuple[int, ...], ...], outputs_first: bool) -> list[Array]:
    ends = list(itertools.accumulate(map(math.prod, shapes)))
    parts = [vector[end - math.prod(shape) : end] for end, shape in zip(ends, shapes, strict=True)]
    leaves = []
    for numbers, shape in zip(parts, shapes, strict=True):
        if outputs_first and len(shape) > 3:
            *stack, height, width, inputs, outputs = shape
            leaves.append(jnp.moveaxis(numbers.reshape(*stack, outputs, height, width, inputs), -4, -1))
        else:
            leaves.append(numbers.reshape(shape))
    return leaves
