"""Which parameters are matrices, by their names and axes, and what optimisers do to these alone."""

import math
import re

import jax
import optax
from jaxtyping import PyTree
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from score_flow.errors import UserError
from score_flow.numerics import unit
from score_flow.training.flat import by_name
from score_flow.types import Params

KERNEL = "kernel"  # what flax calls the matrix of a layer
# What reads x, time and condition, or is read off: names of modules of a network, whose others lie between these.
ENDS = re.compile(r"((conv_)?(in|out)|patches|embedding|label|.*_(input|output))")
RMS = 0.2  # of Adam's updates, as a rule: with it a learning rate of AdamW is one of Muon (arXiv:2502.16982, sec. 2.2)


def is_matrix(path: tuple[str, ...], ndim: int) -> bool:
    """Say whether a parameter multiplies: a kernel, no bias, scale, table of embeddings or gain."""
    return path[-1:] == (KERNEL,) and ndim > 1


def numbers_of(path: tuple[str, ...], ndim: int) -> MuonDimensionNumbers | None:
    """Return the axes of a hidden matrix that are summed over, and those of its outputs; None: Muon is not for it.

    Kernels are (in, out); (blocks, in, out), a matrix for each of a stack of blocks; (h, w, in, out) of convolutions,
    (h w in, out). The first and the last layer are none of them, and are known by their names (ENDS).
    """
    if not is_matrix(path, ndim) or ENDS.fullmatch(path[0]):
        return None
    return MuonDimensionNumbers((ndim - 2,) if ndim < 4 else tuple(range(ndim - 1)), (ndim - 1,))


def kind(path: tuple[str, ...], ndim: int) -> str:
    """Name what optimisers tell apart: a hidden matrix, another, and all else."""
    return "hidden" if numbers_of(path, ndim) else "matrices" if is_matrix(path, ndim) else "others"


def muon(momentum: float, rest: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return the orthogonalised momentum of hidden matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    Its root mean square is that of Adam's updates. rest: of all other parameters.
    """

    def labels(params: Params) -> PyTree:
        return by_name(lambda *leaf: "rest" if numbers_of(*leaf) is None else "muon", params)

    def checked(params: Params) -> PyTree:
        found = labels(params)
        if "muon" not in jax.tree.leaves(found):
            raise UserError(f"config.optim.optimizer is Muon, which is for hidden matrices, and {NO_KERNEL}.")
        return found

    def alike(updates: Params, params: Params | None = None) -> Params:
        return jax.tree.map(_as_adam, updates, by_name(numbers_of, updates))

    hidden = optax.chain(
        scale_by_muon(beta=momentum, weight_dimension_numbers=lambda params: by_name(numbers_of, params)),
        optax.stateless(alike),
    )
    return optax.partition({"muon": hidden, "rest": rest}, checked)


def unit_kernels(params: Params) -> Params:
    """Return parameters whose kernels have root mean square 1 for each output, the last axis.

    EDM2's forced normalisation of weights (Karras et al. 2024, arXiv:2312.02696, eq. 66), for after a step.
    """
    return jax.tree.map(
        lambda p, kernel: unit(p, tuple(range(p.ndim - 1))) if kernel else p, params, by_name(is_matrix, params)
    )


NO_KERNEL = f"no parameter of this network is named {KERNEL}"


def _as_adam(update: jax.Array, numbers: MuonDimensionNumbers) -> jax.Array:
    """Scale a matrix of singular values 1, whose root mean square is 1/sqrt(the larger of its sides)."""
    sides = (math.prod(update.shape[axis] for axis in axes) for axes in numbers)
    return RMS * math.sqrt(max(sides)) * update


def decayed(rate: float, on: str) -> optax.GradientTransformation:
    """Return what adds rate x parameter to an update, on all parameters or on "matrices"; it has no state."""
    if on == "all":
        return optax.add_decayed_weights(rate)

    def update(updates: Params, params: Params) -> Params:
        chosen = by_name(is_matrix, params)
        if not any(jax.tree.leaves(chosen)):
            raise UserError(f"config.optim.decay_on is {on!r}, and {NO_KERNEL}; allowed: all.")
        return jax.tree.map(lambda u, p, there: u + rate * p if there else u, updates, params, chosen)

    return optax.stateless(update)
