"""Ancestral DDPM sampling."""

from sampling.base import Kernel, Sampler, chain_sampler
from score_flow.grid import GRIDS, intervals
from score_flow.transition import Gaussian, forward_step, posterior
from score_flow.types import check_choice


def ancestral(variance: str = "small") -> Kernel:
    """q(x_s | x_t, x0) at x0 = E[x0 | x_t], its variance the posterior's ("small") or the forward step's ("large").

    Ho et al. 2020, sec. 3.2, arXiv:2006.11239: the two are exact for a point mass and for N(0, I) data.
    """

    def kernel(denoiser, x, s, t) -> Gaussian:
        law = posterior(denoiser.path, x, denoiser.x0(x, t), s, t)
        return law if variance == "small" else Gaussian(law.mean, forward_step(denoiser.path, s, t)[1])

    return kernel


def build(
    t_min: float = 1e-3,
    t_max: float = 1.0,
    n_steps: int = 1000,
    grid: str = "uniform",
    variance: str = "small",
) -> Sampler:
    """n_steps ancestral steps from t_max to t_min."""
    check_choice("sampler ancestral: variance", variance, ("small", "large"))
    check_choice("sampler ancestral: grid", grid, GRIDS)
    return chain_sampler([ancestral(variance)], lambda path: intervals(GRIDS[grid](path, n_steps, t_min, t_max)), t_max)
