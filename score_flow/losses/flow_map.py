"""training.objective = flow_map: a network that jumps along the probability flow, from one time to another in one call.

The average velocity u(x_t, t, s) = (x_t - x_s)/(t - s) obeys u = v - (t - s) du/dt, with du/dt = v . grad_x u + d_t u
along the flow and v = u(x_t, t, t) its velocity (Geng et al. 2025, arXiv:2505.13447, eq. 6). That x_t follows an ODE is
all that it uses: it holds on every path.
"""

import functools
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, PyTree

from score_flow.config.options import TrainOptions
from score_flow.data.preprocessing import Preprocess
from score_flow.errors import UserError
from score_flow.losses.base import OF_SIMPLE, OF_WEIGHTINGS, Noised, Noising, OfNoisyImages, Product, noising_of, unused
from score_flow.model import Model, velocity_of
from score_flow.networks.blocks import attention
from score_flow.numerics import expand, sum_flat
from score_flow.process.prediction import Estimate
from score_flow.process.times import TimeSampler
from score_flow.tree import static
from score_flow.types import Batch, Condition, Images, Key, Params, Times

Kind = Literal["meanflow", "improved", "shortcut", "consistency"]
Heads = tuple[Images, Images | None]  # u, and the velocity that a network's own head says, where it has one
Both = Callable[[Images, Times, Times], Heads]  # of (x_t, t, span), by one network
Guidance = Float[Array, "b 3"] | None
OFFSET = 0.01  # of the weight, as published


class Point(NamedTuple):
    """Where an average velocity is asked for, and an estimate of the velocity there: by the pair that x_t is made of.

    The mean of that over the pairs of an x_t is the flow's; a teacher's estimate is without noise. own: what the
    network says of the velocity there, where it has been asked.
    """

    x: Images
    t: Float[Array, "b"]
    span: Float[Array, "b"]
    velocity: Images
    own: Images | None = None


@flax.struct.dataclass
class Teacher:
    """A trained model, whose flow is learnt in the place of the data's."""

    model: Model = static()
    params: PyTree = None


@flax.struct.dataclass
class FlowMap(OfNoisyImages):
    """E |u - target|^2 w over pairs of times s <= t, the target without a gradient, w = 1/(|u - target|^2 + .01)^power.

    kind: meanflow: v - (t - s) du/dt along the velocity v of the pair (x0, noise). improved: the same in
        u + (t - s) du/dt = v, along the network's own velocity (iMF, arXiv:2512.02012). consistency: meanflow with
        s = t_min, the identity that a continuous consistency model obeys (arXiv:2303.01469, app. B). shortcut: the
        mean of two half steps (arXiv:2410.12557). A head for the velocity is trained by improved alone: it says the
        network's own velocity, and its error is a second term of the same form.
    equal: share of a batch with s = t, where the target is v. whole: share of the others that are t_max and t_min, the
        jump of one call, which two draws of most laws of times are next to never.
    guidance: (least, largest) scale w of classifier-free guidance: the flow is that of v_g = v_null + w (v - v_null).
        log w is drawn uniformly for each example, and of spans the times (first, last) between which w acts, uniformly
        below and above 1/2; condition["guidance"] is (1 - 1/w, first, last). A hidden label is not guided. With a
        teacher v and v_null are its own; without one the target is v + (1 - 1/w)(v_g - v_null), the last two of the
        network itself, whose fixed point is the same and whose noise is not w times as large (iMF).
    teacher: gives v, and v_null; None: v is the velocity of the pair. awaited: the run whose model it is to be.
    """

    model: Model = static()
    noising: Noising = static()
    kind: Kind = static(default="meanflow")
    equal: float = static(default=0.5)
    power: float = static(default=1.0)
    whole: float = static(default=0.0)
    t_min: float = static(default=0.0)
    t_max: float = static(default=1.0)
    guidance: tuple[float, float] = static(default=(1.0, 1.0))
    teacher: Teacher | None = None
    awaited: str = static(default="")

    produces: ClassVar[Product] = "denoiser"
    spans: ClassVar[bool] = True

    def draw(self, time_state: PyTree, key: Key, batch: Batch, train: bool) -> tuple[Noised, Key | None]:
        """Draw two times, the later is t (consistency: t alone); the span between is a part of the condition."""
        drawn, dropout_key = self.noising.draw(time_state, key, batch, train)
        # Of a number that no split of the same key into two or four has made.
        pair_key, equal_key = jax.random.split(jax.random.fold_in(key, 4))
        t, s, weight = drawn.t, jnp.full_like(drawn.t, self.t_min), drawn.weight
        if self.kind != "consistency":
            other, other_weight = self.times.sample(time_state, pair_key, len(t))
            t, s, weight = jnp.maximum(t, other), jnp.minimum(t, other), weight * other_weight
        if self.whole:
            ends = jax.random.bernoulli(jax.random.fold_in(key, 6), self.whole, t.shape)
            t, s, weight = (jnp.where(ends, end, at) for end, at in ((self.t_max, t), (self.t_min, s), (1.0, weight)))
        same = jax.random.bernoulli(equal_key, self.equal, t.shape)
        t, s = (jnp.where(same, drawn.t, time) for time in (t, s))
        weight = jnp.where(same, drawn.weight, weight)
        condition = (drawn.condition or {}) | {"span": t - s}
        if self.guidance != (1.0, 1.0):
            condition["guidance"] = self._guidance(jax.random.fold_in(key, 5), t - s, condition["label"])
        return drawn._replace(t=t, weight=weight, condition=condition), dropout_key

    def at(
        self, params: Params, x0: Images, noise: Images, t: Times, condition: Condition = None,
        *, key: Key | None = None,
    ) -> Float[Array, "b"]:
        """Return the weighted loss of each example; condition["span"] is its t - s, 0 where it is missing.

        Raises UserError where a teacher is awaited and none is there.
        """
        if self.awaited and self.teacher is None:
            raise UserError(f"config.training.teacher = {self.awaited} is not read here: leave it out.")
        rest = dict(condition or {})
        span, guidance = rest.pop("span", jnp.zeros_like(t)), rest.pop("guidance", None)
        asked = functools.partial(self._asked, params, key)
        x = self.model.path.perturb(x0, noise, t)
        velocity, own = velocity_of(Estimate(x0, noise), self.model.path.at(t).expand(x0)), None
        share = None if guidance is None else _share(guidance, t)
        if self.kind == "improved" or (self.teacher is None and guidance is not None):
            own = _instant(asked(rest, None if guidance is None else _at_once(share)), x, t)
        if self.teacher is not None:
            velocity = self._taught(x, t, rest)
        if guidance is not None:
            velocity = self._guided(velocity, own, asked, x, t, share, rest)
        point = Point(x, t, span, *(part if part is None else jax.lax.stop_gradient(part) for part in (velocity, own)))
        errors = ERRORS[self.kind](asked(rest, guidance), point)
        return sum(self._weighted(error) for error in errors if error is not None)

    def _weighted(self, error: Images) -> Float[Array, "b"]:
        square = sum_flat(error**2)
        return jax.lax.stop_gradient((square + OFFSET) ** -self.power) * square

    def _asked(self, params: Params, key: Key | None, condition: Condition, guidance: Guidance = None) -> Both:
        """Return what the network says under a condition, told of guidance if it can be."""
        model = self.model
        condition = condition if guidance is None or not self._tells else condition | {"guidance": guidance}

        def both(x: Images, t: Times, span: Times) -> Heads:
            outputs = model.with_velocity(params, x, t, condition | {"span": span}, key=key)
            c = model.path.at(t).expand(x)
            read = lambda output: velocity_of(model.prediction.decode(model.split(output, x)[0], x, c), c)  # noqa: E731
            return tuple(output if output is None else read(output) for output in outputs)

        return both

    @property
    def _tells(self) -> bool:
        """Whether the network is told of guidance."""
        return getattr(self.model.network, "guidance", False)

    def _guided(
        self, velocity: Images, own: Images | None, asked: Callable[..., Both], x: Images, t: Times,
        share: Float[Array, "b"], condition: Condition,
    ) -> Images:  # fmt: skip
        """Return an estimate of the guided velocity, by one of the velocity and, without a teacher, by its own."""
        null = condition | {"label": jnp.full_like(condition["label"], self.noising.null_label)}
        if self.teacher is not None:
            without = self._taught(x, t, null)
            return without + expand(1 / (1 - share), x) * (velocity - without)
        return velocity + expand(share, x) * (own - _instant(asked(null), x, t))

    def _guidance(self, key: Key, span: Float[Array, "b"], label: Integer[Array, "b"]) -> Float[Array, "b 3"]:
        """Draw what the network is told of guidance."""
        (least, most), low = self.guidance, 0.5 * jax.random.uniform(key, (3, *span.shape), span.dtype)
        scale = jnp.where(label == self.noising.null_label, 1.0, least * (most / least) ** (2 * low[0]))
        interval = jnp.where(span[:, None] > 0, jnp.stack([low[1], 0.5 + low[2]], axis=1), jnp.array([0.0, 1.0]))
        return jnp.concatenate([1 - 1 / scale[:, None], interval.astype(span.dtype)], axis=1)

    def _taught(self, x: Images, t: Times, condition: Condition) -> Images:
        return self.teacher.model.bind(self.teacher.params, condition or None).velocity(x, t)


def _share(guidance: Float[Array, "b 3"], t: Times) -> Float[Array, "b"]:
    """Return 1 - 1/w of guidance at times, 0 outside of its interval."""
    return jnp.where((guidance[:, 1] <= t) & (t <= guidance[:, 2]), guidance[:, 0], 0.0)


def _at_once(share: Float[Array, "b"]) -> Float[Array, "b 3"]:
    """Return what a network is told of guidance at one time, where it acts or does not."""
    return jnp.stack([share, jnp.zeros_like(share), jnp.ones_like(share)], axis=1)


def _instant(both: Both, x: Images, t: Times) -> Images:
    """Return the velocity: what the head says, or u at equal times."""
    average, velocity = both(x, t, jnp.zeros_like(t))
    return average if velocity is None else velocity


def along(direction: Images, both: Both, point: Point) -> Heads:
    """(u + (t - s) du/dt - v, what the head says), du/dt along a direction and without a gradient.

    One jvp, tangent (direction, 1, 1), of u alone.
    """
    ones = jnp.ones_like(point.t)
    with attention.derivatives("forward inside backward"):
        u, rate, head = jax.jvp(both, (point.x, point.t, point.span), (direction, ones, ones), has_aux=True)
    return u + expand(point.span, u) * jax.lax.stop_gradient(rate) - point.velocity, head


def meanflow(both: Both, point: Point) -> Heads:
    """Along the velocity of the pair."""
    return along(point.velocity, both, point)[0], None


def improved(both: Both, point: Point) -> Heads:
    """Along the network's own velocity, and that of its head."""
    error, head = along(point.own, both, point)
    return error, head if head is None else head - point.velocity


def shortcut(both: Both, point: Point) -> Heads:
    """u - (u(x_t, t, m) + u(x_m, m, s))/2 with m in the middle; u - v where s = t."""
    half = point.span / 2
    first, _ = both(point.x, point.t, half)
    middle = point.x - expand(half, point.x) * first
    target = (first + both(middle, point.t - half, half)[0]) / 2
    target = jnp.where(expand(point.span, target) > 0, target, point.velocity)
    return both(point.x, point.t, point.span)[0] - jax.lax.stop_gradient(target), None


# (what a network says, where) -> the error of u, and that of a head for the velocity, where one is trained
ERRORS: dict[str, Callable[[Both, Point], Heads]] = {
    "meanflow": meanflow, "improved": improved, "shortcut": shortcut, "consistency": meanflow,
}  # fmt: skip


def build(
    model: Model, times: TimeSampler, prepare: Preprocess, num_classes: int, learn_sigma: bool, options: TrainOptions
) -> FlowMap:
    """The flow map as config.training describes it; raises UserError for a network that is not told of two times."""
    unused(options, "contrast", "vlb_weight", "decoder", "variance", "likelihood_weighting")
    unused(options, *OF_WEIGHTINGS, "reduce_mean", *OF_SIMPLE)
    if options.weighting != "velocity":
        raise UserError(
            f"config.training.weighting is {options.weighting!r}: the error of training.objective = flow_map is one of "
            "velocities, weighted by training.flow_map_power; set it to 'velocity'."
        )
    if options.flow_map != "improved" and (head := getattr(model.network, "velocity_head", 0)):
        raise UserError(
            f"config.network.velocity_head is {head}, which training.flow_map = improved alone trains, got "
            f"{options.flow_map!r}."
        )
    if learn_sigma:
        raise UserError("config.model.learn_sigma is True: training.objective = flow_map trains no variance.")
    if not model.spans:
        raise UserError("training.objective = flow_map needs a network told of two times: set config.model.span=True.")
    if model.consistency:
        _refuse_other_jumps(options)
    if times.times:
        raise UserError(
            "training.objective = flow_map needs times between any two: config.training.time_sampler = "
            f"{options.time_sampler.name} draws those of a chain."
        )
    noising = noising_of(options, times, prepare, num_classes)
    return FlowMap(
        model, noising, options.flow_map, options.flow_map_equal, options.flow_map_power, options.flow_map_whole,
        options.smallest_time, options.largest_time, _guidance(model, options), awaited=options.teacher,
    )  # fmt: skip


def _refuse_other_jumps(options: TrainOptions) -> None:
    """Raise UserError for what would ask a consistency model for more than jumps to t = 0."""
    for name, only in (("flow_map", "consistency"), ("flow_map_equal", 0.0), ("smallest_time", 0.0),
                       ("flow_map_guidance", (1.0, 1.0))):  # fmt: skip
        if (value := getattr(options, name)) != only:
            raise UserError(
                f"config.training.{name} is {value!r}, config.model.consistency True, of a network that knows jumps to "
                f"t = 0 alone: it needs {only!r}."
            )


def _guidance(model: Model, options: TrainOptions) -> tuple[float, float]:
    """Return the scales of guidance that are learnt; raises UserError where they, or their network, cannot be."""
    least, most = found = tuple(float(scale) for scale in options.flow_map_guidance)
    said, told = f"config.training.flow_map_guidance is {found}", getattr(model.network, "guidance", False)
    if least > most:
        raise UserError(f"{said}: give (least, largest).")
    if found != (1.0, 1.0) and not options.label_dropout:
        raise UserError(f"{said}: guidance needs config.training.label_dropout above 0, and labels.")
    if told != (least < most):
        need = "a range of scales (1.0, 4.0)" if told else "config.model.guidance=True for a range of them"
        raise UserError(f"{said}, config.model.guidance {told}: it needs {need}.")
    return found
