"""The likelihood of images under the few steps of a flow map, as what they are: a change of variables."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from score_flow.model import Denoiser
from score_flow.process.grid import Intervals
from score_flow.types import Images

ITERATIONS = 12  # of Newton's method: from a guess that is near, each squares the error
GUESS = 4  # steps of Heun's method that lead to the guess
SHARES = tuple(0.5**k for k in range(6))  # of a Newton step, of which the best is taken


class ByInversion(NamedTuple):
    """log p(x0) in nats, the latent, and whether it was found."""

    log_prob: Float[Array, "b"]
    z: Images
    ok: Bool[Array, "b"]


def log_density(denoiser: Denoiser, x0: Images, intervals: Intervals, *, tolerance: float = 1e-5) -> ByInversion:
    """Return log p(x0) = log N(z; 0, sigma(t_max)^2 I) - sum log |det d x_s/d x_t| over steps x_s = x_t - (t - s) u.

    Each step is inverted by Newton's method, from where the flow of the velocity u(x, t, t) leads, with the whole
    Jacobian: d forward derivatives an iteration, so that this is for small images. x0 has one preimage if the steps are
    one to one, and p is exact; of several the others would add to p, so that -log p is not more than this says.
    ok: the steps lead from z back to x0, to the tolerance as a share of 1 + |x|.
    """
    size = math.prod(x0.shape[1:])

    def back(carry, interval):
        x_s, log_prob, ok = carry
        s, t = interval
        step = lambda x: x - (t - s) * denoiser.average_velocity(x, t, s)  # noqa: E731
        x_t, arrived = _solved(step, x_s, _guess(denoiser, x_s, s, t), tolerance)
        log_det = one_by_one(lambda matrix: jnp.linalg.slogdet(matrix).logabsdet, _jacobian(step, x_t, size))
        return (x_t, log_prob - log_det, ok & arrived), None

    start = x0, jnp.zeros(len(x0), x0.dtype), jnp.ones(len(x0), bool)
    (z, log_prob, ok), _ = jax.lax.scan(back, start, jnp.asarray(intervals, x0.dtype)[::-1])
    return ByInversion(log_prob + denoiser.path.prior_log_prob(z, float(intervals[0, 1])), z, ok)


def _guess(denoiser: Denoiser, x: Images, s: Float[Array, ""], t: Float[Array, ""]) -> Images:
    """x_t of the flow through (x, s), by Heun's method."""
    h = (t - s) / GUESS

    def step(x, i):
        at = s + i * h
        first = denoiser.velocity(x, at)
        return x + h / 2 * (first + denoiser.velocity(x + h * first, at + h)), None

    return jax.lax.scan(step, x, jnp.arange(GUESS, dtype=x.dtype))[0]


def _jacobian(step, x: Images, size: int) -> Float[Array, "b d d"]:
    """Return the derivative of each example of a step, which mixes none."""
    basis = jnp.eye(size, dtype=x.dtype).reshape(size, 1, *x.shape[1:])
    along = lambda e: jax.jvp(step, (x,), (jnp.broadcast_to(e, x.shape),))[1]  # noqa: E731
    columns = jax.lax.map(along, basis)
    return jnp.moveaxis(columns.reshape(size, len(x), size), 0, 2)


def one_by_one(of, *arrays: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """Map over examples in turn, what LAPACK does of matrices.

    Of a batch jaxlib 0.10 hands the parts to the pool of threads that it runs in itself, and waits for them: with a
    program on each of several devices of a CPU all threads wait so, and none is left to work. Not so of one matrix.
    """
    return jax.lax.map(lambda each: of(*each), arrays)


def _solved(step, wanted: Images, x: Images, tolerance: float) -> tuple[Images, Bool[Array, "b"]]:
    """(x that a step leads to what is wanted, whether it does), by Newton's method from a guess."""
    size = math.prod(x.shape[1:])
    norm = lambda error: jnp.max(jnp.abs(error.reshape(len(error), -1)), axis=1)  # noqa: E731
    far = lambda x: norm(step(x) - wanted)  # noqa: E731

    def iterate(carry):
        i, x, done = carry
        error = (step(x) - wanted).reshape(len(x), size, 1)
        change = one_by_one(jnp.linalg.solve, _jacobian(step, x, size), error).reshape(x.shape)
        tried = jnp.stack([x - share * change for share in SHARES])
        best = jnp.argmin(jnp.nan_to_num(jax.lax.map(far, tried), nan=jnp.inf), axis=0)
        # Who has arrived stays, whatever others need: no result depends on the batch.
        x = jnp.where(done.reshape(-1, *(1,) * (x.ndim - 1)), x, tried[best, jnp.arange(len(x))])
        return i + 1, x, arrived(x)

    arrived = lambda x: far(x) <= tolerance * (1 + norm(wanted))  # noqa: E731
    left = lambda carry: (carry[0] < ITERATIONS) & ~jnp.all(carry[2])  # noqa: E731
    _, x, done = jax.lax.while_loop(left, iterate, (0, x, arrived(x)))
    return x, done
