"""Denoisers made of denoisers: guided ones, for every path, prediction and sampler.

Given x_t and t, the posterior mean of x0, the velocity and the score are affine in that of the noise, with coefficients
that all denoisers share, and the weights of a guided mean, scale and 1 - scale, sum to one: to extrapolate one of them
is to extrapolate all. Here it is the pair (x0, noise), and alpha x0 + sigma noise stays x_t.

Samplers count calls of the denoiser that they see. Behind each call, classifier-free guidance makes one network call of
twice the batch, autoguidance one of each network, and classifier guidance one and a gradient of the classifier.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from score_flow.errors import UserError
from score_flow.model import Denoiser
from score_flow.numerics import expand
from score_flow.paths.base import Coefficients, Path
from score_flow.process.prediction import Estimate, data
from score_flow.types import Condition, Images, Keys, Times

# (x, t, label), each of a batch -> log p(label | x_t) in nats
LogProb = Callable[[Images, Float[Array, "b"], Integer[Array, "b"]], Float[Array, "b"]]


@dataclasses.dataclass(frozen=True)
class Extrapolation:
    """good + (scale - 1)(good - bad), of both posterior means.

    Attributes:
        scale: 1 returns the good, 0 the bad.
        interval: times (first, last) between which it acts (arXiv:2404.07724); a matter of quality, not of cost.
        rescale: share phi of the guided x0 that is scaled back to the standard deviation of the good one, each example
            alone (arXiv:2305.08891, sec. 3.4, there of the network's output: of x0 it means the same for all outputs).
        channels: only the first so many channels are guided, 0 = all. SiT's published samples guide 3 of 4.
    """

    scale: float = 1.0
    interval: tuple = (0.0, 1.0)
    rescale: float = 0.0
    channels: int = 0

    def __post_init__(self):
        numbers = all(isinstance(time, float | int) for time in self.interval)
        if len(self.interval) != 2 or not numbers or not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise UserError(f"config.guidance.interval is {self.interval}; give (first, last) time, within [0, 1].")

    def __call__(self, good: Estimate, bad: Estimate, t: Times, c: Coefficients) -> Estimate:
        """Return the guided pair; a learned variance stays the good one's."""
        x0, noise = (g + (self.scale - 1) * (g - b) for g, b in ((good.x0, bad.x0), (good.noise, bad.noise)))
        guided = Estimate(x0, noise, good.variance)
        if self.rescale:
            used = slice(self.channels or None)
            ratio = _std_ratio(good.x0[..., used], x0[..., used])
            guided = with_x0(guided, x0 * (1 + self.rescale * (ratio - 1)), c)
        acts = self._acts(t, x0)
        return guided._replace(x0=jnp.where(acts, guided.x0, good.x0), noise=jnp.where(acts, guided.noise, good.noise))

    def _acts(self, t: Times, x: Images) -> Bool[Array, "..."]:
        """Say which numbers of x are guided at time t."""
        channels = x.shape[-1]
        return self.within(expand(t, x)) & (jnp.arange(channels) < (self.channels or channels))

    def within(self, t: Float[Array, "..."]) -> Bool[Array, "..."]:
        """Say at which times guidance acts."""
        first, last = self.interval
        return (first <= t) & (t <= last)


def with_x0(estimate: Estimate, x0: Images, c: Coefficients) -> Estimate:
    """Return the pair with another x0; the noise follows so that alpha x0 + sigma noise stays x_t."""
    # Moved by d noise / d x0 rather than solved for: where x0 stays, not a bit of the noise changes.
    return estimate._replace(x0=x0, noise=estimate.noise + data.gain(c) * (x0 - estimate.x0))


def _std_ratio(x: Images, y: Images) -> Float[Array, "b *_"]:
    """Return std(x) / std(y) of each example; 1 where y is constant."""
    x, y = (jnp.var(z, axis=tuple(range(1, z.ndim)), keepdims=True) for z in (x, y))
    return jnp.sqrt(jnp.where(y > 0, x, 1.0) / jnp.where(y > 0, y, 1.0))


@dataclasses.dataclass(frozen=True)
class Around(Denoiser):
    """A denoiser made of another, on the same path and under the same condition."""

    denoiser: Denoiser

    @property
    def path(self) -> Path:
        return self.denoiser.path

    @property
    def condition(self) -> Condition:
        return self.denoiser.condition

    @property
    def spans(self) -> bool:
        return self.denoiser.spans

    @property
    def consistency(self) -> bool:
        return self.denoiser.consistency

    def given(self, condition: Condition) -> "Around":
        return dataclasses.replace(self, denoiser=self.denoiser.given(condition))

    def start(self, keys: Keys, shape: tuple[int, ...], t: float) -> Images:
        return self.denoiser.start(keys, shape, t)

    def in_chain(self) -> "Around":
        return dataclasses.replace(self, denoiser=self.denoiser.in_chain())

    def constrain(self, x: Images, mean: Images, noise: Images, t: Times) -> tuple[Images, Images]:
        return self.denoiser.constrain(x, mean, noise, t)


@dataclasses.dataclass(frozen=True)
class Tempered(Around):
    """Samplers begin from `temperature` times a draw of the prior: below 1 fewer kinds of samples, each more typical.

    A deterministic sampler then draws from the latents near the mode; what a stochastic one adds on its way, it adds in
    full.
    """

    temperature: float

    def estimate(self, x: Images, t: Times) -> Estimate:
        return self.denoiser.estimate(x, t)

    def start(self, keys: Keys, shape: tuple[int, ...], t: float) -> Images:
        return self.temperature * self.denoiser.start(keys, shape, t)


@dataclasses.dataclass(frozen=True)
class ClassifierFree(Around):
    """Away from what the same network says without the label (Ho and Salimans 2022, arXiv:2207.12598).

    With exact scores it is the score of p_t(x | y)^scale p_t(x)^(1 - scale), at each t. `null` is the label that stands
    for none. Raises UserError for a denoiser without labels.
    """

    null: int
    guidance: Extrapolation

    def estimate(self, x: Images, t: Times) -> Estimate:
        if self.guidance.scale == 1:
            return self.denoiser.estimate(x, t)
        label, t = _label(self.condition), jnp.broadcast_to(t, x.shape[:1])
        without = self.condition | {"label": jnp.full_like(label, self.null)}
        both = self.denoiser.given(jax.tree.map(_alternate, self.condition, without))
        good, bad = _parts(both.estimate(_alternate(x, x), _alternate(t, t)))
        return self.guidance(good, bad, t, self.path.at(t).expand(x))


@dataclasses.dataclass(frozen=True)
class Told(Around):
    """A network that is told of guidance, condition["guidance"] = (1 - 1/scale, *interval), and was trained to heed it.

    One network call, where classifier-free guidance is one of twice the batch.
    """

    guidance: Extrapolation

    def estimate(self, x: Images, t: Times) -> Estimate:
        condition, (first, last) = self.condition or {}, self.guidance.interval
        share = jnp.full(x.shape[:1], 1 - 1 / self.guidance.scale)
        if "span" not in condition:  # at one time it acts or does not
            share, first, last = jnp.where(self.guidance.within(jnp.broadcast_to(t, share.shape)), share, 0.0), 0.0, 1.0
        told = jnp.stack([share, jnp.full_like(share, first), jnp.full_like(share, last)], axis=1)
        return self.denoiser.given(condition | {"guidance": told.astype(x.dtype)}).estimate(x, t)


def _alternate(x: Array, y: Array) -> Array:
    """Interleave x[0], y[0], x[1], ...: side by side, both halves of a sharded batch stay on their example's device."""
    return jnp.stack([x, y], axis=1).reshape(2 * x.shape[0], *x.shape[1:])


def _parts(estimate: Estimate) -> tuple[Estimate, Estimate]:
    """Undo `_alternate`."""
    pairs = jax.tree.map(lambda leaf: leaf.reshape(-1, 2, *leaf.shape[1:]), estimate)
    return jax.tree.map(lambda leaf: leaf[:, 0], pairs), jax.tree.map(lambda leaf: leaf[:, 1], pairs)


def _label(condition: Condition) -> Integer[Array, "b"]:
    if condition is None or "label" not in condition:
        raise UserError("guidance towards a class needs condition['label'].")
    return condition["label"]


@dataclasses.dataclass(frozen=True)
class Autoguided(Around):
    """Away from what a worse model of the same data says (Karras et al. 2024, arXiv:2406.02507).

    `bad` (smaller, or trained less) is asked under the condition of the good denoiser.
    """

    bad: Denoiser
    guidance: Extrapolation

    @property
    def spans(self) -> bool:
        return self.denoiser.spans and self.bad.spans

    @property
    def consistency(self) -> bool:
        return self.denoiser.consistency or self.bad.consistency

    def estimate(self, x: Images, t: Times) -> Estimate:
        good = self.denoiser.estimate(x, t)
        if self.guidance.scale == 1:
            return good
        return self.guidance(good, self.bad.given(self.condition).estimate(x, t), t, self.path.at(t).expand(x))


@dataclasses.dataclass(frozen=True)
class Thresholded(Around):
    """x0 clipped to the data's range [low, high] (Saharia et al. 2022, sec. 2.3, arXiv:2205.11487).

    Static if percentile is None. Dynamic: with z = x0 in units where the range is [-1, 1] and r the percentile of |z|
    over the example, at least 1, z is clipped to [-r, r] and divided by r.
    """

    low: float
    high: float
    percentile: float | None = None
    spans = False  # what an average velocity decodes to is no E[x0 | x_t]

    def estimate(self, x: Images, t: Times) -> Estimate:
        estimate = self.denoiser.estimate(x, t)
        return with_x0(estimate, self._threshold(estimate.x0), self.path.at(t).expand(x))

    def _threshold(self, x0: Images) -> Images:
        clipped = jnp.clip(x0, self.low, self.high)
        if self.percentile is None:
            return clipped
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        z = (x0 - middle) / half
        r = jnp.quantile(jnp.abs(z), self.percentile, axis=tuple(range(1, z.ndim)), keepdims=True)
        # Where r <= 1 the rule is the static one, and what lies in the range stays as it is, to the bit.
        return jnp.where(r > 1, middle + half * jnp.clip(z, -r, r) / r, clipped)


@dataclasses.dataclass(frozen=True)
class ClassifierGuided(Around):
    """score + scale grad_x log p(y | x_t) (Dhariwal and Nichol 2021, arXiv:2105.05233).

    log_prob(x, t, label) is (b,), in nats, of an x_t with noise; the label is condition["label"], which a network
    without classes ignores. At alpha = 0, where x_t tells nothing of the class, there is no guidance.
    Raises UserError for a denoiser without labels.
    """

    log_prob: LogProb
    scale: float = 1.0
    spans = False  # the gradient is one of a time alone

    def estimate(self, x: Images, t: Times) -> Estimate:
        estimate, label = self.denoiser.estimate(x, t), _label(self.condition)
        times, c = jnp.broadcast_to(t, x.shape[:1]), self.path.at(t).expand(x)
        gradient = jax.grad(lambda x: jnp.sum(self.log_prob(x, times, label)))(x)
        # noise = -sigma score, and x0 moves against it.
        shift = jnp.where(c.alpha > 0, c.sigma * self.scale, 0.0) * gradient
        return estimate._replace(
            x0=estimate.x0 + c.sigma / jnp.where(c.alpha > 0, c.alpha, 1.0) * shift, noise=estimate.noise - shift
        )
