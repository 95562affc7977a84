"""DDIM sampling."""

from sampling.base import WHERE, Sampler, chain_sampler
from sampling.kernels import ddim
from score_flow.config.hints import Count, NotNegative, UnitTime, limited
from score_flow.config.limits import check_times
from score_flow.process.grid import GridChoice, choose_in_chain, intervals


@limited(WHERE)
def build(
    t_min: UnitTime = 1e-3,
    t_max: UnitTime = 1.0,
    n_steps: Count = 100,
    *,
    grid: GridChoice = "uniform",
    eta: NotNegative = 0.0,
    respacing: str = "",
) -> Sampler:
    """Take n_steps DDIM steps from t_max to t_min, or those that a respacing keeps ("ddim50") of a chain of n_steps."""
    check_times(WHERE, t_min, t_max)
    times = choose_in_chain(WHERE, grid, n_steps, respacing)
    return chain_sampler([ddim.predictor(eta)], lambda path: intervals(times(path, n_steps, t_min, t_max)))
