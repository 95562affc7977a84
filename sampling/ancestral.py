"""Ancestral DDPM sampling."""

from typing import Annotated

import jax.numpy as jnp

from sampling.base import WHERE, Kernel, Sampler, chain_sampler
from score_flow.config.hints import Count, UnitTime, limited
from score_flow.config.limits import Limits, check_times
from score_flow.process.grid import GridChoice, choose_in_chain, intervals
from score_flow.process.transition import Gaussian, forward_step, posterior
from score_flow.types import UserError

VARIANCES = ("small", "large", "range", "log")


def ancestral(variance: str = "small") -> Kernel:
    """q(x_s | x_t, x0) at x0 = E[x0 | x_t], its variance the posterior's ("small") or the forward step's ("large").

    Ho et al. 2020, sec. 3.2, arXiv:2006.11239: the two are exact for a point mass and for N(0, I) data. "range": the
    network's second output v in [-1, 1] says where between them, log variance = (1 + v)/2 log large + (1 - v)/2 log
    small (Nichol and Dhariwal 2021, eq. 15, arXiv:2102.09672). "log": v is log variance itself. The names are those of
    training.variance.
    """

    def kernel(denoiser, x, s, t) -> Gaussian:
        estimate = denoiser.estimate(x, t)
        law = posterior(denoiser.path, x, estimate.x0, s, t)
        if variance == "small":
            return law
        large = forward_step(denoiser.path, s, t)[1]
        if variance == "large":
            return Gaussian(law.mean, large)
        if estimate.variance is None:
            raise UserError(
                f"{WHERE}.variance = {variance} (name = ancestral) needs a network trained with model.learn_sigma."
            )
        if variance == "log":
            return Gaussian(law.mean, jnp.exp(estimate.variance / 2))
        share = (1 + estimate.variance) / 2
        return Gaussian(law.mean, large**share * law.std ** (1 - share))

    return kernel


@limited(WHERE)
def build(
    t_min: UnitTime = 1e-3,
    t_max: UnitTime = 1.0,
    n_steps: Count = 1000,
    grid: GridChoice = "uniform",
    variance: Annotated[str, Limits(among=VARIANCES)] = "small",
    respacing: str = "",
) -> Sampler:
    """n_steps ancestral steps from t_max to t_min, or those that a respacing keeps ("250") of a chain of n_steps."""
    check_times(WHERE, t_min, t_max)
    times = choose_in_chain(WHERE, grid, n_steps, respacing)
    return chain_sampler([ancestral(variance)], lambda path: intervals(times(path, n_steps, t_min, t_max)))
