"""Predictor-corrector sampling (Song et al. 2021, alg. 1, arXiv:2011.13456)."""

import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sampling.ancestral import ancestral as ancestral_kernel
from sampling.base import WHERE, Kernel, Sampler, chain_sampler
from sampling.sde import stable
from score_flow.config.hints import Count, Positive, UnitTime, limited
from score_flow.config.limits import Limits, check_times
from score_flow.model import score_of, velocity_of
from score_flow.numerics import expand, sum_flat
from score_flow.paths.base import Path
from score_flow.process.grid import GridChoice, Intervals, choose, intervals
from score_flow.process.transition import Gaussian, forward_step
from score_flow.types import Images, Times, UserError

NORMS = ("example", "batch")


class Step(NamedTuple):
    """x_t = scale x_s + std noise, and the std of the noise that the ancestral sampler of the chain puts back."""

    scale: Times
    std: Times
    ancestral_std: Times


# (path, s, t) -> (scale, std, ...): transition.forward_step, or a published chain's.
Forward = Callable[[Path, Times, Times], tuple[Times, ...]]


def ddpm_table(path: Path, n: int) -> Float[np.ndarray, "3 n"]:
    """The chain of a VP path, beta_i = beta(i/(n - 1))/n; its ancestral noise is that of the forward step."""
    u = jnp.linspace(0.0, 1.0, n)
    beta = np.asarray(-2 * path.at(u).drift / n)
    preserved = np.asarray(path.alpha(u) ** 2 + path.sigma(u) ** 2)
    if np.abs(preserved - 1).max() > 1e-6 or not ((beta > 0) & (beta < 1)).all():
        raise UserError(f"{WHERE}.chain = ddpm needs a VP path and beta/n < 1, got {path}, n = {n}.")
    return np.stack([np.sqrt(1 - beta), np.sqrt(beta), np.sqrt(beta)])


def smld_table(path: Path, n: int) -> Float[np.ndarray, "3 n"]:
    """The levels sigma_i = sigma(i/(n - 1)) of a VE path, sigma_{-1} = 0 (Song et al. 2021, app. F)."""
    u = jnp.linspace(0.0, 1.0, n)
    sigma = np.asarray(path.sigma(u))
    if np.any(np.asarray(path.alpha(u)) != 1.0):
        raise UserError(f"{WHERE}.chain = smld needs a VE path, got {path}.")
    before = np.concatenate([[0.0], sigma[:-1]])
    std = np.sqrt(sigma**2 - before**2)
    return np.stack([np.ones(n), std, before * std / sigma])


TABLES = {"ddpm": ddpm_table, "smld": smld_table}
CHAINS = (*TABLES, "euler")


def published_step(chain: str, n: int) -> Forward:
    """score_sde's forward step at t: row floor(t (n - 1)) of a table, or Euler-Maruyama's over 1/n ("euler").

    It ends at t and spans 1/n, wherever its grid puts s.
    """

    def euler_step(path, s, t) -> Step:
        c = path.at(t)
        std = jnp.sqrt(c.g2 / n)
        return Step(1 + c.drift / n, std, std)

    def table_step(path, s, t) -> Step:
        # Float64 on the host, one rounding on the device: sigma_i^2 - sigma_{i-1}^2 cancels.
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            table = TABLES[chain](path, n)
        t = jnp.asarray(t, jnp.result_type(float))
        # Grid times lie on rows or just above: a rounding must not take them to the row below.
        i = jnp.floor(t * (n - 1) * (1 + 4 * jnp.finfo(t.dtype).eps)).astype(jnp.int32)
        return Step(*jnp.asarray(table, t.dtype)[:, jnp.minimum(i, n - 1)])

    return euler_step if chain == "euler" else table_step


def published_intervals(n: int, t_min: float, t_max: float) -> Intervals:
    """The rows (t - 1/n, t) for n times t from t_max to t_min, both visited: close to contiguous, not quite."""
    t = np.linspace(t_max, t_min, n)
    return np.stack([t - 1 / n, t], axis=1)


def euler_maruyama(n: int = 0, probability_flow: bool = False) -> Kernel:
    """Euler-Maruyama on the reverse SDE, or Euler on the probability flow, over t - s; over 1/n as published.

    The published step does not bound the diffusion (sampling.sde.stable).
    """

    def kernel(denoiser, x, s, t) -> Gaussian:
        c, estimate = denoiser.path.at(t).expand(x), denoiser.estimate(x, t)
        step = 1 / n if n else expand(t - s, x)
        w = c.g2 if n else stable(c.g2, c, step)
        if probability_flow:
            w = jnp.zeros_like(w)
        drift = velocity_of(estimate, c) - 0.5 * w * score_of(estimate, c)
        return Gaussian(x - step * drift, jnp.sqrt(w * step))

    return kernel


def reverse_steps(forward: Forward = forward_step, probability_flow: bool = False) -> Kernel:
    """The forward step x_t = a x_s + b z turned round: (2 - a) x + b^2 score (Song et al. 2021, eq. 46).

    Its flow takes half of the score and no noise (eq. 47).
    """

    def kernel(denoiser, x, s, t) -> Gaussian:
        a, b = (expand(value, x) for value in forward(denoiser.path, s, t)[:2])
        score = denoiser.score(x, t)
        if probability_flow:
            return Gaussian((2 - a) * x + 0.5 * b**2 * score, jnp.zeros_like(b))
        return Gaussian((2 - a) * x + b**2 * score, b)

    return kernel


def chain_ancestral(forward: Forward) -> Kernel:
    """A published chain's ancestral step, (x + b^2 score)/a (Ho et al. 2020, eq. 11; Song et al. 2021, eq. 47)."""

    def kernel(denoiser, x, s, t) -> Gaussian:
        a, b, std = (expand(value, x) for value in forward(denoiser.path, s, t))
        return Gaussian((x + b**2 * denoiser.score(x, t)) / a, std)

    return kernel


def langevin(snr: float = 0.16, forward: Forward = forward_step, norms: str = "example") -> Kernel:
    """A Langevin step of size 2 a (snr |z|/|score|)^2 at t, a = (alpha_t/alpha_s)^2 (arXiv:2011.13456, alg. 4, 5).

    example: sqrt(d) stands for the norm of the noise z and |score| is each example's own. batch, as published: both are
    means over the batch, which makes a sample depend on its batch.
    """

    def kernel(denoiser, x, s, t) -> Gaussian | Callable[[Images], Gaussian]:
        score = denoiser.score(x, t)
        a = forward(denoiser.path, s, t)[0] ** 2

        def move(step) -> Gaussian:
            step = expand(step, x)
            return Gaussian(x + step * score, jnp.sqrt(2 * step))

        if norms == "example":
            return move(2 * a * snr**2 * math.prod(x.shape[1:]) / sum_flat(score**2))
        return lambda noise: move(2 * a * (snr * _mean_norm(noise) / _mean_norm(score)) ** 2)

    return kernel


def _mean_norm(x: Images) -> Float[jax.Array, ""]:
    return jnp.mean(jnp.sqrt(sum_flat(x**2)))


def annealed_langevin(snr: float = 0.16, forward: Forward = forward_step) -> Kernel:
    """A Langevin step of size 2 a (snr sigma_t)^2 at t (Song & Ermon 2019, alg. 1, arXiv:1907.05600)."""

    def kernel(denoiser, x, s, t) -> Gaussian:
        a = forward(denoiser.path, s, t)[0] ** 2
        step = expand(2 * a * (snr * denoiser.path.sigma(t)) ** 2, x)
        return Gaussian(x + step * denoiser.score(x, t), jnp.sqrt(2 * step))

    return kernel


euler: Kernel = euler_maruyama()
reverse_diffusion: Kernel = reverse_steps()
ancestral: Kernel = ancestral_kernel("small")

PREDICTORS = ("euler", "reverse_diffusion", "ancestral")
CORRECTORS = ("langevin", "annealed_langevin")
NONE = (("none", ""),)


def predict(name: str, chain: str = "", n: int = 0, probability_flow: bool = False) -> Kernel:
    """The predictor of a name, between the times of its grid or, with a chain, of n published steps."""
    forward = published_step(chain, n) if chain else forward_step
    match name:
        case "euler":
            return euler_maruyama(n if chain else 0, probability_flow)
        case "reverse_diffusion":
            return reverse_steps(forward, probability_flow)
        case "ancestral":
            return chain_ancestral(forward) if chain else ancestral


def correct(name: str, snr: float, chain: str = "", n: int = 0, norms: str = "example") -> Kernel:
    """The corrector of a name; see `predict`."""
    forward = published_step(chain, n) if chain else forward_step
    return langevin(snr, forward, norms) if name == "langevin" else annealed_langevin(snr, forward)


def _check(predictor, corrector, norms, chain, probability_flow) -> None:
    if not predictor and not corrector:
        raise UserError(f"{WHERE}: name a predictor, a corrector, or both.")
    if norms == "batch" and corrector != "langevin":
        raise UserError(f"{WHERE}.norms = batch needs corrector = langevin, got {corrector!r}.")
    if probability_flow and predictor not in ("euler", "reverse_diffusion"):
        raise UserError(
            f"{WHERE}.probability_flow needs predictor = euler or reverse_diffusion, "
            f"got {predictor!r} (sampler ddim is the flow of ancestral)."
        )


@limited(WHERE)
def build(
    t_min: UnitTime = 1e-3,
    t_max: UnitTime = 1.0,
    n_steps: Count = 1000,
    grid: GridChoice = "uniform",
    predictor: Annotated[str, Limits(among=("", *PREDICTORS), aliases=NONE)] = "reverse_diffusion",
    corrector: Annotated[str, Limits(among=("", *CORRECTORS), aliases=NONE)] = "",
    snr: Positive = 0.16,
    n_corrector_steps: Count = 1,
    norms: Annotated[str, Limits(among=NORMS)] = "example",
    chain: Annotated[str, Limits(among=("", *CHAINS), aliases=NONE)] = "",
    probability_flow: bool = False,
    denoise: bool = True,
) -> Sampler:
    """n_steps intervals, on each n_corrector_steps corrections at t and one prediction; an empty name is none.

    chain: score_sde's forward chain and its n_steps times in place of the grid and of the path's exact transitions:
    ddpm (VP), smld (VE), euler (any). Its presets also take norms = batch. probability_flow: predict along the flow.
    denoise: leave out the noise of the last step.
    """
    _check(predictor, corrector, norms, chain, probability_flow)
    check_times(WHERE, t_min, t_max)
    grid_times = choose(f"{WHERE}.grid", grid)
    if chain and grid != "uniform":
        raise UserError(f"{WHERE}.chain = {chain} has its own times; grid must be uniform.")
    kernels = [correct(corrector, snr, chain, n_steps, norms)] * n_corrector_steps if corrector else []
    kernels += [predict(predictor, chain, n_steps, probability_flow)] if predictor else []

    def times(path: Path) -> Intervals:
        if chain:
            return published_intervals(n_steps, t_min, t_max)
        return intervals(grid_times(path, n_steps, t_min, t_max))

    return chain_sampler(kernels, times, denoise)
