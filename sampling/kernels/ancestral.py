"""Ancestral steps of a chain (Ho et al. 2020, arXiv:2006.11239)."""

import jax.numpy as jnp

from sampling.base import WHERE, Kernel
from sampling.published import ChainGiven, PublishedChain
from score_flow.errors import UserError
from score_flow.numerics import expand
from score_flow.process.transition import Gaussian, forward_step, posterior

VARIANCES = ("small", "large", "range", "log")


def predictor(chain: ChainGiven = None) -> Kernel:
    """Take q(x_s | x_t, x0) at x0 = E[x0 | x_t], or take a published chain's step."""
    return published(chain) if chain else ancestral()


def ancestral(variance: str = "small") -> Kernel:
    """Take q(x_s | x_t, x0) at x0 = E[x0 | x_t], of the posterior's variance ("small") or the forward step's ("large").

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


def published(chain: PublishedChain) -> Kernel:
    """Take a published chain's ancestral step, (x + b^2 score)/a (Ho et al. 2020, eq. 11; Song et al. 2021, eq. 47)."""

    def kernel(denoiser, x, s, t) -> Gaussian:
        a, b, std = (expand(value, x) for value in chain.step(denoiser.path, s, t))
        return Gaussian((x + b**2 * denoiser.score(x, t)) / a, std)

    return kernel
