"""The likelihood of images under the probability flow of a denoiser."""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sampling.flow import Solver, solve_flow
from score_flow.model import Denoiser
from score_flow.numerics import value_and_divergence
from score_flow.types import Images, Keys

Probe = Literal["rademacher", "gaussian", "exact"]
Floats = Float[Array, "b"] | Float[np.ndarray, "b"]


class LogLikelihood(NamedTuple):
    """log p(x0) in nats, the latent it was mapped to, batched network calls (divergence included), and success."""

    log_prob: Float[Array, "b"]
    z: Images
    n_evaluations: Int[Array, ""]
    ok: Bool[Array, "b"]
    calls: Int[Array, "b"]  # of each image's own steps


def probes(keys: Keys, kind: Probe, n: int, *, shape: tuple[int, ...]) -> Float[Array, "p b *d"]:
    """Draw probe vectors, E[e e^T] = I: n random ones, or all d basis vectors times sqrt(d), whose mean is exact."""
    if kind == "exact":
        d = math.prod(shape)
        basis = math.sqrt(d) * jnp.eye(d).reshape(d, 1, *shape)
        return jnp.broadcast_to(basis, (d, keys.shape[0], *shape))
    draw = jax.random.rademacher if kind == "rademacher" else jax.random.normal
    return jax.vmap(lambda i: jax.vmap(lambda key: draw(jax.random.fold_in(key, i), shape, jnp.float32))(keys))(
        jnp.arange(n)
    )


def log_likelihood(
    keys: Keys,
    denoiser: Denoiser,
    x0: Images,
    *,
    solver: Solver,
    t_min: float = 1e-5,
    t_max: float = 1.0,
    probe: Probe = "rademacher",
    n_probes: int = 1,
) -> LogLikelihood:
    """Integrate log p(x0) = log N(z; 0, sigma(t_max)^2 I) + int div velocity dt, z = x(t_max).

    (Song et al. 2021, eq. 39, arXiv:2011.13456.) x0 is taken as the state at t_min. Probes are drawn once and kept for
    the whole solve, so that the right-hand side is a function of (t, x) and the solver's error control means what it
    says.
    """
    e = jnp.moveaxis(probes(keys, probe, n_probes, shape=x0.shape[1:]), 0, 1)  # (b, p, *d): solvers may slice the batch
    e = e.astype(x0.dtype)

    def field(t, y, args):
        e, condition = args
        velocity = lambda x: denoiser.given(condition).velocity(x, t)  # noqa: E731
        value, divergence = value_and_divergence(velocity, y[0], jnp.moveaxis(e, 1, 0))
        return value, divergence / d

    d = math.prod(x0.shape[1:])
    y0 = (x0, jnp.zeros(x0.shape[0], x0.dtype))  # log p per dimension: its tolerance is then one of bits/dim
    args = e, denoiser.condition
    (z, integral), stats = solve_flow(field, denoiser.path, y0, solver=solver, t0=t_min, t1=t_max, args=args)
    log_prob = denoiser.path.prior_log_prob(z, t_max) + d * integral
    return LogLikelihood(log_prob, z, stats.n_evaluations, stats.ok, stats.calls)


def bits_per_dim(log_prob: Floats, d: int, bits_offset: float | Floats) -> Floats:
    """Return -log2 p of the pixel levels, a dimension; bits_offset is the data scaling's, or a dequantiser's bits."""
    return -log_prob / (d * math.log(2)) + bits_offset
