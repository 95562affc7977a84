"""What a network predicts: a linear readout of (x0, noise), decoded once to that pair."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from score_flow.config import registries
from score_flow.errors import UserError
from score_flow.paths.base import Coefficients, Path
from score_flow.types import Images


class Estimate(NamedTuple):
    """Posterior means given x_t: x_t = alpha x0 + sigma noise."""

    x0: Images
    noise: Images
    variance: Images | None = None  # iDDPM's interpolation coefficient (arXiv:2102.09672, eq. 15), else None


class Prediction(NamedTuple):
    """What a network outputs; n decoders replace n^2 converters.

    target(estimate, c) is the output of a perfect network, decode(output, x_t, c) both posterior means, and
    gain(c) = d noise / d output, which carries weightings from one space to another. c broadcasts over one example.
    """

    target: Callable[[Estimate, Coefficients], Images]
    decode: Callable[[Images, Images, Coefficients], Estimate]
    gain: Callable[[Coefficients], Float[Array, "..."]]


def _over(value: Float[Array, "..."], scale: Float[Array, "..."]) -> Float[Array, "..."]:
    # The one guard of this file: at t = 0 (t = 1) of an interpolant x_t holds nothing of the noise (of the data), and
    # what is asked for is 0/0 but for roundings and a network's error. It counts as 0; no value above 1e-12 changes.
    return jnp.where(scale >= 1e-12, value / jnp.maximum(scale, 1e-12), 0.0)


def _from_noise(n: Images, x: Images, c: Coefficients) -> Estimate:
    return Estimate(_over(x - c.sigma * n, c.alpha), n)


noise = Prediction(target=lambda e, c: e.noise, decode=_from_noise, gain=lambda c: jnp.ones_like(c.alpha))

data = Prediction(
    target=lambda e, c: e.x0,
    decode=lambda x0, x, c: Estimate(x0, _over(x - c.alpha * x0, c.sigma)),
    gain=lambda c: -_over(c.alpha, c.sigma),
)

# score = grad log p_t(x) = -noise / sigma (Vincent 2011).
score = Prediction(
    target=lambda e, c: -_over(e.noise, c.sigma),
    decode=lambda s, x, c: _from_noise(-c.sigma * s, x, c),
    gain=lambda c: -c.sigma,
)

# sigma * score, the readout of Song et al.'s score networks before they divide by sigma.
scaled_score = Prediction(
    target=lambda e, c: -e.noise,
    decode=lambda s, x, c: _from_noise(-s, x, c),
    gain=lambda c: -jnp.ones_like(c.alpha),
)

# dx/dt of the probability flow (Lipman et al. 2023, arXiv:2210.02747). Divides by det, never by alpha or sigma:
# finite at both ends.
velocity = Prediction(
    target=lambda e, c: c.dalpha * e.x0 + c.dsigma * e.noise,
    decode=lambda v, x, c: Estimate((c.dsigma * x - c.sigma * v) / c.det, (c.alpha * v - c.dalpha * x) / c.det),
    gain=lambda c: c.alpha / c.det,
)


def _direction(c: Coefficients) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """(alpha', sigma') over their length; sigma' of a VP path is infinite at t = 0, and there all of it."""
    infinite = ~jnp.isfinite(c.dsigma)
    dalpha, dsigma = jnp.where(infinite, 0.0, c.dalpha), jnp.where(infinite, 1.0, c.dsigma)
    length = jnp.hypot(dalpha, dsigma)
    return dalpha / length, dsigma / length


def _of_direction(e: Estimate, c: Coefficients) -> Images:
    dalpha, dsigma = _direction(c)
    return dalpha * e.x0 + dsigma * e.noise


def _from_direction(u: Images, x: Images, c: Coefficients) -> Estimate:
    dalpha, dsigma = _direction(c)
    det = c.alpha * dsigma - c.sigma * dalpha
    return Estimate((dsigma * x - c.sigma * u) / det, (c.alpha * u - dalpha * x) / det)


def _gain_of_direction(c: Coefficients) -> Float[Array, "..."]:
    dalpha, dsigma = _direction(c)
    return c.alpha / (c.alpha * dsigma - c.sigma * dalpha)


# The velocity over |(alpha', sigma')|, for any clock: v where alpha^2 + sigma^2 = 1, and (noise - x0)/sqrt(2) where
# alpha + sigma = 1; (noise - sigma x_t)/alpha on the first (Zheng et al. 2023, arXiv:2305.03935, sec. 4.1).
unit_velocity = Prediction(_of_direction, _from_direction, _gain_of_direction)

# alpha noise - sigma x0 (Salimans & Ho 2022, arXiv:2202.00512), for any alpha^2 + sigma^2.
v = Prediction(
    target=lambda e, c: c.alpha * e.noise - c.sigma * e.x0,
    decode=lambda v, x, c: Estimate(
        (c.alpha * x - c.sigma * v) / (c.alpha**2 + c.sigma**2), (c.sigma * x + c.alpha * v) / (c.alpha**2 + c.sigma**2)
    ),
    gain=lambda c: c.alpha / (c.alpha**2 + c.sigma**2),
)


def uncontrasted(
    estimate: Estimate, x: Images, c: Coefficients, *, share: float, mean: Float[Array, "..."]
) -> Estimate:
    """Return the posterior means in those of a network trained by |v' - v|^2 - share |v' - v~|^2, v~ of another pair.

    Its minimiser is v' = (E[v | x_t] - share E v)/(1 - share), with E v = alpha' mean: mean is E[x0].
    """
    shifted = c.dalpha * estimate.x0 + c.dsigma * estimate.noise
    return velocity.decode((1 - share) * shifted + share * c.dalpha * mean, x, c)


@functools.cache
def edm(sigma_data: float = 0.5, least: float = 0.0) -> Prediction:
    """EDM's F of unit variance: x0 = c_skip x/alpha + c_out F at noise level sigma/alpha (arXiv:2206.00364, table 1).

    Consistency models jump to x = c_skip x + c_out F at the level `least`, where the jump is none: c_skip =
    d^2/((s - least)^2 + d^2) and c_out = d (s - least)/sqrt(s^2 + d^2) at level s (arXiv:2303.01469, app. C). That over
    s - least is what noise is here: (s - least)/((s - least)^2 + d^2) x - d/sqrt(s^2 + d^2) F, EDM's at least = 0.

    With q = sigma^2 + alpha^2 sigma_data^2, and the same of sigma - alpha least, every form below is finite at both
    ends of every path.
    """
    d = sigma_data

    def q(sigma, c):
        return sigma**2 + (c.alpha * d) ** 2

    def on_x(c):
        """Return what x counts in x0 and in the noise."""
        above = c.sigma - c.alpha * least
        return (c.alpha * d**2 - least * above) / q(above, c), above / q(above, c)

    def target(e, c):
        of_x0, of_noise = on_x(c)
        return jnp.sqrt(q(c.sigma, c)) / d * (of_noise * e.x0 - of_x0 * e.noise)

    def decode(f, x, c):
        (of_x0, of_noise), root = on_x(c), jnp.sqrt(q(c.sigma, c))
        return Estimate(of_x0 * x + c.sigma * d / root * f, of_noise * x - c.alpha * d / root * f)

    return Prediction(target, decode, gain=lambda c: -c.alpha * d / jnp.sqrt(q(c.sigma, c)))


PREDICTIONS: dict[str, Prediction] = {
    "noise": noise, "data": data, "score": score, "scaled_score": scaled_score,
    "velocity": velocity, "unit_velocity": unit_velocity, "v": v, "edm": edm(), "consistency": edm(least=0.002),
}  # fmt: skip
"""The predictions by name; config.model.prediction takes module.name for one of another package.

A row is a Prediction: three functions in jax.numpy, linear in x0 and noise, with decode(target(e, c), x_t, c) = e for
x_t = alpha e.x0 + sigma e.noise, and gain(c) the derivative of the decoded noise by the output at a fixed x_t. c holds
alpha, sigma, their derivatives dalpha, dsigma and det = alpha dsigma - sigma dalpha (paths.base.Coefficients), each of
a shape that broadcasts over one example. What is finite at both ends of every path trains there, too.
"""


def choose(name: str, data_std: float, path: Path) -> Prediction:
    """Return the prediction that config.model.prediction names; edm is the one for data of standard deviation data_std.

    consistency is edm whose jump is none where the path begins. Raises UserError for what is none.
    """
    if name == "edm":
        return edm(data_std)
    if name == "consistency":
        start = jnp.zeros(())
        return edm(data_std, float(path.sigma(start) / path.alpha(start)))
    row = registries.PREDICTIONS.entry(name, "config.model.prediction")
    if not isinstance(row, Prediction):
        raise UserError(f"config.model.prediction is {name!r}, which is no Prediction but {type(row).__name__}.")
    return row
