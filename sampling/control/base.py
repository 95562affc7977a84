"""Control of sampling: denoisers that know something of the sample (no plug-in: no `build`).

A control wraps the denoiser, after guidance, so that every sampler takes it unchanged. What it knows of each example
travels in the denoiser's condition, where solvers that step each example alone slice it; networks never see it.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from sampling.control.measurement import Measured, Measurement
from sampling.guided import Around, with_x0
from score_flow.config.hints import Given
from score_flow.config.limits import Limits
from score_flow.data.scaling import Scaling
from score_flow.errors import UserError
from score_flow.model import Denoiser
from score_flow.numerics import expand, sum_flat
from score_flow.process.prediction import Estimate
from score_flow.types import Condition, Images, Keys, Times

METHODS = ("replacement", "pseudo_inverse")

# Of the parameters that controls share: what the run knows, and how a measurement is used.
ShapeGiven = Annotated[tuple[int, int, int], Given("the shape of the model's images")]
ScalingGiven = Annotated[Scaling, Given("config.data.centered")]
DequantisedGiven = Annotated[bool, Given("config.data.uniform_dequantization")]
Method = Annotated[str, Limits(among=METHODS)]
KEY = "measured"  # in a condition
WHERE = "config.control"  # the section of these plug-ins, as messages name it


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Control:
    """What a control plug-in builds: a tree, to be an argument of what is compiled.

    Attributes:
        wrap: (denoiser, what is known of each example) -> the controlled denoiser.
        known: what is known of n inputs. They are taken in turn: sample i is of input i mod n.
        pictures: for a person to see, in the model's range: the n inputs, where they are images; what is known of them.
    """

    wrap: Callable[[Denoiser, Float[Array, "b *m"]], Denoiser] = dataclasses.field(metadata={"static": True})
    known: Float[Array, "n *m"]
    pictures: tuple[Float[Array, "n h w c"], ...]

    def __call__(self, denoiser: Denoiser, indices: Integer[Array, "b"]) -> Denoiser:
        """Return the denoiser of the samples of some global indices; free to build inside jit."""
        return self.wrap(denoiser, self.known[indices % len(self.known)])


@dataclasses.dataclass(frozen=True)
class Knowing(Around):
    """A denoiser that knows a measurement y of each example."""

    measurement: Measurement
    y: Measured

    @property
    def condition(self) -> Condition:
        return (self.denoiser.condition or {}) | {KEY: self.y}

    def given(self, condition: Condition) -> "Knowing":
        rest = {name: value for name, value in condition.items() if name != KEY} or None
        return dataclasses.replace(self, denoiser=self.denoiser.given(rest), y=condition[KEY])


@dataclasses.dataclass(frozen=True)
class Replaced(Knowing):
    """After each kernel of a chain, the measured part of x_t is that of a draw of x_t | x0 (arXiv:2011.13456, app. I).

    x_t <- (I - H^+ H) x_t + alpha H^+ y + sigma H^+ H z: any orthonormal basis in which the measured part is some of
    the coordinates gives the same. The mean, noise-free, takes H^+ y itself, so that the sample keeps it exactly.
    Raises UserError in a sampler that is no chain, at its first call.
    """

    chained: bool = False

    def in_chain(self) -> "Replaced":
        return dataclasses.replace(self, denoiser=self.denoiser.in_chain(), chained=True)

    def start(self, keys: Keys, shape: tuple[int, ...], t: float) -> Images:
        """Draw from the prior, which has no mean: only alpha H^+ y is missing."""
        prior = self.denoiser.start(keys, shape, t)
        return prior + self.path.alpha(jnp.asarray(t, prior.dtype)) * self.measurement.pseudo_inverse(self.y)

    def estimate(self, x: Images, t: Times) -> Estimate:
        if not self.chained:
            raise UserError(
                "config.control.method = replacement works between the kernels of a chain: take config.sampling.name = "
                "predictor_corrector, ancestral, ddim, flow_map, or sde with method = noise_first_heun; "
                "with any sampler config.control.method = pseudo_inverse works."
            )
        return self.denoiser.estimate(x, t)

    def constrain(self, x: Images, mean: Images, noise: Images, t: Times) -> tuple[Images, Images]:
        t = jnp.maximum(t, 0.0)  # a published chain's last step may pass 0
        alpha, sigma, project = self.path.alpha(t), self.path.sigma(t), self.measurement.project
        known = self.measurement.pseudo_inverse(self.y)
        # Subtracted first: where all of a pixel is known, not a bit of the old value stays.
        return x - project(x) + (alpha * known + sigma * project(noise)), mean - project(mean) + known


@dataclasses.dataclass(frozen=True)
class PseudoInverseGuided(Knowing):
    """Pseudo-inverse guidance of E[x0 | x_t] towards y (Song et al. 2023, ICLR; flows: arXiv:2310.04432).

    E[x0 | x_t, y] = E[x0 | x_t] + (sigma^2/alpha) J^T H^T (r^2 H H^T + sigma_y^2 I)^+ (y - H E[x0 | x_t]), where J is
    the derivative of E[x0 | x_t] by x_t, one vector-Jacobian product, and r^2 that of data N(., data_std^2 I),
    1/r^2 = 1/data_std^2 + alpha^2/sigma^2, for which it is exact. Where data vary more than that along a measurement,
    or a network's derivative is wrong (it is divided by alpha), the step would overshoot: its measured part is bounded
    by the gap y - H E[x0 | x_t]. Where alpha = 0 nothing is known of x0 yet.
    """

    sigma_y: float = 0.0
    data_std: float = 0.5
    spans = False  # what an average velocity decodes to is no E[x0 | x_t]

    def estimate(self, x: Images, t: Times) -> Estimate:
        def posterior(x):
            estimate = self.denoiser.estimate(x, t)
            return estimate.x0, estimate

        x0, vjp, estimate = jax.vjp(posterior, x, has_aux=True)
        c, signal = self.path.at(t).expand(x), self.data_std**2
        variance = c.alpha**2 * signal + c.sigma**2  # of x_t; r^2 = signal sigma^2 / variance
        ridge = self.sigma_y**2 * variance / (signal * c.sigma**2) if self.sigma_y else 0.0
        gap = self.y - self.measurement.apply(x0)
        scale = jnp.where(c.alpha > 0, variance, 0.0) / (jnp.where(c.alpha > 0, c.alpha, 1.0) * signal)
        shift = scale * vjp(self.measurement.pseudo_inverse(gap, ridge))[0]
        return with_x0(estimate, x0 + self._within(shift, self.measurement.pseudo_inverse(gap)) * shift, c)

    def _within(self, shift: Images, gap: Images) -> Float[Array, "b *_"]:
        """Return the share of a shift whose measured part is no larger than the gap that it is to close."""
        got, wanted = (jnp.sqrt(sum_flat(part**2)) for part in (self.measurement.project(shift), gap))
        return expand(jnp.where(got > wanted, wanted / got, 1.0), shift)


@dataclasses.dataclass(frozen=True)
class StartedFrom(Around):
    """Sampling that begins at x_t of a given image (SDEdit, Meng et al. 2022, arXiv:2108.01073)."""

    image: Images

    def start(self, keys: Keys, shape: tuple[int, ...], t: float) -> Images:
        """Raises UserError at t = 1, where nothing is left of the image."""
        if t >= 1:
            raise UserError(
                f"config.control.name = sdedit begins at config.sampling.t_max, which is {t}: give a time below 1, "
                "such as 0.5."
            )
        return self.image * self.path.alpha(jnp.asarray(t, self.image.dtype)) + self.denoiser.start(keys, shape, t)

    def estimate(self, x: Images, t: Times) -> Estimate:
        return self.denoiser.estimate(x, t)


def measured(
    measurement: Measurement,
    y: Float[Array, "n *m"],
    method: str,
    *,
    sigma_y: float,
    data_std: float,
    images: Float[Array, "n h w c"] | None = None,
) -> Control:
    """Build the control of a measurement, sigma_y and data_std in the model's units; images: what was measured."""
    if method == "replacement" and sigma_y:
        raise UserError(
            f"config.control.method = replacement takes measurements as exact, got sigma_y = {sigma_y}: "
            "use method = pseudo_inverse."
        )

    def wrap(denoiser: Denoiser, y: Measured) -> Denoiser:
        if method == "replacement":
            return Replaced(denoiser, measurement, y)
        return PseudoInverseGuided(denoiser, measurement, y, sigma_y, data_std)

    known = measurement.pseudo_inverse(y)
    return Control(wrap, y, (known,) if images is None else (images, known))
