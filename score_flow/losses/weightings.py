"""How much an error counts at each time: the weights of |noise_hat - noise|^2 that training.weighting names."""

import functools
from collections.abc import Callable

import jax.numpy as jnp

from score_flow.config import registries
from score_flow.config.hints import parameters_of
from score_flow.config.options import TrainOptions
from score_flow.errors import UserError
from score_flow.losses.base import OF_WEIGHTINGS, unused
from score_flow.paths.base import Coefficients
from score_flow.types import Times

Weighting = Callable[[Coefficients], Times]


def simple(c: Coefficients) -> Times:
    """|noise error|^2 (Ho et al. 2020, eq. 14, arXiv:2006.11239)."""
    return jnp.ones_like(c.alpha)


def velocity(c: Coefficients) -> Times:
    """|velocity error|^2 (Lipman et al. 2023, arXiv:2210.02747)."""
    return (c.det / c.alpha) ** 2


def clipped_velocity(c: Coefficients, *, velocity_clip: float = 0.05) -> Times:
    """|velocity error|^2 with sigma/det, the time that is left to the data on a straight path, at least velocity_clip.

    |x0 error|^2 / max(sigma/det, velocity_clip)^2: finite for a network that predicts x0 (JiT, arXiv:2511.13720).
    """
    return (c.sigma / c.alpha) ** 2 / jnp.maximum(c.sigma / c.det, velocity_clip) ** 2


def data(c: Coefficients) -> Times:
    """|x0 error|^2."""
    return (c.sigma / c.alpha) ** 2


def likelihood(c: Coefficients) -> Times:
    """g^2 |score error|^2 (Song et al. 2021, thm. 1, arXiv:2101.09258)."""
    return c.g2 / c.sigma**2


def min_snr(c: Coefficients, *, min_snr_gamma: float = 5.0) -> Times:
    """min(SNR, gamma) |x0 error|^2 = min(1, gamma/SNR) |noise error|^2 (Hang et al. 2023, arXiv:2303.09556)."""
    return jnp.minimum(1.0, min_snr_gamma * (c.sigma / c.alpha) ** 2)


def edm(c: Coefficients, *, data_std: float = 0.5) -> Times:
    """|error of EDM's F|^2, the output of prediction = edm (Karras et al. 2022, table 1, arXiv:2206.00364)."""
    return 1 + (c.sigma / (c.alpha * data_std)) ** 2


WEIGHTINGS: dict[str, Weighting] = {
    "simple": simple, "velocity": velocity, "clipped_velocity": clipped_velocity, "data": data,
    "likelihood": likelihood, "min_snr": min_snr, "edm": edm,
}  # fmt: skip
"""The weightings by name; config.training.weighting takes module.function for one of another package.

A row is a function `row(c) -> (b,)` of the path's coefficients at the times of a batch (paths.base.Coefficients, each
(b,)): the weight of |noise_hat - noise|^2 of each example, finite and at least 0, in jax.numpy. An error in another
space is the noise error times what carries one to the other, |x0 error| = sigma/alpha |noise error|: its square is the
weight under which that error is a plain mean square. At the ends of an interpolant alpha and sigma are 1e-12, not 0.

A row may take more, by keyword parameters of these names: `min_snr_gamma` and `velocity_clip` (config.training's, which
a config may set only beside a row that takes it) and `data_std` (config.model.data_std).
"""


def weighting_of(options: TrainOptions, data_std: float) -> Weighting:
    """Return the weighting of config.training; raises UserError for two, or for the gamma of another."""
    name = options.weighting
    if options.likelihood_weighting and name not in ("simple", "likelihood"):
        raise UserError(
            f"config.training.likelihood_weighting is True, but config.training.weighting is {name!r}: "
            "give one of them."
        )
    name = "likelihood" if options.likelihood_weighting else name
    row = registries.WEIGHTINGS.entry(name, "config.training.weighting")
    if not callable(row):
        raise UserError(f"config.training.weighting is {name!r}, which is no function but {type(row).__name__}.")
    takes = parameters_of(row)
    unused(options, *(option for option in OF_WEIGHTINGS if option not in takes), by=f"training.weighting = {name}")
    offered = {option: getattr(options, option) for option in OF_WEIGHTINGS} | {"data_std": data_std}
    return _given(row, **{name: value for name, value in offered.items() if name in takes})


@functools.cache  # the same function for the same settings: equal losses share one compilation
def _given(row: Callable[..., Times], **offered: float) -> Weighting:
    return functools.partial(row, **offered) if offered else row
