"""Encoding: images to latents of the flow and back, and what lies between latents."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sampling.flow import Solver, Stats, flow
from sampling.kernels import ddim
from score_flow.model import Denoiser
from score_flow.numerics import expand, sum_flat
from score_flow.process.grid import Grid, intervals
from score_flow.types import Images, Times


def encode(denoiser: Denoiser, x0: Images, solver: Solver, *, t_min: float, t_max: float) -> tuple[Images, Stats]:
    """Carry x0, taken as x at t_min, to its latents z at t_max by the probability flow (arXiv:2011.13456, app. D).

    For the data's own distribution they are those of the prior, about N(0, sigma(t_max)^2 I).
    """
    return flow(denoiser, x0, solver, t0=t_min, t1=t_max)


def decode(denoiser: Denoiser, z: Images, solver: Solver, *, t_min: float, t_max: float) -> tuple[Images, Stats]:
    """Undo `encode`, to the tolerance of the solver."""
    return flow(denoiser, z, solver, t0=t_max, t1=t_min)


def slerp(z0: Images, z1: Images, share: Times | float) -> Images:
    """Return sin((1 - share) a)/sin(a) z0 + sin(share a)/sin(a) z1, a the angle between them, of each example.

    Spherical interpolation (Shoemake 1985; of latents: arXiv:2010.02502, app. D.5): between Gaussian latents, of nearly
    one length and nearly orthogonal, the length stays. Parallel vectors, of any sign, are interpolated linearly.
    """
    unit0, unit1 = (z / jnp.maximum(_length(z), jnp.finfo(z.dtype).tiny) for z in (z0, z1))
    # Kahan's form: an arc cosine loses half of the digits of a small angle.
    angle = 2 * jnp.atan2(_length(unit0 - unit1), _length(unit0 + unit1))
    share = expand(jnp.asarray(share, z0.dtype), z0)
    parallel = jnp.sin(angle) < jnp.sqrt(jnp.finfo(z0.dtype).eps)
    sine = jnp.where(parallel, 1.0, jnp.sin(angle))
    on_z0 = jnp.where(parallel, 1 - share, jnp.sin((1 - share) * angle) / sine)
    on_z1 = jnp.where(parallel, share, jnp.sin(share * angle) / sine)
    return on_z0 * z0 + on_z1 * z1


def _length(z: Images) -> Float[Array, "b *_"]:
    return expand(jnp.sqrt(sum_flat(z**2)), z)


def ddim_flow(denoiser: Denoiser, x: Images, times: Grid) -> Images:
    """Take deterministic DDIM steps from times[0] to times[-1], up or down: the flow to first order in the steps."""
    kernel = ddim.predictor()

    def step(x, row):
        return kernel(denoiser, x, *row).mean, None

    return jax.lax.scan(step, x, jnp.asarray(intervals(times), x.dtype))[0]


def invert(denoiser: Denoiser, x0: Images, times: Grid) -> Images:
    """Find the latents from which DDIM on the descending times returns x0, to first order in the steps.

    Each step takes the estimate of its earlier time (Song et al. 2021, sec. 4.3, arXiv:2010.02502).
    """
    return ddim_flow(denoiser, x0, times[::-1])
