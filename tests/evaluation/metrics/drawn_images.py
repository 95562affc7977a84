"""Two sets of small images, drawn by a rule that any program can repeat: what judges are compared on."""

import numpy as np
from jaxtyping import UInt8


def sets(n: tuple[int, int] = (72, 80)) -> tuple[UInt8[np.ndarray, "n 16 16 3"], UInt8[np.ndarray, "m 16 16 3"]]:
    """Waves of a random direction, colour and phase, under noise; the second set's are slower and noisier."""
    return tuple(_drawn(np.random.RandomState(seed), count, seed) for seed, count in zip((1, 2), n, strict=True))


def _drawn(draw: np.random.RandomState, n: int, slowness: int) -> UInt8[np.ndarray, "n 16 16 3"]:
    rows, columns = np.meshgrid(np.arange(16), np.arange(16), indexing="ij")
    speed = draw.normal(0, 1 / slowness, (n, 2, 1, 1))
    phase = (speed[:, 0] * rows + speed[:, 1] * columns)[..., None]
    waves = np.sin(phase + draw.uniform(0, 2 * np.pi, (n, 1, 1, 3)))
    return np.clip(128 + 80 * waves + 20 * slowness * draw.standard_normal((n, 16, 16, 3)), 0, 255).astype(np.uint8)
