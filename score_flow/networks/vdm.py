"""VDM's network: a U-Net without downsampling that sees the fine scale of its input (arXiv:2107.00630, app. B)."""

from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float

from score_flow.config.hints import Count
from score_flow.config.limits import Limits
from score_flow.networks.blocks.layers import at_least_float32
from score_flow.networks.ncsnpp import Block, NCSNpp, Resblock
from score_flow.types import Condition


class VDM(NCSNpp):
    """NCSNpp of one level with VDM's choices: its input's Fourier features, and the input added to its output.

    32 blocks each way and attention in the middle; 30.6 M parameters with the defaults, those of CIFAR-10. The time it
    expects is gamma = -log SNR, carried to [0, 1000]. The published network has dropout .1.

    Attributes:
        fourier_powers: n of the features sin(2^n 2 pi x) and cos(2^n 2 pi x), which tell levels of pixels apart.
    """

    channel_mult: Annotated[tuple[int, ...], Limits(least=1, fewest=1)] = (1,)
    num_res_blocks: Count = 32
    attention_resolutions: Annotated[tuple[int, ...], Limits(least=0)] = ()
    resblock: Resblock = "ddpm"
    skip_rescale: bool = False
    groups: Count | None = 32
    fourier_powers: Annotated[tuple[int, ...], Limits(least=0, most=16)] = (6, 7)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, "b"],
        condition: Condition = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "b h w c_out"]:
        out = super().__call__(x, time, condition, deterministic=deterministic)
        return out.at[..., : x.shape[-1]].add(x)  # of a learned variance's channels nothing is known

    def _down(
        self, x: Float[Array, "b h w c"], block: Block
    ) -> tuple[Float[Array, "b h2 w2 c2"], list[Float[Array, "b _ _ _"]]]:
        return super()._down(jnp.concatenate([x, fourier_features(x, self.fourier_powers)], axis=-1), block)


def fourier_features(x: Float[Array, "b h w c"], powers: tuple[int, ...]) -> Float[Array, "b h w m"]:
    """[sin(2^n 2 pi x), cos(2^n 2 pi x)] for n in powers, channel by channel: m = 2 c len(powers).

    In float32 at least, of which the angles need all: they are 2 pi 2^n x.
    """
    frequencies = 2 * jnp.pi * 2.0 ** jnp.asarray(powers)
    angles = at_least_float32(x)[..., None] * frequencies.astype(at_least_float32(x).dtype)
    angles = angles.reshape(*x.shape[:-1], -1)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


build = VDM
