"""Methods that are linear in their network calls: their rows, and the one loop that runs them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sampling.base import Sampler, Samples, finite, normal, split
from score_flow.model import Denoiser
from score_flow.paths.base import Path
from score_flow.process.grid import Grid
from score_flow.types import Images, Keys


class Recursion(NamedTuple):
    """x <- scale x + sum_j weights[j] e_j + std z, a row for each network call; e_j is E[x0 | x] as of j calls ago.

    Grids are known on the host, and so are the rows, in float64: what runs is one network call in one scan.
    """

    t: Float[np.ndarray, "n"]  # when the network is called
    scale: Float[np.ndarray, "n"]
    weights: Float[np.ndarray, "n k"]
    std: Float[np.ndarray, "n"]


def recur(keys: Keys, denoiser: Denoiser, x: Images, *, rows: Recursion) -> Images:
    """Run a recursion from x at rows.t[0]."""
    noisy = bool(np.any(rows.std))

    def visit(carry, row):
        x, history = carry
        index, (t, scale, weights, std) = row
        history = (denoiser.x0(x, t), *history[:-1])
        x = scale * x + sum(weight * value for weight, value in zip(weights, history, strict=True))
        if noisy:
            x = x + std * normal(keys, x.shape[1:], index)
        return (x, history), None

    start = x, (jnp.zeros_like(x),) * rows.weights.shape[1]
    steps = jnp.arange(len(rows.t)), tuple(jnp.asarray(column, x.dtype) for column in rows)
    (x, _), _ = jax.lax.scan(visit, start, steps)
    return x


def recursion_sampler(rows: Callable[[Path], Recursion]) -> Sampler:
    """Draw from the prior at the first time of rows(path), then `recur`."""

    def sample(keys: Keys, denoiser: Denoiser, shape: tuple[int, ...]) -> Samples:
        recursion = rows(denoiser.path)
        prior_keys, noise_keys = split(keys)
        x = denoiser.start(prior_keys, shape, float(recursion.t[0]))
        x = recur(noise_keys, denoiser, x, rows=recursion)
        return Samples(x, jnp.asarray(len(recursion.t)), finite(x))

    return sample


def levels(path: Path, times: Grid) -> tuple[Grid, Grid]:
    """Evaluate (alpha, sigma) at the times, on the host even while a jit around it traces."""
    with jax.ensure_compile_time_eval():
        t = jnp.asarray(times, float)
        return np.asarray(path.alpha(t), np.float64), np.asarray(path.sigma(t), np.float64)
