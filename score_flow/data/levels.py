"""Between a data set and what a model sees: pixel levels in its range, or the latents of an autoencoder."""

from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, UInt8

from score_flow.data.scaling import Scaling
from score_flow.errors import UserError
from score_flow.tree import static
from score_flow.types import Images, Keys

LEVELS = 256  # of decoded images
Draw = Callable[[Callable[..., Array], tuple[int, ...]], Array]


@flax.struct.dataclass
class Pixels:
    """Samples -> pixel levels.

    A tree whose leaves are the parameters of the autoencoder, if there is one: hand it to a compiled function as an
    argument, and they are none of its constants. The autoencoder has a method `decode` and `latent_channels`.
    """

    scaling: Scaling = static()
    dequantised: bool = static()  # whether the data have noise inside their level
    autoencoder: nn.Module | None = static(default=None)
    params: PyTree = None
    scale: float | tuple[float, ...] = static(default=1.0)  # of all channels, or of each
    shift: float | tuple[float, ...] = static(default=0.0)

    def __call__(self, x: Float[Array, "*n h w c"]) -> UInt8[Array, "*n h2 w2 c2"]:
        """Return the levels of x; of latents x = (latent - shift) scale, the nearest to the decoded one in [-1, 1]."""
        if x.ndim > 4:
            return jax.lax.map(self, x)
        if self.autoencoder is None:
            return self.scaling.quantise(x, self.dequantised)
        latents = x / jnp.asarray(self.scale, x.dtype) + jnp.asarray(self.shift, x.dtype)
        images = self.autoencoder.apply({"params": self.params}, latents, method="decode")
        return jnp.clip(jnp.round((images + 1) * ((LEVELS - 1) / 2)), 0, LEVELS - 1).astype(jnp.uint8)

    def shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(h, w, c) of the pixels of what has `image_shape`; raises UserError for latents that cannot be decoded."""
        channels = image_shape[-1] if self.autoencoder is None else self.autoencoder.latent_channels
        if image_shape[-1] != channels:
            raise UserError(
                f"config.eval.autoencoder decodes latents of {channels} channels; the model's have {image_shape[-1]}."
            )
        return jax.eval_shape(self, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)).shape[1:]


def to_model(scaling: Scaling, dequantised: bool, data: Array, draw: Draw) -> Images:
    """x0 of levels or real numbers (b, h, w, c), or of the moments (b, h, w, 2 c) of latents: a draw of N(mean, std^2).

    Levels and numbers are scaled; dequantised, levels have noise in their cells. draw(law, shape): the random numbers,
    law as jax.random.uniform.
    """
    if scaling.range:
        return scaling.normalise(data)
    if jnp.issubdtype(data.dtype, jnp.floating):
        mean, std = jnp.split(data, 2, axis=-1)
        return mean + std * draw(jax.random.normal, mean.shape)
    if dequantised:
        return scaling.dequantise(data, draw(jax.random.uniform, data.shape))
    return scaling.normalise(data)


def by_key(keys: Keys) -> Draw:
    """Return the numbers of each example by its own key."""
    return lambda law, shape: jax.vmap(lambda key: law(key, shape[1:]))(keys)


def middles(law: Callable[..., Array], shape: tuple[int, ...]) -> Array:
    """No noise but the middle of each cell."""
    return jnp.full(shape, 0.5)
