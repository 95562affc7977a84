"""The reverse SDE by diffrax, with any diffusion w(t) >= 0: its methods, diffusions and last steps."""

from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
from jaxtyping import Array, Float, PyTree

from sampling.base import Kernel, chain
from score_flow.model import Denoiser, score_of, velocity_of
from score_flow.paths.base import Coefficients
from score_flow.process.grid import Grid, intervals
from score_flow.process.transition import Gaussian
from score_flow.types import Images, Keys, Times

LAST_STEPS = ("none", "mean", "tweedie", "euler")

# name -> (solver, network calls a step). All are right for noise that does not depend on the state (Heun's Stratonovich
# integral is then Ito's).
METHODS = {
    "euler": (diffrax.Euler, 1),
    "heun": (diffrax.Heun, 2),
    "shark": (diffrax.ShARK, 2),
    "sra1": (diffrax.SRA1, 2),
    "noise_first_heun": (None, 2),  # SiT's, see below
}

# (coefficients, t, norm) -> w(t). SiT's forms (Ma et al. 2024, arXiv:2401.08740) in our time and with our factor: its w
# is half of ours. "g2" is Anderson's reverse SDE (SiT calls it SBDM), "zero" the probability flow.
DIFFUSIONS: dict[str, Callable[[Coefficients, Times, float], Times]] = {
    "g2": lambda c, t, norm: norm * c.g2,
    "sigma": lambda c, t, norm: 2 * norm * c.sigma,
    "linear": lambda c, t, norm: 2 * norm * t,
    "constant": lambda c, t, norm: 2 * norm * jnp.ones_like(c.sigma),
    "decreasing": lambda c, t, norm: 0.5 * (norm * jnp.cos(jnp.pi * (1 - t)) + 1) ** 2,
    "increasing_decreasing": lambda c, t, norm: 2 * norm * jnp.sin(jnp.pi * (1 - t)) ** 2,
    "zero": lambda c, t, norm: jnp.zeros_like(c.sigma),
}


Diffusion = Callable[[Coefficients, Times], Times]  # w(t)
Rate = Float[Array, "..."]  # w at some times, or with trailing axes, as the coefficients beside it
Bound = Callable[[Rate, Coefficients, Rate | float], Rate]  # (w, coefficients, step) -> the w to step with


def stable(w: Rate, c: Coefficients, step: Rate | float) -> Rate:
    """Cut w to 2 sigma^2 / step, above which an explicit step overshoots the noise's own contraction w/(2 sigma^2).

    Any w >= 0 has the same marginals, so the cut costs no exactness; it makes g2 usable where it is infinite (t = 1 of
    an interpolant) and leaves the published settings as they are.
    """
    return jnp.minimum(w, 2 * c.sigma**2 / step)


class ExampleNoise(diffrax.AbstractBrownianPath):
    """Brownian motion of a batch, one key an example, by diffrax's UnsafeBrownianPath for each."""

    keys: Keys
    shape: tuple[int, ...] = eqx.field(static=True)
    levy_area: type = eqx.field(static=True)

    @property
    def t0(self):
        return None

    @property
    def t1(self):
        return None

    def evaluate(self, t0, t1=None, left: bool = True, use_levy: bool = False) -> PyTree:
        def one(key):
            path = diffrax.UnsafeBrownianPath(self.shape, key, levy_area=self.levy_area)
            return path.evaluate(t0, t1, left, use_levy)

        levy = jax.vmap(one)(self.keys)
        # A Levy area carries its time span once, not once an example.
        return levy if not use_levy else eqx.tree_at(lambda a: a.dt, levy, levy.dt[0])


def unbounded(w: Rate, c: Coefficients, step: Rate | float) -> Rate:
    """Leave w as it is, in place of `stable`: the published samplers, which are NaN where w is infinite."""
    return w


def noise_first_heun(w: Diffusion, bound: Bound = stable) -> Kernel:
    """Take SiT's Heun step: the noise of the step first, then Heun's rule on the drift alone (arXiv:2401.08740)."""

    def kernel(denoiser, x, s, t) -> Callable[[Images], Gaussian]:
        step = t - s

        def drift(x, t):
            c, estimate = denoiser.path.at(t), denoiser.estimate(x, t)
            return velocity_of(estimate, c) - 0.5 * bound(w(c, t), c, step) * score_of(estimate, c)

        def law(noise: Images) -> Gaussian:
            c = denoiser.path.at(t)
            noisy = x + jnp.sqrt(bound(w(c, t), c, step) * step) * noise
            first = drift(noisy, t)
            second = drift(noisy - step * first, s)
            return Gaussian(noisy - 0.5 * step * (first + second), jnp.zeros_like(step))

        return law

    return kernel


def reverse_sde(
    keys: Keys,
    denoiser: Denoiser,
    x: Images,
    *,
    times: Grid,
    w: Diffusion,
    method: str,
    bound: Bound = stable,
) -> Images:
    """Run dx = [velocity - w/2 score] dt + sqrt(w) dW down the descending times (arXiv:2401.08740, eq. 5).

    Solved in tau = times[0] - t, forwards: diffrax 0.7.2's stochastic Runge-Kutta methods are silently wrong backwards.
    """
    if method == "noise_first_heun":
        return chain(keys, denoiser, x, kernels=[noise_first_heun(w, bound)], intervals=intervals(times))
    drift, diffusion = _terms(denoiser, x, times, w=w, bound=bound)
    solver = METHODS[method][0]()
    levy = diffrax.SpaceTimeLevyArea if method in ("shark", "sra1") else diffrax.BrownianIncrement
    noise = ExampleNoise(keys, x.shape[1:], levy)
    steps = np.asarray(float(times[0]) - times, x.dtype)
    solution = diffrax.diffeqsolve(
        diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, noise)),
        solver,
        steps[0],
        steps[-1],
        None,
        x,
        stepsize_controller=diffrax.StepTo(ts=steps),
        max_steps=len(steps) - 1,
        throw=False,
        adjoint=diffrax.ForwardMode(),
    )
    return solution.ys[0]


def _terms(denoiser: Denoiser, x: Images, times: Grid, *, w: Diffusion, bound: Bound) -> tuple[Callable, Callable]:
    """Return drift and diffusion of the SDE in tau, as diffrax wants them."""
    path, t_max = denoiser.path, float(times[0])
    ascending = jnp.asarray(times[::-1], x.dtype)

    def coefficients(tau):
        t = t_max - tau
        c = path.at(t)
        i = jnp.clip(jnp.searchsorted(ascending, t, side="left"), 1, len(times) - 1)
        return t, c, bound(w(c, t), c, ascending[i] - ascending[i - 1])

    def drift(tau, x, _):
        t, c, w_t = coefficients(tau)
        estimate, c = denoiser.estimate(x, t), c.expand(x)
        return -(velocity_of(estimate, c) - 0.5 * w_t * score_of(estimate, c))

    def diffusion(tau, x, _):
        return lineax.DiagonalLinearOperator(jnp.broadcast_to(jnp.sqrt(coefficients(tau)[2]), x.shape))

    return drift, diffusion


def last(
    denoiser: Denoiser, x: Images, t: float, *, step: float, kind: str, w: Diffusion, bound: Bound = stable
) -> Images:
    """Take the noise-free last step from t: mean (the SDE's drift), euler (the flow), or tweedie (E[x0 | x_t])."""
    if kind == "none":
        return x
    t = jnp.asarray(t, x.dtype)
    c = denoiser.path.at(t)
    estimate, w_t = denoiser.estimate(x, t), bound(w(c, t), c, step)
    if kind == "tweedie":
        return estimate.x0
    velocity = velocity_of(estimate, c)
    return x - step * (velocity - 0.5 * w_t * score_of(estimate, c) if kind == "mean" else velocity)
