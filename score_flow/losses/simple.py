"""training.objective = simple: one loss for every path, prediction and weighting."""

from typing import ClassVar, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from score_flow.config.options import TrainOptions
from score_flow.data.preprocessing import Preprocess
from score_flow.errors import UserError
from score_flow.losses.base import Noising, OfNoisyImages, Product, noising_of, unused
from score_flow.losses.weightings import Weighting, weighting_of
from score_flow.model import Model
from score_flow.networks.blocks import attention
from score_flow.numerics import cosine, expand, mean_flat, sum_flat
from score_flow.paths.base import Coefficients
from score_flow.process.prediction import PREDICTIONS, Estimate
from score_flow.process.times import TimeSampler
from score_flow.tree import static
from score_flow.types import Condition, Images, Key, Params, Times


@flax.struct.dataclass
class Denoising(OfNoisyImages):
    """E_t [ weight(t) |noise_hat(x_t, t) - noise|^2 ] with t from a time sampler.

    reduce: "mean" over the axes of an example, or "sum", half the sum (score_sde's `reduce_mean=False`).
    second_order: in training, weight of (sigma div noise_hat - d + |noise_hat - noise|^2)^2 / d beside the square,
        along one random probe: given x_t, E|noise_hat - noise|^2 is d - sigma div noise_hat for the best network. It
        bounds the likelihood of the flow (Zheng et al. 2023, arXiv:2305.03935, sec. 4.2, of the velocity, with .1).
    cosine: in training, weight of 1 - cos(v', v) over the channels of each pixel, beside the square of a network that
        predicts the velocity v (Yao et al. 2024, arXiv:2410.10356; LightningDiT, with 1). The minimiser of the two
        is no mean of v: the direction of E[v/|v|] counts in it too.
    """

    model: Model = static()
    noising: Noising = static()
    weighting: Weighting = static()
    reduce: Literal["mean", "sum"] = static(default="mean")
    second_order: float = static(default=0.0)
    cosine: float = static(default=0.0)

    produces: ClassVar[Product] = "denoiser"

    def at(
        self, params: Params, x0: Images, noise: Images, t: Times, condition: Condition = None,
        *, key: Key | None = None,
    ) -> Float[Array, "b"]:
        """Return the weighted loss of each example at given times and noise."""
        x = self.model.path.perturb(x0, noise, t)
        if not self.second_order or key is None:
            output = self.model.split(self.model.apply(params, x, t, condition, key=key), x)[0]
            return self.of(output, x0, noise, t) if key is None else self.trained(output, x0, noise, t)
        probe = jax.random.rademacher(jax.random.fold_in(key, 1), x.shape, x.dtype)
        c = self.model.path.at(t)

        def noise_hat(x):
            output = self.model.split(self.model.apply(params, x, t, condition, key=key), x)[0]
            return self.model.prediction.decode(output, x, c.expand(x)).noise, output

        with attention.derivatives("forward inside backward"):
            guess, tangent, output = jax.jvp(noise_hat, (x,), (probe,), has_aux=True)
        d, error = x[0].size, jax.lax.stop_gradient(sum_flat((guess - noise) ** 2))
        off = jnp.broadcast_to(c.sigma, x.shape[:1]) * sum_flat(probe * tangent) - d + error
        second = self.second_order * self.weighting(_away_from_ends(c)) * off**2 / d
        return self.trained(output, x0, noise, t) + second * (1 / d if self.reduce == "mean" else 0.5)

    def of(self, output: Images, x0: Images, noise: Images, t: Times) -> Float[Array, "b"]:
        """Return the weighted square of the error of a network's output."""
        return self.between(output, Estimate(x0, noise), t)

    def trained(self, output: Images, x0: Images, noise: Images, t: Times) -> Float[Array, "b"]:
        """Return the same with the cosine of the error's angle, which is of training alone."""
        losses = self.of(output, x0, noise, t)
        if not self.cosine:
            return losses
        target = self.model.prediction.target(Estimate(x0, noise), self.model.path.at(t).expand(output))
        return losses + self.cosine * mean_flat(1 - cosine(output, target))

    def between(self, output: Images, pair: Estimate, t: Times) -> Float[Array, "b"]:
        """Return the weighted squared distance from the output that a pair asks for."""
        model, c = self.model, _away_from_ends(self.model.path.at(t))
        target = model.prediction.target(pair, c.expand(output))
        scale = expand(self.weighting(c) * model.prediction.gain(c) ** 2, output)
        squared = scale * (output - target) ** 2
        return mean_flat(squared) if self.reduce == "mean" else 0.5 * sum_flat(squared)


@flax.struct.dataclass
class OfSquaredError(OfNoisyImages):
    """A loss made of the squared error, with the model and the noise of that."""

    simple: Denoising

    produces: ClassVar[Product] = "denoiser"

    @property
    def model(self) -> Model:
        return self.simple.model

    @property
    def noising(self) -> Noising:
        return self.simple.noising

    def at(
        self, params: Params, x0: Images, noise: Images, t: Times, condition: Condition = None,
        *, key: Key | None = None,
    ) -> Float[Array, "b"]:
        """Return the weighted squared error of each example at given times and noise."""
        return self.simple.at(params, x0, noise, t, condition, key=key)


def _away_from_ends(c: Coefficients) -> Coefficients:
    """The ends of an interpolant (alpha or sigma exactly 0) have 0 x inf in weight x gain^2; their limit is finite."""
    return c._replace(alpha=jnp.maximum(c.alpha, 1e-12), sigma=jnp.maximum(c.sigma, 1e-12))


def build(model: Model, times: TimeSampler, prepare: Preprocess, num_classes: int, options: TrainOptions) -> Denoising:
    """The weighted squared error as config.training describes it."""
    unused(options, "contrast")
    return denoising(model, times, prepare, num_classes, options)


def denoising(
    model: Model, times: TimeSampler, prepare: Preprocess, num_classes: int, options: TrainOptions
) -> Denoising:
    """Return the weighted squared error, by itself or as a part of another loss."""
    unused(options, "vlb_weight", "decoder")
    noising = noising_of(options, times, prepare, num_classes)
    weighting = weighting_of(options, model.preconditioning.data_std)
    reduce = "mean" if options.reduce_mean else "sum"
    if options.cosine and model.prediction != PREDICTIONS["velocity"]:
        raise UserError(
            f"config.training.cosine is {options.cosine}, which is of velocities: set model.prediction=velocity."
        )
    return Denoising(model, noising, weighting, reduce, options.second_order, options.cosine)
