"""The reverse SDE by diffrax, with any diffusion w(t) >= 0."""

from collections.abc import Callable
from typing import Annotated

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
from jaxtyping import PyTree

from sampling.base import WHERE, Kernel, Sampler, Samples, chain, finite, split
from score_flow.config.hints import Count, NotNegative, UnitTime, limited
from score_flow.config.limits import Limits, check_times
from score_flow.model import Denoiser, score_of, velocity_of
from score_flow.paths.base import Coefficients
from score_flow.process.grid import GridChoice, choose, intervals
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


def stable(w: Times, c: Coefficients, step: Times | float) -> Times:
    """w cut to 2 sigma^2 / step, above which an explicit step overshoots the noise's own contraction w/(2 sigma^2).

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


def unbounded(w: Times, c: Coefficients, step: Times | float) -> Times:
    """w as it is, in place of `stable`: the published samplers, which are NaN where w is infinite."""
    return w


def noise_first_heun(w: Callable[[Coefficients, Times], Times], bound: Callable = stable) -> Kernel:
    """SiT's Heun step: the noise of the step first, then Heun's rule on the drift alone (arXiv:2401.08740)."""

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
    times: np.ndarray,
    w: Callable[[Coefficients, Times], Times],
    method: str,
    bound: Callable = stable,
) -> Images:
    """dx = [velocity - w/2 score] dt + sqrt(w) dW, run down the descending times (arXiv:2401.08740, eq. 5).

    Solved in tau = times[0] - t, forwards: diffrax 0.7.2's stochastic Runge-Kutta methods are silently wrong backwards.
    """
    if method == "noise_first_heun":
        return chain(keys, [noise_first_heun(w, bound)], denoiser, x, intervals(times))
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

    solver = METHODS[method][0]()
    levy = diffrax.SpaceTimeLevyArea if method in ("shark", "sra1") else diffrax.BrownianIncrement
    noise = ExampleNoise(keys, x.shape[1:], levy)
    steps = np.asarray(t_max - times, x.dtype)
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


def last(
    denoiser: Denoiser, x: Images, t: float, step: float, kind: str, w: Callable, bound: Callable = stable
) -> Images:
    """The noise-free last step from t: mean (the SDE's drift), euler (the flow), or tweedie (E[x0 | x_t])."""
    if kind == "none":
        return x
    t = jnp.asarray(t, x.dtype)
    c = denoiser.path.at(t)
    estimate, w_t = denoiser.estimate(x, t), bound(w(c, t), c, step)
    if kind == "tweedie":
        return estimate.x0
    velocity = velocity_of(estimate, c)
    return x - step * (velocity - 0.5 * w_t * score_of(estimate, c) if kind == "mean" else velocity)


@limited(WHERE)
def build(
    t_min: UnitTime = 1e-3,
    t_max: UnitTime = 1.0,
    n_steps: Count = 250,
    method: Annotated[str, Limits(among=tuple(METHODS))] = "euler",
    grid: GridChoice = "uniform",
    diffusion: Annotated[str, Limits(among=tuple(DIFFUSIONS))] | Callable[[Coefficients, Times, float], Times] = "g2",
    norm: NotNegative = 1.0,
    last_step: Annotated[str, Limits(among=LAST_STEPS)] = "mean",
    last_step_size: UnitTime = 0.0,
    bounded: bool = True,
) -> Sampler:
    """The reverse-SDE sampler: n_steps steps to max(t_min, last_step_size), then the last step down from there.

    last_step_size = 0 stands for t_min: the last step then goes from t_min to 0. bounded = False leaves w as it is
    (see `stable`), as SiT does.
    """
    check_times(WHERE, t_min, t_max)
    grid_times = choose(f"{WHERE}.grid", grid)
    form = diffusion if callable(diffusion) else DIFFUSIONS[diffusion]
    t_end = t_min if last_step == "none" else max(t_min, last_step_size)
    check_times(WHERE, t_end, t_max, ("t_min", "t_max") if t_end == t_min else ("last_step_size", "t_max"))
    bound = stable if bounded else unbounded

    def w(c, t):
        return form(c, t, norm)

    def sample(keys: Keys, denoiser: Denoiser, shape: tuple[int, ...]) -> Samples:
        prior_keys, noise_keys = split(keys)
        times = grid_times(denoiser.path, n_steps, t_end, t_max)
        if method == "noise_first_heun":  # a chain, here to its last step
            denoiser = denoiser.in_chain()
        x = denoiser.start(prior_keys, shape, float(times[0]))
        x = reverse_sde(noise_keys, denoiser, x, times, w, method, bound)
        end = float(times[-1])
        kind = last_step if end > 0 else "none"
        x = last(denoiser, x, end, end, kind, w, bound)
        x = denoiser.constrain(x, x, jnp.zeros_like(x), jnp.zeros(()))[1]
        calls = (len(times) - 1) * METHODS[method][1] + (kind != "none")
        return Samples(x, jnp.asarray(calls), finite(x))

    return sample
