"""The probability flow by diffrax: the one ODE solve of the program, for sampling, encoding and likelihood."""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sampling.base import finite
from score_flow.config import registries
from score_flow.config.hints import Count, Positive, Whole, check_fields
from score_flow.config.limits import Limits
from score_flow.errors import UserError
from score_flow.model import Denoiser
from score_flow.paths.base import Path
from score_flow.process.grid import Grid, choose, listed


def library() -> ModuleType:
    """Return diffrax, loaded when it is first needed: that takes a second, which a start of training need not wait."""
    with jax.ensure_compile_time_eval():  # of a trace that needs it first, its constants are no part
        import diffrax

    return diffrax


def of_diffrax(name: str) -> Callable[[], Any]:
    """Return what makes a solver of diffrax."""
    return lambda: getattr(library(), name)()


# name -> (solver, right-hand sides a step, right-hand sides before the first step). First-same-as-last methods carry
# their last stage over; rejected steps cost the same as accepted ones. diffrax reports steps only: tests count calls.
METHODS = {
    "euler": (of_diffrax("Euler"), 1, 0),
    "midpoint": (of_diffrax("Midpoint"), 2, 0),
    "heun": (of_diffrax("Heun"), 2, 0),
    "ralston": (of_diffrax("Ralston"), 2, 0),
    "bosh3": (of_diffrax("Bosh3"), 3, 1),
    "tsit5": (of_diffrax("Tsit5"), 6, 1),
    "dopri5": (of_diffrax("Dopri5"), 6, 1),
    "dopri8": (of_diffrax("Dopri8"), 13, 1),
}

# name -> (proportional, integral) exponents of the step control (Hairer & Wanner 1996, IV.2). integral is what scipy's
# RK45 does. On Gaussians, whose bits/dim are known, it misses 1e-5 by half at rtol = atol = 1e-5; pi stays below that
# on every path, for a fifth to a half more calls, and so far from rejecting steps that rounding (other devices) rarely
# decides on one.
CONTROLS = {"pi": (0.3, 0.4), "integral": (0.0, 1.0)}
SAFETY = 0.8

Method = Annotated[str, Limits(among=registries.METHODS)]
Control = Annotated[str, Limits(among=registries.STEP_CONTROLS)]


@dataclasses.dataclass(frozen=True)
class Solver:
    """How to integrate: a method with an error-controlled step (n_steps = 0), or n_steps steps on a time grid.

    grid: a name, or the times of the steps one by one, which must run from one end of the integral to the other.
    per_example: each example has its own steps (the result does not depend on the batch); otherwise the whole batch
    shares them, controlled by the mean error. control: pi is the more exact one, integral the one with fewer calls.
    """

    method: Method = "bosh3"
    rtol: Positive = 7e-5
    atol: Positive = 7e-5
    _: dataclasses.KW_ONLY
    n_steps: Whole = 0
    grid: str | tuple[float, ...] = "uniform"
    per_example: bool = True
    max_steps: Count = 4096
    control: Control = "pi"
    where: str = dataclasses.field(default="config.eval.solver", compare=False, repr=False)

    def __post_init__(self):
        check_fields(self, self.where)
        choose(f"{self.where}.grid", self.grid)
        self.rows()
        if not self.fixed and self.method == "euler":
            raise UserError(f"{self.where}.method = euler has no error estimate: give {self.where}.n_steps.")

    @property
    def fixed(self) -> bool:
        """Say whether the steps are those of a grid."""
        return self.n_steps > 0 or listed(self.grid)

    def described(self) -> str:
        """Say what was solved with, in words: of fixed steps no tolerances, of adaptive ones no grid."""
        if not self.fixed:
            return f"{self.method} rtol {self.rtol:g} atol {self.atol:g}"
        if isinstance(self.grid, str):
            return f"{self.method} {self.n_steps} {self.grid} steps"
        return f"{self.method} {len(self.grid) - 1} steps at given times"

    def refuse(self, path: Path, t_min: float, t_max: float) -> None:
        """Raise UserError where it cannot integrate from one time to the other, before it has to."""
        _steps(self, path, t0=t_min, t1=t_max)

    def times(self, path: Path, t_min: float, t_max: float) -> Grid:
        """Return the times of fixed steps, descending."""
        return choose(f"{self.where}.grid", self.grid)(path, self.n_steps, t_min, t_max)

    def rows(self) -> tuple[tuple[Any, int, int], tuple[float, float]]:
        """Look its method and its control up in their tables; raises UserError where another package has no such."""
        method = registries.METHODS.entry(self.method, f"{self.where}.method")
        return method, registries.STEP_CONTROLS.entry(self.control, f"{self.where}.control")


Time = float | Float[Array, ""]  # traced ones only with adaptive steps


class Stats(NamedTuple):
    """Batched right-hand sides evaluated, steps of each example, which arrived with finite values, their own calls."""

    n_evaluations: Int[Array, ""]
    n_steps: Int[Array, "b"]
    ok: Bool[Array, "b"]
    calls: Int[Array, "b"]  # right-hand sides that each example's own steps took


def solve_flow(
    field: Callable[[Any, Any, Any], Any], path: Path, y: Any, *, solver: Solver, t0: Time, t1: Time, args: Any = None
) -> tuple[Any, Stats]:
    """Integrate dy/dt = field(t, y, args) from t0 to t1, either way; y and args are trees whose leaves have axis 0 = b.

    field sees whole batches, (1, ...) ones when per_example. It is never called outside [t0, t1]. Nothing raises inside
    jit: a failed example has ok = False.
    """
    diffrax = library()
    method, per_step, first = solver.rows()[0]
    steps, max_steps = _steps(solver, path, t0=t0, t1=t1)

    def solve(y, args):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field), method(), t0, t1, None, y, args, stepsize_controller=steps,
            max_steps=max_steps, throw=False,
        )  # fmt: skip
        y = jax.tree.map(lambda leaf: leaf[0], solution.ys)
        return y, solution.stats["num_steps"], solution.result == diffrax.RESULTS.successful

    if solver.per_example:

        def alone(y, args):
            y, n, ok = solve(*jax.tree.map(lambda leaf: leaf[None], (y, args)))
            return jax.tree.map(lambda leaf: leaf[0], y), n, ok

        y, n_steps, ok = jax.vmap(alone)(y, args)
    else:
        y, n, ok = solve(y, args)
        b = jax.tree.leaves(y)[0].shape[0]
        n_steps, ok = jnp.full(b, n), jnp.full(b, ok)
    for leaf in jax.tree.leaves(y):
        ok = ok & finite(leaf)
    # Under vmap the loop runs until the slowest example arrives: that is what the device pays for.
    return y, Stats(jnp.max(n_steps) * per_step + first, n_steps, ok, n_steps * per_step + first)


def _steps(solver: Solver, path: Path, *, t0: Time, t1: Time) -> tuple[Any, int]:
    """Return diffrax's controller of the steps, and how many there may be."""
    diffrax = library()
    if not solver.fixed:
        proportional, integral = solver.rows()[1]
        controller = diffrax.PIDController(
            rtol=solver.rtol, atol=solver.atol, norm=_worst_part, pcoeff=proportional, icoeff=integral, safety=SAFETY
        )
        return controller, solver.max_steps
    times = solver.times(path, min(t0, t1), max(t0, t1))
    if sorted((t0, t1)) != [times[-1], times[0]]:
        raise UserError(f"{solver.where}.grid runs from {times[0]} to {times[-1]}, the integral from {t0} to {t1}.")
    ts = jnp.asarray(times if t1 < t0 else times[::-1], jnp.result_type(float))
    return diffrax.StepTo(ts=ts), len(times) - 1


def _worst_part(error: Any) -> Float[Array, ""]:
    # The rms of all numbers together would let log p, one number beside the d of x, drift unnoticed.
    return jnp.max(jnp.stack([jnp.sqrt(jnp.mean(leaf**2)) for leaf in jax.tree.leaves(error)]))


def velocity_field(denoiser: Denoiser) -> Callable[[Any, Any, Any], Any]:
    """Return the probability-flow velocity as diffrax wants it; args is the condition of the batch that is stepped."""
    return lambda t, x, condition: denoiser.given(condition).velocity(x, t)


def flow(denoiser: Denoiser, x: Any, solver: Solver, *, t0: Time, t1: Time) -> tuple[Any, Stats]:
    """Transport x from time t0 to t1 along the probability flow (Song et al. 2021, eq. 13, arXiv:2011.13456)."""
    field = velocity_field(denoiser)
    return solve_flow(field, denoiser.path, x, solver=solver, t0=t0, t1=t1, args=denoiser.condition)
