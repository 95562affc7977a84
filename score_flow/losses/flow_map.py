"""training.objective = flow_map: a network that jumps along the probability flow, from one time to another in one call.

The average velocity u(x_t, t, s) = (x_t - x_s)/(t - s) obeys u = v - (t - s) du/dt, with du/dt = v . grad_x u + d_t u
along the flow and v = u(x_t, t, t) its velocity (Geng et al. 2025, arXiv:2505.13447, eq. 6). That x_t follows an ODE is
all that it uses: it holds on every path.
"""

from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from score_flow.config.options import TrainOptions
from score_flow.data.preprocessing import Preprocess
from score_flow.losses.base import Noised, Noising, OfNoisyImages, Product, noising_of, unused
from score_flow.model import Model, velocity_of
from score_flow.networks.blocks import attention
from score_flow.numerics import expand, sum_flat
from score_flow.process.prediction import Estimate
from score_flow.process.times import TimeSampler
from score_flow.tree import static
from score_flow.types import Batch, Condition, Images, Key, Params, Times, UserError

Kind = Literal["meanflow", "improved", "shortcut", "consistency"]
Average = Callable[[Images, Times, Times], Images]  # u(x_t, t, span) of one network
OFFSET = 0.01  # of the weight, as published


class Point(NamedTuple):
    """Where an average velocity is asked for, and the velocity of the noise and image that x_t is made of."""

    x: Images
    t: Float[Array, "b"]
    span: Float[Array, "b"]
    velocity: Images


@flax.struct.dataclass
class FlowMap(OfNoisyImages):
    """E |u - target|^2 w over pairs of times s <= t, the target without a gradient, w = 1/(|u - target|^2 + .01)^power.

    kind: meanflow: v - (t - s) du/dt along the velocity v of the pair (x0, noise). improved: the same in
        u + (t - s) du/dt = v, along the network's own velocity (iMF, arXiv:2512.02012). consistency: meanflow with
        s = t_min, the identity that a continuous consistency model obeys (arXiv:2303.01469, app. B). shortcut: the
        mean of two half steps (arXiv:2410.12557).
    equal: share of a batch with s = t, where the target is v.
    """

    model: Model = static()
    noising: Noising = static()
    kind: Kind = static(default="meanflow")
    equal: float = static(default=0.5)
    power: float = static(default=1.0)
    t_min: float = static(default=0.0)

    produces: ClassVar[Product] = "denoiser"
    spans: ClassVar[bool] = True

    def draw(self, time_state: PyTree, key: Key, batch: Batch, train: bool) -> tuple[Noised, Key | None]:
        """Draw two times of the time sampler, the later is t; the span to the earlier is a part of the condition."""
        drawn, dropout_key = self.noising.draw(time_state, key, batch, train)
        # Of a number that no split of the same key into two or four has made.
        pair_key, equal_key = jax.random.split(jax.random.fold_in(key, 4))
        other, weight = self.times.sample(time_state, pair_key, len(drawn.t))
        t, s = jnp.maximum(drawn.t, other), jnp.minimum(drawn.t, other)
        s = jnp.full_like(t, self.t_min) if self.kind == "consistency" else s
        same = jax.random.bernoulli(equal_key, self.equal, t.shape)
        t, s = jnp.where(same, drawn.t, t), jnp.where(same, drawn.t, s)
        weight = drawn.weight * jnp.where(same, 1.0, weight)
        condition = (drawn.condition or {}) | {"span": t - s}
        return drawn._replace(t=t, weight=weight, condition=condition), dropout_key

    def at(
        self, params: Params, x0: Images, noise: Images, t: Times, condition: Condition = None,
        *, key: Key | None = None,
    ) -> Float[Array, "b"]:
        """Return the weighted loss of each example; condition["span"] is its t - s, 0 where it is missing."""
        model, rest = self.model, {name: value for name, value in (condition or {}).items() if name != "span"}

        def average(x: Images, t: Times, span: Times) -> Images:
            output = model.apply(params, x, t, rest | {"span": span}, key=key)
            c = model.path.at(t).expand(x)
            return velocity_of(model.prediction.decode(model.split(output, x)[0], x, c), c)

        c = model.path.at(t).expand(x0)
        span = (condition or {}).get("span", jnp.zeros_like(t))
        point = Point(model.path.perturb(x0, noise, t), t, span, velocity_of(Estimate(x0, noise), c))
        error = ERRORS[self.kind](average, point)
        square = sum_flat(error**2)
        weight = jax.lax.stop_gradient((square + OFFSET) ** -self.power)
        return weight * square


def along(direction: Images, average: Average, point: Point) -> Images:
    """u + (t - s) du/dt - v with du/dt along a direction and without a gradient: one jvp, tangent (direction, 1, 1)."""
    ones = jnp.ones_like(point.t)
    with attention.derivatives("forward inside backward"):
        u, rate = jax.jvp(average, (point.x, point.t, point.span), (direction, ones, ones))
    return u + expand(point.span, u) * jax.lax.stop_gradient(rate) - point.velocity


def meanflow(average: Average, point: Point) -> Images:
    """Along the velocity of the pair."""
    return along(point.velocity, average, point)


def improved(average: Average, point: Point) -> Images:
    """Along the network's own velocity."""
    own = average(point.x, point.t, jnp.zeros_like(point.span))
    return along(jax.lax.stop_gradient(own), average, point)


def shortcut(average: Average, point: Point) -> Images:
    """u - (u(x_t, t, m) + u(x_m, m, s))/2 with m in the middle; u - v where s = t."""
    half = point.span / 2
    first = average(point.x, point.t, half)
    middle = point.x - expand(half, point.x) * first
    target = (first + average(middle, point.t - half, half)) / 2
    target = jnp.where(expand(point.span, target) > 0, target, point.velocity)
    return average(*point[:3]) - jax.lax.stop_gradient(target)


ERRORS: dict[str, Callable[[Average, Point], Images]] = {
    "meanflow": meanflow, "improved": improved, "shortcut": shortcut, "consistency": meanflow,
}  # fmt: skip


def build(
    model: Model, times: TimeSampler, prepare: Preprocess, num_classes: int, learn_sigma: bool, options: TrainOptions
) -> FlowMap:
    """The flow map as config.training describes it; raises UserError for a network that is not told of two times."""
    unused(
        options, "vlb_weight", "decoder", "variance", "likelihood_weighting", "min_snr_gamma", "reduce_mean",
        "second_order",
    )  # fmt: skip
    if options.weighting != "velocity":
        raise UserError(
            f"config.training.weighting is {options.weighting!r}: the error of training.objective = flow_map is one of "
            "velocities, weighted by training.flow_map_power; set it to 'velocity'."
        )
    if learn_sigma:
        raise UserError("config.model.learn_sigma is True: training.objective = flow_map trains no variance.")
    if not getattr(model.network, "span", False):
        raise UserError("training.objective = flow_map needs a network told of two times: set config.model.span=True.")
    if times.times:
        raise UserError(
            "training.objective = flow_map needs times between any two: config.training.time_sampler = "
            f"{options.time_sampler.name} draws those of a chain."
        )
    noising = noising_of(options, times, prepare, num_classes)
    return FlowMap(
        model, noising, options.flow_map, options.flow_map_equal, options.flow_map_power, options.smallest_time
    )
