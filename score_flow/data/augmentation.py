"""Augmentations of training images: random crops, and EDM's, which tell the network what was done and so do not leak.

EDM (Karras et al. 2022, app. F.2, arXiv:2206.00364): each image goes through six transformations, each with its own
probability, and the network is told their parameters by nine labels, which are 0 for an image as it is: so are those of
every sample and every evaluation. Here the image is read off by cubic convolution (EDM filters by wavelets).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from score_flow.types import Images, Key, Keys

N_LABELS = 9
SCALE = 2.0**0.2  # a factor of one standard deviation, of both scalings
SHIFT = 1 / 8  # of a side, for one standard deviation
TAPS = np.arange(-1, 3, dtype=np.int32)  # of a cubic kernel, from the pixel below


def random_crop(keys: Keys, images: Shaped[Array, "b h w c"], most: int) -> Shaped[Array, "b h w c"]:
    """Shift each image by up to `most` pixels each way, by its own key; what comes in is the image's mirror image."""
    padded = jnp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), mode="reflect")

    def crop(key: Key, image: Shaped[Array, "h2 w2 c"]) -> Shaped[Array, "h w c"]:
        top, left = jax.random.randint(key, (2,), 0, 2 * most + 1)
        return jax.lax.dynamic_slice(image, (top, left, jnp.zeros_like(top)), images.shape[1:])

    return jax.vmap(crop)(keys, padded)


def augment(keys: Keys, images: Images, p: float) -> tuple[Images, Float[Array, "b 9"]]:
    """(images, each transformed by its own key, the labels that say how); p: the probability of each transformation.

    The mirroring left to right is drawn for every image, whatever p > 0, as EDM does.
    """
    parameters = jax.vmap(lambda key: draw(key, p))(keys)
    h, w = images.shape[1:3]
    return jax.vmap(lambda a, image: warp(image, *inverse(a, h, w)))(parameters, images), jax.vmap(labels)(parameters)


def draw(key: Key, p: float) -> Float[Array, "8"]:
    """Draw EDM's a_0 .. a_7: two mirrorings, log scale, angle, angle and log of a squeeze, two shifts."""
    applied, flips, angles, normal = jax.random.split(key, 4)
    odds = jnp.array([1.0 if p > 0 else 0.0, p, p, p, p, p])  # of x flip, y flip, scale, turn, squeeze, shift
    given = jax.random.bernoulli(applied, odds).astype(jnp.float32)[jnp.array([0, 1, 2, 3, 4, 4, 5, 5])]
    flip = jax.random.bernoulli(flips, shape=(2,)).astype(jnp.float32)
    turn = jax.random.uniform(angles, (2,), minval=-jnp.pi, maxval=jnp.pi)
    gauss = jax.random.normal(normal, (4,))
    return given * jnp.stack([flip[0], flip[1], gauss[0], turn[0], turn[1], gauss[1], gauss[2], gauss[3]])


def labels(a: Float[Array, "8"]) -> Float[Array, "9"]:
    """Return what the network is told; nothing that turns by a whole turn jumps."""
    return jnp.stack([
        a[0], a[1], a[2], jnp.cos(a[3]) - 1, jnp.sin(a[3]), a[5] * jnp.cos(a[4]), a[5] * jnp.sin(a[4]), a[6], a[7],
    ])  # fmt: skip


def inverse(a: Float[Array, "8"], h: int, w: int) -> tuple[Float[Array, "2 2"], Float[Array, "2"]]:
    """(matrix, shift) by which a place (x, y) of the result, from the middle, was matrix @ ((x, y) - shift) before.

    In this order: mirrored, scaled, turned, squeezed along a direction, shifted.
    """
    flip = jnp.diag(1 - 2 * a[:2])
    squeeze = _turn(a[4]) @ jnp.diag(SCALE ** jnp.stack([-a[5], a[5]])) @ _turn(-a[4])
    return flip * SCALE ** -a[2] @ _turn(a[3]) @ squeeze, SHIFT * a[6:] * jnp.array([w, h])


def _turn(angle: Float[Array, ""]) -> Float[Array, "2 2"]:
    c, s = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([c, -s]), jnp.stack([s, c])])


def warp(
    image: Float[Array, "h w c"], matrix: Float[Array, "2 2"], shift: Float[Array, "2"]
) -> Float[Array, "h w c"]:
    """Read an image off where its pixels come from, by Catmull-Rom's cubic kernel, mirrored beyond its edges.

    Exact where they come from pixels: mirrorings, and shifts by whole pixels.
    """
    h, w, _ = image.shape
    y, x = jnp.meshgrid(jnp.arange(h) - (h - 1) / 2, jnp.arange(w) - (w - 1) / 2, indexing="ij")
    with jax.default_matmul_precision("highest"):
        source = jnp.stack([x - shift[0], y - shift[1]], axis=-1) @ matrix.T
    (rows, down), (columns, across) = (_taps(source[..., i] + (n - 1) / 2, n) for i, n in ((1, h), (0, w)))
    pixels = image[rows[..., :, None], columns[..., None, :]]  # (h, w, 4, 4, c)
    return jnp.einsum("hwij...,hwi,hwj->hw...", pixels, down, across, precision="highest")


def _taps(at: Float[Array, "h w"], n: int) -> tuple[Shaped[Array, "h w 4"], Float[Array, "h w 4"]]:
    """(the four pixels around a place on an axis of n, their weights)."""
    below = jnp.floor(at)
    s = jnp.abs((at - below)[..., None] - TAPS)
    near, far = 1.5 * s**3 - 2.5 * s**2 + 1, -0.5 * s**3 + 2.5 * s**2 - 4 * s + 2
    period = max(2 * (n - 1), 1)
    index = jnp.abs((below[..., None].astype(jnp.int32) + TAPS + period // 2) % period - period // 2)
    return index, jnp.where(s <= 1, near, jnp.where(s < 2, far, 0.0))
