"""Sampling by a flow map: one network call, or a few."""

from sampling.base import WHERE, Sampler, Samples, chain_sampler
from sampling.kernels import flow_map
from score_flow.config.hints import Count, UnitTime, limited
from score_flow.config.limits import check_times
from score_flow.errors import UserError
from score_flow.model import Denoiser
from score_flow.process.grid import GridChoice, choose, intervals
from score_flow.types import Keys


@limited(WHERE)
def build(
    t_min: UnitTime = 1e-5, t_max: UnitTime = 1.0, n_steps: Count = 1, *, grid: GridChoice = "uniform"
) -> Sampler:
    """Take n_steps steps of a network that knows average velocities (config.model.span) from t_max to t_min."""
    check_times(WHERE, t_min, t_max)
    times = choose(f"{WHERE}.grid", grid)
    of_path = lambda path: intervals(times(path, n_steps, t_min, t_max))  # noqa: E731
    steps = chain_sampler([flow_map.predictor()], of_path)

    def sample(keys: Keys, denoiser: Denoiser, shape: tuple[int, ...]) -> Samples:
        if denoiser.consistency:
            raise UserError(f"a consistency model jumps to t = 0 alone: set {WHERE}.name = consistency.")
        return steps(keys, denoiser, shape)

    sample.intervals = of_path  # what inverts its steps asks for them
    return sample
