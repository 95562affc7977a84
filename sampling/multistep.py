"""DPM-Solver++ sampling (Lu et al. 2022, arXiv:2211.01095)."""

from typing import Annotated

from sampling.base import WHERE, Sampler
from sampling.exponential import VARIANTS, dpm_solver
from sampling.recursion import Recursion, recursion_sampler
from score_flow.config.hints import Count, UnitTime, limited
from score_flow.config.limits import Limits, check_times
from score_flow.paths.base import Path
from score_flow.process.grid import GridChoice, choose


@limited(WHERE)
def build(
    t_min: UnitTime = 1e-3,
    t_max: UnitTime = 1.0,
    n_steps: Count = 20,
    *,
    grid: GridChoice = "log_snr",
    order: Annotated[int, Limits(least=1, most=3)] = 2,
    variant: Annotated[str, Limits(among=tuple(VARIANTS))] = "ode",
) -> Sampler:
    """Take n_steps steps of DPM-Solver++(order M), deterministic ("ode") or stochastic ("sde"); a network call each."""
    check_times(WHERE, t_min, t_max)
    times = choose(f"{WHERE}.grid", grid)

    def rows(path: Path) -> Recursion:
        return dpm_solver(path, times(path, n_steps, t_min, t_max), order, variant=variant)

    return recursion_sampler(rows)
