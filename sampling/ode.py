"""The probability-flow ODE."""

from typing import Any

from sampling.base import WHERE, Sampler, Samples
from sampling.flow import Control, Method, Solver, flow
from score_flow.config.hints import Count, Positive, UnitTime, Whole, limited
from score_flow.config.limits import check_times
from score_flow.model import Denoiser
from score_flow.process.grid import GridChoice
from score_flow.types import Keys


def described(t_min: float, t_max: float, **settings: Any) -> str:
    """Say what a sampler of these settings does, in words."""
    solver = Solver(**settings)
    given = solver.fixed and not isinstance(solver.grid, str)
    return solver.described() + ("" if given else f" t_min={t_min:g} t_max={t_max:g}")


@limited(WHERE)
def build(
    t_min: UnitTime = 1e-5,
    t_max: UnitTime = 1.0,
    method: Method = "tsit5",
    *,
    rtol: Positive = 1e-5,
    atol: Positive = 1e-5,
    n_steps: Whole = 0,
    grid: GridChoice = "uniform",
    per_example: bool = True,
    max_steps: Count = 4096,
    control: Control = "pi",
) -> Sampler:
    """Carry a prior draw at t_max to t_min along the probability flow; the other fields as in Solver.

    Times that are given one by one have their own ends, in place of t_max and t_min.
    """
    check_times(WHERE, t_min, t_max)
    solver = Solver(
        method, rtol, atol, n_steps=n_steps, grid=grid, per_example=per_example, max_steps=max_steps, control=control,
        where=WHERE,
    )  # fmt: skip

    def sample(keys: Keys, denoiser: Denoiser, shape: tuple[int, ...]) -> Samples:
        start, end = t_max, t_min
        if solver.fixed:
            start, *_, end = solver.times(denoiser.path, t_min, t_max).tolist()
        x, stats = flow(denoiser, denoiser.start(keys, shape, start), solver, t0=start, t1=end)
        return Samples(x, stats.n_evaluations, stats.ok, stats.calls)

    return sample
