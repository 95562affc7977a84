"""Predictor-corrector sampling (Song et al. 2021, alg. 1, arXiv:2011.13456)."""

import math

import jax.numpy as jnp

from sampling.ancestral import ancestral as ancestral_kernel
from sampling.base import Kernel, Sampler, chain_sampler
from sampling.sde import stable
from score_flow.grid import GRIDS, intervals
from score_flow.model import score_of, velocity_of
from score_flow.numerics import expand, sum_flat
from score_flow.transition import Gaussian, forward_step
from score_flow.types import UserError, check_choice


def euler(denoiser, x, s, t) -> Gaussian:
    """Euler-Maruyama on the reverse SDE over t - s."""
    c, step = denoiser.path.at(t), t - s
    w, estimate = stable(c.g2, c, step), denoiser.estimate(x, t)
    drift = velocity_of(estimate, c) - 0.5 * w * score_of(estimate, c)
    return Gaussian(x - step * drift, jnp.sqrt(w * step))


def reverse_diffusion(denoiser, x, s, t) -> Gaussian:
    """The forward step x_t = a x_s + b z turned round: (2 - a) x + b^2 score (Song et al. 2021, eq. 46)."""
    a, b = forward_step(denoiser.path, s, t)
    return Gaussian((2 - a) * x + b**2 * denoiser.score(x, t), b)


def langevin(snr: float = 0.16) -> Kernel:
    """A Langevin step of size 2 a (snr sqrt(d)/|score|)^2 at t, a = (alpha_t/alpha_s)^2 (arXiv:2011.13456, alg. 4, 5).

    sqrt(d) stands for the norm of the noise and |score| is each example's own: the published step takes batch means of
    both, which makes a sample depend on its batch.
    """

    def kernel(denoiser, x, s, t) -> Gaussian:
        score = denoiser.score(x, t)
        a = (denoiser.path.alpha(t) / denoiser.path.alpha(s)) ** 2
        step = expand(2 * a * snr**2 * math.prod(x.shape[1:]) / sum_flat(score**2), x)
        return Gaussian(x + step * score, jnp.sqrt(2 * step))

    return kernel


def annealed_langevin(snr: float = 0.16) -> Kernel:
    """A Langevin step of size 2 a (snr sigma_t)^2 at t (Song & Ermon 2019, alg. 1, arXiv:1907.05600)."""

    def kernel(denoiser, x, s, t) -> Gaussian:
        a = (denoiser.path.alpha(t) / denoiser.path.alpha(s)) ** 2
        step = 2 * a * (snr * denoiser.path.sigma(t)) ** 2
        return Gaussian(x + step * denoiser.score(x, t), jnp.sqrt(2 * step))

    return kernel


ancestral: Kernel = ancestral_kernel("small")

PREDICTORS: dict[str, Kernel] = {"euler": euler, "reverse_diffusion": reverse_diffusion, "ancestral": ancestral}
CORRECTORS = {"langevin": langevin, "annealed_langevin": annealed_langevin}


def build(
    t_min: float = 1e-3,
    t_max: float = 1.0,
    n_steps: int = 1000,
    grid: str = "uniform",
    predictor: str = "reverse_diffusion",
    corrector: str = "",
    snr: float = 0.16,
    n_corrector_steps: int = 1,
) -> Sampler:
    """n_steps intervals, on each n_corrector_steps corrections at t and one prediction; an empty name is none."""
    check_choice("sampler predictor_corrector: predictor", predictor, ["", *PREDICTORS])
    check_choice("sampler predictor_corrector: corrector", corrector, ["", *CORRECTORS])
    check_choice("sampler predictor_corrector: grid", grid, GRIDS)
    if not predictor and not corrector:
        raise UserError("sampler predictor_corrector: name a predictor, a corrector, or both.")
    kernels = [CORRECTORS[corrector](snr)] * n_corrector_steps if corrector else []
    kernels += [PREDICTORS[predictor]] if predictor else []
    return chain_sampler(kernels, lambda path: intervals(GRIDS[grid](path, n_steps, t_min, t_max)), t_max)
