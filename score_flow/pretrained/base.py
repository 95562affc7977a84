"""What the published checkpoints share: plain tensors under the names of their project, moved one by one into ours."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from score_flow.errors import UserError
from score_flow.model import Model

Tensors = Mapping[str, np.ndarray]  # by the name that the source gives them
SHOWN = 8  # mismatches that an error spells out


class Checkpoint(NamedTuple):
    """A file of one project, read: each set of weights that it holds, "ema" or "raw"."""

    weights: dict[str, Tensors]
    step: int | None = None
    reference: dict[str, Any] | None = None  # the project's own settings, where the file carries them
    implied: Mapping[str, Any] = MappingProxyType({})  # overrides of our config that its tensors alone decide


class Leaf(NamedTuple):
    """Where a parameter comes from: one or more tensors of the source, and what makes them ours."""

    names: tuple[str, ...]
    read: Callable[..., np.ndarray]


class Layout(NamedTuple):
    """All that a source stores: our parameters by path ("conv_in/kernel"), and tensors that are no parameters here.

    A constant must equal the value given (to float32 rounding); None drops it unread.
    """

    leaves: dict[str, Leaf]
    constants: dict[str, np.ndarray | None]


class Project(NamedTuple):
    """How one project writes its networks down.

    read(tree) takes the plain contents of a file (files.read) and returns None unless they are of this project;
    layout(model, image_shape) names every tensor of the model's network; translate(settings) turns the project's own
    settings into overrides of our config, {"network.width": 128, ...}, and raises UserError for what it cannot say;
    written: how its users write those settings into a file, as Python, or where they lie.
    """

    read: Callable[[Any], Checkpoint | None]
    layout: Callable[[Model, tuple[int, int, int]], Layout]
    translate: Callable[[Mapping[str, Any]], dict[str, Any]]
    written: str = ""


def same(w: np.ndarray) -> np.ndarray:
    return w


def dense(w: np.ndarray) -> np.ndarray:
    """torch's (out, in) to (in, out)."""
    return w.T


def conv(w: np.ndarray) -> np.ndarray:
    """torch's (out, in, h, w) to (h, w, in, out)."""
    return w.transpose(2, 3, 1, 0)


def pointwise(w: np.ndarray) -> np.ndarray:
    """torch's convolution (out, in, 1[, 1]) to a map of channels (in, out)."""
    return w.reshape(w.shape[:2]).T


def stacked(read: Callable[[np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    """Return the same reading of every layer of an nn.scan, stacked along a leading axis."""
    return lambda *layers: np.stack([read(w) for w in layers])


def refuse_other(network: Any, fields: Mapping[str, Any], whose: str) -> None:
    """Raise UserError unless a network has the fields that all of a project's have."""
    for field, value in fields.items():
        if getattr(network, field) != value:
            raise UserError(f"config.network.{field} is {getattr(network, field)!r}; {whose} has {value!r}.")


def size(settings: Mapping[str, Any], name: str) -> int | tuple[int, ...]:
    """Return what diffusers' settings say of a size, a number, or one for each level; raises UserError for others."""
    value = settings.get(name)
    numbers = value if name == "block_out_channels" else [value]
    if not (isinstance(numbers, list | tuple) and numbers and all(type(n) is int and n > 0 for n in numbers)):
        raise UserError(f"{name} is {value!r}; allowed: positive whole numbers.")
    return tuple(numbers) if name == "block_out_channels" else value


def fill(shapes: PyTree, layout: Layout, tensors: Tensors) -> PyTree:
    """Make our parameters from a source's tensors, every one of them used exactly once.

    `shapes` is a tree of arrays or shapes (jax.eval_shape). Raises UserError, naming each of them, for tensors that are
    missing, left over, of another shape, or not finite, and for constants of another value.
    """
    wanted = {"/".join(path): leaf.shape for path, leaf in flatten_dict(shapes).items()}
    uses = [name for leaf in layout.leaves.values() for name in leaf.names]
    # Our own mistakes, not the file's: the layout must speak of our network, and of each tensor once.
    assert set(layout.leaves) == set(wanted), set(layout.leaves) ^ set(wanted)
    assert len(uses) == len(set(uses)) and not set(uses) & set(layout.constants)

    known = set(uses) | set(layout.constants)
    faults = [f"{name} is missing" for name in uses if name not in tensors]
    faults += [f"{name} is not part of this network" for name in tensors if name not in known]
    faults += [f"{name} is not what this network has fixed" for name in _wrong_constants(layout, tensors)]
    params = {}
    for path, leaf in layout.leaves.items():
        given = {name: tensors[name] for name in leaf.names if name in tensors}
        unusable = [f"{name} is {problem}" for name, w in given.items() if (problem := _problem(w))]
        faults += unusable
        if unusable or len(given) < len(leaf.names):
            continue
        value = _made(leaf, list(given.values()))
        if value is None or value.shape != wanted[path]:
            name = _odd_one_out(leaf, given, wanted[path])
            faults.append(f"{name} has shape {given[name].shape}, which does not make {path} {wanted[path]}")
        else:
            params[tuple(path.split("/"))] = np.asarray(value, order="C")
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise UserError(f"the weights do not fit the network: {'; '.join(faults[:SHOWN])}{more}.")
    return unflatten_dict(params)


def _problem(w: Any) -> str | None:
    if not isinstance(w, np.ndarray) or w.dtype.kind != "f":
        return f"no tensor of real numbers but {getattr(w, 'dtype', type(w).__name__)}"
    return None if np.isfinite(w).all() else "not finite"


def _made(leaf: Leaf, given: list[np.ndarray]) -> np.ndarray | None:
    try:
        return leaf.read(*given)
    except (ValueError, IndexError):  # an axis that is not there, layers of different shapes
        return None


def _odd_one_out(leaf: Leaf, given: Tensors, wanted: tuple[int, ...]) -> str:
    """Of the layers that make a stacked parameter, the one that alone does not make its part of it."""
    if len(given) == 1:
        return leaf.names[0]
    n = len(leaf.names)
    parts = {name: _made(leaf, [w] * n) for name, w in given.items()}
    return next((name for name, part in parts.items() if part is None or part.shape != wanted), leaf.names[0])


def _wrong_constants(layout: Layout, tensors: Tensors) -> list[str]:
    wrong = []
    for name, value in layout.constants.items():
        if value is None or name not in tensors:  # a buffer may be absent: it says nothing that we do not know
            continue
        got = np.asarray(tensors[name])
        # Tables of sines or powers in float32: each entry within a few roundings of the largest.
        close = got.shape == value.shape and np.abs(got - value).max() <= 1e-5 * np.abs(value).max()
        if not close:
            wrong.append(name)
    return wrong


def as_dtype(params: PyTree, dtype: str) -> PyTree:
    """Every parameter in one dtype."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, dtype), params)
