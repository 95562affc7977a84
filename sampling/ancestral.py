"""Ancestral DDPM sampling."""

from typing import Annotated

from sampling.base import WHERE, Sampler, chain_sampler
from sampling.kernels.ancestral import VARIANCES, ancestral
from score_flow.config.hints import Count, UnitTime, limited
from score_flow.config.limits import Limits, check_times
from score_flow.process.grid import GridChoice, choose_in_chain, intervals


@limited(WHERE)
def build(
    t_min: UnitTime = 1e-3,
    t_max: UnitTime = 1.0,
    n_steps: Count = 1000,
    *,
    grid: GridChoice = "uniform",
    variance: Annotated[str, Limits(among=VARIANCES)] = "small",
    respacing: str = "",
) -> Sampler:
    """Take n_steps steps from t_max to t_min, or those of a chain of n_steps that a respacing keeps ("250")."""
    check_times(WHERE, t_min, t_max)
    times = choose_in_chain(WHERE, grid, n_steps, respacing)
    return chain_sampler([ancestral(variance)], lambda path: intervals(times(path, n_steps, t_min, t_max)))
