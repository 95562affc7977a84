"""training.objective = hybrid: the weighted squared error beside a chain's bound, which trains the variance."""

from typing import ClassVar

import flax.struct
import jax
from jaxtyping import Array, Float

from score_flow.config.options import TrainOptions
from score_flow.data.preprocessing import Preprocess
from score_flow.data.scaling import Scaling
from score_flow.errors import UserError
from score_flow.losses.base import OF_SIMPLE, Noising, OfNoisyImages, Product, noising_of, unused
from score_flow.losses.simple import Denoising
from score_flow.losses.vlb import ChainBound, variational
from score_flow.losses.weightings import weighting_of
from score_flow.model import Model
from score_flow.process.bound import VariationalBound
from score_flow.process.times import TimeSampler
from score_flow.tree import static
from score_flow.types import Condition, Images, Key, Params, Times


@flax.struct.dataclass
class Hybrid(OfNoisyImages):
    """simple + weight bound, of the same network and noisy images.

    The bound trains the variance only: no gradient flows from it to the mean (Nichol and Dhariwal 2021, sec. 3.1,
    arXiv:2102.09672). Theirs is lambda = 0.001 of the whole bound for every n, that is n/1000 L_t beside a mean square;
    their unscaled variant, L_t, is weight = 1/n.
    """

    simple: Denoising
    bound: ChainBound
    weight: float = static(default=1e-3)

    produces: ClassVar[Product] = "denoiser"

    @property
    def model(self) -> Model:
        return self.simple.model

    @property
    def noising(self) -> Noising:
        return self.simple.noising

    @property
    def variational(self) -> VariationalBound:
        return self.bound.variational

    def at(
        self, params: Params, x0: Images, noise: Images, t: Times, condition: Condition = None,
        *, key: Key | None = None,
    ) -> Float[Array, "b"]:
        """Return the sum of both for each example at given times of the chain and noise; one network call."""
        model = self.model
        x = model.path.perturb(x0, noise, t)
        output, variance = model.split(model.apply(params, x, t, condition, key=key), x)
        bound = self.bound.of(jax.lax.stop_gradient(output), variance, x0, x, t)
        return self.simple.of(output, x0, noise, t) + self.weight * bound


def build(
    model: Model,
    times: TimeSampler,
    prepare: Preprocess,
    num_classes: int,
    scaling: Scaling,
    dequantised: bool,
    learn_sigma: bool,
    options: TrainOptions,
) -> Hybrid:
    """Both as config.training describes them; raises UserError without a variance to be trained."""
    unused(options, "coupling", "contrast", *OF_SIMPLE)
    bound = variational(model, times, scaling, dequantised=dequantised, learn_sigma=learn_sigma, options=options)
    if not bound.learned:
        raise UserError("training.objective = hybrid trains a variance: set config.model.learn_sigma=True.")
    noising, reduce = noising_of(options, times, prepare, num_classes), "mean" if options.reduce_mean else "sum"
    simple = Denoising(model, noising, weighting_of(options, model.preconditioning.data_std), reduce)
    return Hybrid(simple, ChainBound(model, noising, bound, reduce), options.vlb_weight)
