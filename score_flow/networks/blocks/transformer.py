"""What transformers over image patches share: patches, positions, modulation (no plug-in: no `build`)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from score_flow.errors import UserError
from score_flow.networks.blocks import devices, layers
from score_flow.networks.blocks.remat import rematted

TIME_FEATURES = 256
ASIDE = "aside"  # the collection of what `aside` leaves, for whoever applies a network with this mutable
xavier = nn.initializers.xavier_uniform()
zeros = nn.initializers.zeros
Tokens = Float[Array, "b n width"]
Stack = Callable[..., tuple[Tokens, Tokens | None]]  # (tokens, what else a block is given): see `stacked`


def grid_of(x: Float[Array, "..."], p: int, name: str) -> tuple[int, int]:
    """Return patches along (h, w); raises UserError for images that patches of side p do not tile."""
    if x.ndim != 4 or x.shape[1] % p or x.shape[2] % p:
        raise UserError(
            f"{name} with patch_size={p} needs images (b, h, w, c) with h and w multiples of it, got shape {x.shape}."
        )
    return x.shape[1] // p, x.shape[2] // p


def patchify(x: Float[Array, "b h w c"], p: int) -> Float[Array, "b n d"]:
    b, h, w, c = x.shape
    return x.reshape(b, h // p, p, w // p, p, c).swapaxes(2, 3).reshape(b, h * w // p**2, p * p * c)


def unpatchify(patches: Float[Array, "b n d"], rows: int, columns: int, p: int) -> Float[Array, "b h w c"]:
    b = patches.shape[0]
    return patches.reshape(b, rows, columns, p, p, -1).swapaxes(2, 3).reshape(b, rows * p, columns * p, -1)


def sincos_positions(rows: int, columns: int, width: int) -> np.ndarray:
    """Fixed positions (rows * columns, width): [sin(w x), cos(w x), sin(w y), cos(w y)], w_i = 10000^(-4 i / width)."""
    frequencies = layers.MAX_PERIOD ** (-np.arange(width // 4) / (width // 4))
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (x, y)]
    return np.concatenate([wave(a) for a in angles for wave in (np.sin, np.cos)], axis=-1, dtype=np.float32)


def rotations(rows: int, columns: int, d: int, unmoved: int = 0) -> np.ndarray:
    """Angles (unmoved + rows * columns, d/2) by which pairs of a head's d channels turn (2-D RoPE, arXiv:2104.09864).

    The first half of the pairs turns by the row, the other by the column, pair i of d/4 by 10000^(-4 i / d) a patch.
    Tokens before the patches are not turned.
    """
    frequencies = layers.MAX_PERIOD ** (-np.arange(d // 4) / (d // 4))
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    angles = np.concatenate([axis.reshape(-1, 1) * frequencies for axis in (y, x)], axis=-1)
    return np.concatenate([np.zeros((unmoved, d // 2)), angles])


def turned(x: Float[Array, "b n heads d"], angles: np.ndarray) -> Float[Array, "b n heads d"]:
    """Turn the pairs (0, 1), (2, 3), ... of channels by the angles (n, d/2) of their tokens."""
    cos, sin = (jnp.asarray(wave(angles), x.dtype)[:, None] for wave in (np.cos, np.sin))
    even, odd = x[..., ::2], x[..., 1::2]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)


def modulation(embedding: Float[Array, "b width"], n: int, dtype: str, name: str) -> list[Float[Array, "b 1 width"]]:
    """n vectors of an embedding, zero to begin with; call it in a compact method."""
    dense = layers.Dense(n * embedding.shape[-1], kernel_init=zeros, dtype=dtype, name=name)
    return jnp.split(dense(embedding)[:, None], n, axis=-1)


def stacked(
    network: nn.Module, block: type[nn.Module], length: int, in_axes: tuple = (), tap: int = 0
) -> Callable[..., Stack]:
    """Return the class of `length` blocks in a row, compiled once: parameters stacked along a leading axis.

    An instance takes the tokens, and what else a block is given, to (tokens, those that block `tap` returns). These are
    None where there is no such block, counted from 1, or ASIDE is not mutable: then nothing is computed for them.
    network: whose blocks they are, with its fields dtype and remat; call it in one of its compact methods. in_axes: of
    what a block is given beside the tokens, as of flax.linen.scan.
    """
    # Inside of remat: whole weights of one block at a time, gathered again for the backward pass.
    gather = partial(devices.gathered, dtype=network.dtype, n_stacked=length)
    block = block if network.is_initializing() else nn.map_variables(block, "params", gather)
    # "dots" takes a quarter of the memory of "none", and is faster too, as a scan writes whatever the backward pass
    # will need to a stacked array.
    block = rematted(block, network.remat, "dots", prevent_cse=False)
    scan = partial(nn.scan, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, length=length)
    if not 0 < tap <= length or network.is_initializing() or not network.is_mutable_collection(ASIDE):
        return scan(block, in_axes=in_axes)

    def step(block: nn.Module, carry: tuple[Tokens, Tokens], taken: Bool[Array, ""], *given: Any) -> tuple:
        h, kept = carry
        h, _ = block(h, *given)
        return (h, jnp.where(taken, h, kept)), None  # outside of remat: the backward pass keeps none of it

    def stack(*fields: Any, name: str) -> Stack:
        blocks, along = block(*fields, name=name), scan(step, in_axes=(0, *in_axes))
        return lambda h, *given: along(blocks, (h, jnp.zeros_like(h)), jnp.arange(1, length + 1) == tap, *given)[0]

    return stack


def aside(network: nn.Module, name: str, value: Array | None) -> None:
    """Leave what a network returns beside its output, if it is there, in the collection ASIDE; in a compact method."""
    if value is not None:
        network.sow(ASIDE, name, value, reduce_fn=lambda _, last: last, init_fn=lambda: None)


def refuse_tap(network: nn.Module, depth: int) -> None:
    """Raise UserError unless a network of so many blocks has the one that is asked for."""
    if not 0 <= network.tap <= depth:
        raise UserError(
            f"config.training.alignment_block is {network.tap}, and {type(network).__name__} has blocks 1 to {depth}."
        )


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + 1e-6) scale, the mean in float32 (Zhang and Sennrich 2019, arXiv:1910.07467).

    The scale is used in the dtype of x; the result is in float32, or in float64 as x is.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:]).astype(x.dtype)
        x = layers.at_least_float32(x)
        return x / jnp.sqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6) * scale
