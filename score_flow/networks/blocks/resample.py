"""Resampling of images by 2: nearest and mean, or a FIR filter, alone or with a convolution (no plug-in: no `build`).

A FIR kernel is a tuple of taps, (1, 3, 3, 1) or any other; it is normalised, applied along both axes, and sees zeros
outside the image (StyleGAN2, arXiv:1912.04958; score_sde's upsample_2d, downsample_2d and their fused forms).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Kernel = tuple[int | float, ...]


def upsample(x: Float[Array, "b h w c"], kernel: Kernel | None = None) -> Float[Array, "b 2*h 2*w c"]:
    """Upsampling by 2: each pixel repeated, or zeros between the pixels and all filtered by 4 times the FIR kernel."""
    if kernel is None:
        b, h, w, c = x.shape
        return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
    before = (len(kernel) + 1) // 2  # zeros in front of the first pixel
    for axis in (1, 2):
        x = _interleave([_phase(x, kernel, phase - before, axis) for phase in (0, 1)], axis)
    return x


def downsample(x: Float[Array, "b h w c"], kernel: Kernel | None = None) -> Float[Array, "b h//2 w//2 c"]:
    """Downsampling by 2: the mean of each 2 x 2 block, or every second pixel of the image filtered by a FIR kernel."""
    if kernel is None:
        b, h, w, c = x.shape
        return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))
    return _filter(x, kernel, padding=len(kernel) - 2, stride=2)


def upsample_conv(
    x: Float[Array, "b h w c"], w: Float[Array, "3 3 c d"], kernel: Kernel | None = None
) -> Float[Array, "b 2*h 2*w d"]:
    """Upsampling, then a 3 x 3 convolution; with FIR it sees what the filter spreads beyond the border, else zeros."""
    if kernel is None:
        return _conv(upsample(x), w, padding=(1, 1))
    wide = upsample(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), kernel)[:, 1:-1, 1:-1]
    return _conv(wide, w, padding=(0, 0))


def conv_downsample(
    x: Float[Array, "b h w c"], w: Float[Array, "3 3 c d"], kernel: Kernel | None = None
) -> Float[Array, "b h//2 w//2 d"]:
    """A 3 x 3 convolution of stride 2, with FIR of the filtered image; without, zeros below and to the right only."""
    if kernel is None:
        return _conv(x, w, padding=(0, 1), stride=2)
    return _conv(_filter(x, kernel, padding=len(kernel), stride=1), w, padding=(0, 0), stride=2)


def _conv(
    x: Float[Array, "b h w c"], w: Float[Array, "3 3 c d"], padding: tuple[int, int], stride: int = 1
) -> Float[Array, "b h2 w2 d"]:
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, (stride, stride), (padding, padding), dimension_numbers=dimensions)


# A filter is a weighted sum of shifted images. As a depthwise lax.conv_general_dilated, with lhs_dilation on the way
# up, it takes 20 (down) to 200 (up) times longer on a CPU: XLA has no fast kernel there for groups or dilation.


def _filter(x: Float[Array, "b h w c"], kernel: Kernel, padding: int, stride: int) -> Float[Array, "b h2 w2 c"]:
    """Convolution of each axis with the kernel, `padding` zeros around it (the larger half in front), strided."""
    for axis in (1, 2):
        wide = _pad(x, (padding + 1) // 2, padding // 2, axis)
        n = wide.shape[axis] - len(kernel) + 1
        shifted = (jax.lax.slice_in_dim(wide, j, j + n, stride, axis) for j in range(len(kernel)))
        x = sum(tap * image for tap, image in zip(_taps(kernel), shifted, strict=True))
    return x


def _phase(x: Float[Array, "b h w c"], kernel: Kernel, start: int, axis: int) -> Float[Array, "b h w c"]:
    """Every second pixel of the upsampled image: only every second tap meets a pixel, the others meet zeros."""
    phase = jnp.zeros_like(x)
    for offset, tap in enumerate(_taps(kernel), start):
        if offset % 2 == 0:
            phase += 2 * tap * _pad(x, -offset // 2, offset // 2, axis)  # x moved by offset / 2 pixels
    return phase


def _interleave(phases: list[Float[Array, "b h w c"]], axis: int) -> Float[Array, "b h2 w2 c"]:
    shape = [n * len(phases) if i == axis else n for i, n in enumerate(phases[0].shape)]
    return jnp.stack(phases, axis=axis + 1).reshape(shape)


def _pad(x: Float[Array, "b h w c"], before: int, after: int, axis: int) -> Float[Array, "b h2 w2 c"]:
    """Zeros around one axis; a negative number crops."""
    padding = [(before, after, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), padding)


def _taps(kernel: Kernel) -> list[float]:
    """Return the kernel of sum 1, reversed: a convolution reads the image backwards."""
    return [tap / sum(kernel) for tap in reversed(kernel)]
