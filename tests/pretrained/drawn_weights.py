"""Weights drawn at random under the names of a project, for layouts whose published files nobody may pass on."""

import zlib
from collections.abc import Mapping

import numpy as np


def drawn(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A float32 tensor of each shape, of its name alone: so large that activations neither vanish nor grow."""
    return {name: _tensor(name, tuple(shape)) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) > 1:
        return (noise / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    offset = 1.0 if name.endswith(("weight", "gamma")) else 0.0
    return (offset + 0.1 * noise).astype(np.float32)
