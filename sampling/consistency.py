"""Sampling by jumps to the data: consistency models' algorithm, for every flow map."""

from sampling.base import WHERE, Sampler, Samples, chain_sampler
from sampling.kernels import consistency
from score_flow.config.hints import Count, UnitTime, limited
from score_flow.config.limits import check_times
from score_flow.errors import UserError
from score_flow.model import Denoiser
from score_flow.process.grid import GridChoice, choose, intervals
from score_flow.types import Keys


@limited(WHERE)
def build(
    t_min: UnitTime = 0.0, t_max: UnitTime = 1.0, n_steps: Count = 1, *, grid: GridChoice = "uniform"
) -> Sampler:
    """Jump n_steps times to t_min, the first time from t_max, each next from where noise leads back to on the grid.

    Of a network that knows average velocities (config.model.span), or those to t_min = 0 (config.model.consistency).
    """
    check_times(WHERE, t_min, t_max)
    times = choose(f"{WHERE}.grid", grid)

    def sample(keys: Keys, denoiser: Denoiser, shape: tuple[int, ...]) -> Samples:
        rows = intervals(times(denoiser.path, n_steps, t_min, t_max))
        end = float(rows[-1, 0])
        if denoiser.consistency and end:
            raise UserError(f"a consistency model jumps to t = 0 alone: {WHERE}.t_min is {end:g}, set it to 0.")
        return chain_sampler([consistency.predictor(end)], lambda path: rows)(keys, denoiser, shape)

    return sample
