"""training.objective = vlb: the variational bound of a chain."""

import math
from typing import ClassVar, Literal

import flax.struct
from jaxtyping import Array, Float

from score_flow.config.options import TrainOptions
from score_flow.data.preprocessing import Preprocess
from score_flow.data.scaling import Scaling
from score_flow.errors import UserError
from score_flow.losses.base import OF_SIMPLE, OF_WEIGHTINGS, Noising, OfNoisyImages, Product, noising_of, unused
from score_flow.model import Model
from score_flow.process.bound import VariationalBound
from score_flow.process.times import TimeSampler
from score_flow.tree import static
from score_flow.types import Condition, Images, Key, Params, Times


@flax.struct.dataclass
class ChainBound(OfNoisyImages):
    """n L_t in bits per dimension, whose mean over the n steps is the bound without its constant, the prior.

    reduce: "mean", that; "sum", half the sum over the axes of an example, beside a half sum of squares.
    """

    model: Model = static()
    noising: Noising = static()
    variational: VariationalBound = static()
    reduce: Literal["mean", "sum"] = static(default="mean")

    produces: ClassVar[Product] = "denoiser"

    def at(
        self, params: Params, x0: Images, noise: Images, t: Times, condition: Condition = None,
        *, key: Key | None = None,
    ) -> Float[Array, "b"]:
        """Return the bound's term of each example at given times of the chain and noise."""
        x = self.model.path.perturb(x0, noise, t)
        output, variance = self.model.split(self.model.apply(params, x, t, condition, key=key), x)
        return self.of(output, variance, x0, x, t)

    def of(self, output: Images, variance: Images | None, x0: Images, x: Images, t: Times) -> Float[Array, "b"]:
        """n L_t of a network's output for x_t."""
        estimate = self.model.prediction.decode(output, x, self.model.path.at(t).expand(x))
        terms = self.variational.term(x0, x, estimate._replace(variance=variance), self.variational.step(t))
        scale = 1.0 if self.reduce == "mean" else 0.5 * math.prod(x0.shape[1:])
        return len(self.variational.times) * terms * scale


def build(
    model: Model,
    times: TimeSampler,
    prepare: Preprocess,
    num_classes: int,
    scaling: Scaling,
    dequantised: bool,
    learn_sigma: bool,
    options: TrainOptions,
) -> ChainBound:
    """The bound at the times that training draws from; raises UserError where there is none."""
    unused(options, "coupling", "contrast", "likelihood_weighting", *OF_WEIGHTINGS, *OF_SIMPLE, "vlb_weight")
    bound = variational(model, times, scaling, dequantised=dequantised, learn_sigma=learn_sigma, options=options)
    noising = noising_of(options, times, prepare, num_classes)
    return ChainBound(model, noising, bound, "mean" if options.reduce_mean else "sum")


def variational(
    model: Model, times: TimeSampler, scaling: Scaling, *, dequantised: bool, learn_sigma: bool, options: TrainOptions
) -> VariationalBound:
    """Return the bound of the chain at the times that training draws from; raises UserError where there is none."""
    objective = f"config.training.objective = {options.objective}"
    if not times.times:
        raise UserError(
            f"{objective} needs a chain: set config.training.time_sampler.name to grid or loss_second_moment."
        )
    if scaling.range:
        raise UserError(f"{objective} bounds the likelihood of levels, and the data are real numbers.")
    if dequantised:
        raise UserError(f"{objective} bounds the likelihood of levels: set config.data.uniform_dequantization=False.")
    if (options.variance in ("range", "log")) != learn_sigma:
        allowed = "range or log" if learn_sigma else "small or large"
        raise UserError(
            f"{objective} with config.model.learn_sigma = {learn_sigma} needs config.training.variance = {allowed}, "
            f"got {options.variance!r}."
        )
    return VariationalBound(
        model.path,
        times.times,
        options.variance,
        decoder=options.decoder,
        low=scaling.low,
        high=scaling.high,
        levels=scaling.levels,
    )
