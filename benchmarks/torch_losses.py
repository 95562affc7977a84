"""The losses of our recipes in PyTorch: each a function of (network, x0, noise, t) that gives one for each example.

A network is a function of (x, time); images are (b, c, h, w), and t is ours.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import torch

from score_flow.paths.ddpm import cosine_betas

Tensor = torch.Tensor
Loss = Callable[[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor, Tensor], Tensor]
LEVEL = 1 / 255  # half the distance of two levels of [-1, 1]


def velocity(network, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """SiT's, on the linear path; the network is told 999 t."""
    at = t[:, None, None, None]
    output = network((1 - at) * x0 + at * noise, 999 * t)
    return (output - (noise - x0)).square().mean((1, 2, 3))


def vp(network, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """score_sde's for VP at all times: of the score times the deviation, which is minus what the network says."""
    at = t[:, None, None, None]
    log_mean = -0.25 * at**2 * (20 - 0.1) - 0.5 * at * 0.1
    std = torch.sqrt(1 - torch.exp(2 * log_mean))
    score = -network(torch.exp(log_mean) * x0 + std * noise, 999 * t) / std
    return (score * std + noise).square().mean((1, 2, 3))


def ve(network, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """score_sde's for VE: half the sum; the network is told log sigma, sees 2 x - 1, and says the score times sigma."""
    sigma = 0.01 * (50 / 0.01) ** t
    at = sigma[:, None, None, None]
    score = network(2 * (x0 + at * noise) - 1, torch.log(sigma)) / at
    return 0.5 * (score * at + noise).square().sum((1, 2, 3))


@functools.cache
def chain(n: int) -> dict[str, Tensor]:
    """What a cosine chain of n steps needs at each, from float64 (Nichol and Dhariwal 2021)."""
    betas = cosine_betas(n)
    alphas = np.cumprod(1 - betas)
    before = np.append(1.0, alphas[:-1])
    variance = betas * (1 - before) / (1 - alphas)
    found = {
        "mean": np.sqrt(alphas), "std": np.sqrt(1 - alphas), "on_x0": betas * np.sqrt(before) / (1 - alphas),
        "on_x": (1 - before) * np.sqrt(1 - betas) / (1 - alphas),
        "small": np.log(np.append(variance[1], variance[1:])), "large": np.log(betas),
    }  # fmt: skip
    return {name: torch.tensor(column, dtype=torch.float32) for name, column in found.items()}


def hybrid(network, x0: Tensor, noise: Tensor, t: Tensor, n: int = 4000) -> Tensor:
    """improved-diffusion's: a mean square, and n/1000 of the bound's term, whose gradient is of the variance alone."""
    step = (torch.round(t * n).long() - 1).clamp(min=0)
    c = {name: column[step][:, None, None, None] for name, column in chain(n).items()}
    x = c["mean"] * x0 + c["std"] * noise
    output, share = network(x, step * (1000 / n)).chunk(2, 1)
    share = (share + 1) / 2
    log_variance = share * c["large"] + (1 - share) * c["small"]
    found = (x - c["std"] * output.detach()) / c["mean"]
    mean, wanted = c["on_x0"] * found + c["on_x"] * x, c["on_x0"] * x0 + c["on_x"] * x
    inner = -1 + log_variance - c["small"] + torch.exp(c["small"] - log_variance)
    inner = 0.5 * (inner + (mean - wanted) ** 2 * torch.exp(-log_variance))
    first = -log_probability(x0, mean, 0.5 * log_variance)
    bound = torch.where(step == 0, first.mean((1, 2, 3)), inner.mean((1, 2, 3))) / math.log(2)
    return (output - noise).square().mean((1, 2, 3)) + n / 1000 * bound


def log_probability(x0: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Nats of the level x0 under a normal distribution, by the tanh approximation of its function."""
    normal = lambda z: 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))  # noqa: E731
    scale = torch.exp(-log_std)
    below, above = normal((x0 - mean - LEVEL) * scale), normal((x0 - mean + LEVEL) * scale)
    log = lambda p: torch.log(p.clamp(min=1e-12))  # noqa: E731
    return torch.where(x0 < -0.999, log(above), torch.where(x0 > 0.999, log(1 - below), log(above - below)))


LOSSES: dict[str, Loss] = {"velocity": velocity, "hybrid": hybrid, "vp": vp, "ve": ve}
