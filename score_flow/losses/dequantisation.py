"""From pixel levels to continuous images: what turns a density p of images into a likelihood of their levels.

A dequantiser draws x ~ q(x | v) for an image of levels v, and levels are read off x with probability P(v | x). Whatever
q is,

    -log P(v) = -log int p(x) P(v | x) dx <= E_q[-log p(x) + log q(x | v) - log P(v | x)],

an exact bound on the likelihood of the levels: that of a lossless code of them.
"""

import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Shaped

from score_flow.data.levels import by_key, to_model
from score_flow.data.preprocessing import Preprocess
from score_flow.data.scaling import Scaling
from score_flow.losses.base import ByExample, Product, keys_of
from score_flow.losses.simple import Denoising
from score_flow.numerics import mean_flat, sum_flat
from score_flow.paths.base import Path
from score_flow.process.bound import known_integral, prior, share_of_gaussian
from score_flow.process.times import TimeSampler
from score_flow.tree import static
from score_flow.types import Batch, Condition, Images, Key, Keys, Params

Levels = Shaped[Array, "b h w c"]  # uint8; the uniform dequantiser hands real numbers through


class Dequantised(NamedTuple):
    """x ~ q(x | v), and (log2 q(x | v) - log2 P(v | x)) / d: bits that -log2 p(x) / d lacks of the bound."""

    x: Images
    bits: Float[Array, "b"]


Dequantiser = Callable[[Keys, Levels], Dequantised]  # one key for each image


@flax.struct.dataclass
class UniformDequantiser:
    """x uniform in the cell of its level, off which the level is read for certain (Theis et al., arXiv:1511.01844).

    The cell is that of scaling, here and below: exact levels, around which the model has all of its density, want it
    centred.
    """

    scaling: Scaling = static()

    def __call__(self, keys: Keys, levels: Levels) -> Dequantised:
        u = jax.vmap(lambda key: jax.random.uniform(key, levels.shape[1:]))(keys)
        return Dequantised(self.scaling.dequantise(levels, u), jnp.full(len(levels), self.scaling.bits_offset))


@flax.struct.dataclass
class VariationalDequantiser:
    """x in the cell of its level, where a flow puts it: q(u | v) on the unit cube (Flow++, arXiv:1902.00275).

    network(levels in [0, 1], normal noise, deterministic=) -> (u, log q(u | v) in nats), as FlowppDequantiser.
    """

    network: nn.Module = static()
    scaling: Scaling = static()
    params: PyTree = None

    def __call__(self, keys: Keys, levels: Levels, *, dropout: Key | None = None) -> Dequantised:
        noise = jax.vmap(lambda key: jax.random.normal(key, levels.shape[1:]))(keys)
        unit = levels / jnp.asarray(self.scaling.levels - 1, noise.dtype)
        rngs = None if dropout is None else {"dropout": dropout}
        u, log_q = self.network.apply({"params": self.params}, unit, noise, deterministic=dropout is None, rngs=rngs)
        bits = self.scaling.bits_offset + log_q / (levels[0].size * math.log(2))
        return Dequantised(self.scaling.dequantise(levels, u), bits)


@flax.struct.dataclass
class DecoderDequantiser:
    """x is x_t of the levels as the model saw them, and each is read off x with P(v | x) = q(x | v) / sum_w q(x | w).

    The bound then is E_q[-log p(x) + log sum_w q(x | w)], a sum over levels w for each number (arXiv:2107.00630).
    dequantised: the model was trained on levels with uniform noise in their cells, so that q(x | v) is a cell under the
    noise of t, and as t -> 0 this is the uniform dequantiser. Otherwise q(x | v) = N(alpha v, sigma^2).
    """

    path: Path = static()
    scaling: Scaling = static()
    t: float = static()
    dequantised: bool = static()

    def __call__(self, keys: Keys, levels: Levels) -> Dequantised:
        keys = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
        x0 = to_model(self.scaling, self.dequantised, levels, by_key(keys[:, 0]))
        noise = jax.vmap(lambda key: jax.random.normal(key, levels.shape[1:]))(keys[:, 1])
        x = self.path.perturb(x0, noise, jnp.asarray(self.t, x0.dtype))
        log_sum = self._log_sum_of_cells(x) if self.dequantised else self._log_sum_of_points(x)
        return Dequantised(x, mean_flat(log_sum) / math.log(2))

    def _ends(self, x: Images) -> tuple[Float[Array, ""], Float[Array, ""]]:
        t = jnp.asarray(self.t, x.dtype)
        return self.path.alpha(t), self.path.sigma(t)

    def _log_sum_of_cells(self, x: Images) -> Images:
        """log sum_v q(x | v) of cells: they fill the range, whose ends alone are left."""
        (alpha, sigma), scaling = self._ends(x), self.scaling
        above_low, above_high = (x - alpha * scaling.low) / sigma, (x - alpha * scaling.high) / sigma
        cdf = jax.scipy.special.ndtr
        # In the nearer tail: there a difference of distribution functions is one of small numbers.
        inside = jnp.where(
            above_low + above_high < 0, cdf(above_low) - cdf(above_high), cdf(-above_high) - cdf(-above_low)
        )
        tiny = jnp.finfo(x.dtype).tiny
        return jnp.log(jnp.maximum(inside, tiny)) - jnp.log(alpha * (scaling.high - scaling.low) / scaling.levels)

    def _log_sum_of_points(self, x: Images) -> Images:
        """log sum_v q(x | v) of levels that are points, one after the other: all at once would be 256 images each."""
        alpha, sigma = self._ends(x)

        def add(total, level):
            z = (x - alpha * self.scaling.normalise(level)) / sigma
            return jnp.logaddexp(total, -0.5 * z**2), None

        total, _ = jax.lax.scan(add, jnp.full_like(x, -jnp.inf), jnp.arange(self.scaling.levels))
        return total - jnp.log(sigma) - 0.5 * math.log(2 * math.pi)


@flax.struct.dataclass
class TruncatedNormalDequantiser:
    """x is x_t of a level's centre with noise that stays in its cell, off which it is read for certain.

    x = alpha v + sigma u with u ~ N(0, 1) on (-tau, tau), tau = alpha half a cell / sigma, so that q(x | v) is
    phi(u)/(sigma erf(tau/sqrt(2))) (Zheng et al. 2023, arXiv:2305.03935, sec. 3.2).
    """

    path: Path = static()
    scaling: Scaling = static()
    t: float = static()
    dequantised: bool = static()

    def __call__(self, keys: Keys, levels: Levels) -> Dequantised:
        middles = self.scaling.normalise(levels)
        if self.dequantised:
            middles = self.scaling.dequantise(levels, jnp.full_like(middles, 0.5))
        t = jnp.asarray(self.t, middles.dtype)
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        cells = self.scaling.levels - (0 if self.dequantised else 1)
        tau = alpha * (self.scaling.high - self.scaling.low) / (2 * cells * sigma)
        draw = lambda key: jax.random.truncated_normal(key, -tau, tau, levels.shape[1:], middles.dtype)  # noqa: E731
        u = jax.vmap(draw)(keys)
        log_q = -0.5 * u**2 - 0.5 * math.log(2 * math.pi) - jnp.log(sigma * jax.lax.erf(tau / math.sqrt(2)))
        return Dequantised(alpha * middles + sigma * u, mean_flat(log_q) / math.log(2))


class Guessed(NamedTuple):
    """What the bound of levels is guessed by: a key of the flow each, a time, the importance of it, and noise."""

    levels: Levels
    condition: Condition
    keys: Keys
    weight: Float[Array, "b"]
    t: Float[Array, "b"]
    importance: Float[Array, "b"]
    noise: Images


@flax.struct.dataclass
class Dequantisation(ByExample):
    """The loss of a variational dequantiser: bits/dim of the levels, bounded by a score model that is held fixed.

    E_q[-log p(x) + log q(u | v)] with score_flow's bound for -log p (arXiv:2101.09258, theorem 3), in which n_hat is
    the model's estimate of the noise n and H the entropy of q(x_{t_min} | x):

        -log p(x) <= KL(q(x_{t_max} | x) || p) + 1/2 int g^2/sigma^2 E|n_hat - n|^2 dt + H.

    score: the weights of the score model. levels: (key, batch) -> (levels, condition).
    score_matching: the integrand, likelihood weighted, by times from t_min to t_max; its losses are half sums.
    """

    network: nn.Module = static()
    scaling: Scaling = static()
    levels: Preprocess = static()
    score_matching: Denoising = static()
    t_min: float = static()
    t_max: float = static()
    score: PyTree = None

    produces: ClassVar[Product] = "dequantiser"

    @property
    def times(self) -> TimeSampler:
        return self.score_matching.times

    def init(self, key: Key, batch: Batch) -> Params:
        """Make parameters that standardise the flow on the levels of a batch (arXiv:1902.00275)."""
        init_key, noise_key = jax.random.split(key)
        levels = batch["image"]
        noise = jax.random.normal(noise_key, levels.shape)
        unit = levels / jnp.asarray(self.scaling.levels - 1, noise.dtype)
        return self.network.init(init_key, unit, noise)["params"]

    def draw(self, time_state: PyTree, key: Key, batch: Batch, train: bool) -> tuple[Guessed, Key | None]:
        """Draw what the flow is given, times and noise of the bound; and the key of the flow's dropout."""
        data_key, loss_key = keys_of(key, train)
        levels, condition = self.levels(data_key, batch)
        flow_key, dropout_key, bound_key = jax.random.split(loss_key, 3)
        looked_at = self.look(bound_key, levels.shape)
        drawn = Guessed(levels, condition, jax.random.split(flow_key, len(levels)), jnp.ones(len(levels)), *looked_at)
        return drawn, dropout_key if train else None

    def examples(self, params: Params, drawn: Guessed, key: Key | None = None) -> Float[Array, "b"]:
        """Return the bound of each example, in bits/dim."""
        dequantiser = VariationalDequantiser(self.network, self.scaling, params)
        x, bits = dequantiser(drawn.keys, drawn.levels, dropout=key)
        nats = self.bound(x, drawn.t, drawn.importance, drawn.noise, drawn.condition)
        return bits + nats / (x[0].size * math.log(2))

    def look(self, key: Key, shape: tuple[int, ...]) -> tuple[Float[Array, "b"], Float[Array, "b"], Images]:
        """(a time that the bound of each image looks at, its importance weight, noise)."""
        time_key, noise_key = jax.random.split(key)
        t, importance = self.times.sample(self.times.init(), time_key, shape[0])
        return t, importance, jax.random.normal(noise_key, shape)

    def bound(
        self, x: Images, t: Float[Array, "b"], importance: Float[Array, "b"], noise: Images, condition: Condition = None
    ) -> Float[Array, "b"]:
        """Return an unbiased estimate of the bound on -log p(x) in nats, by what `look` drew."""
        path, d = self.score_matching.model.path, x[0].size
        c = path.at(t)
        half_squares = self.score_matching.at(self.score, x, noise, t, condition)
        # Less what it is for data N(m, s^2 I), whose integral is known, noise and all: there is no guessing fine noise,
        # and its square would drown the rest.
        data_std = self.score_matching.model.preconditioning.data_std
        share = share_of_gaussian(path, t, data_std)
        expected = share**2 * (sum_flat(noise**2) - d) + share * d
        rest = (self.t_max - self.t_min) * importance * (half_squares - 0.5 * c.g2 / c.sigma**2 * expected)
        known = known_integral(path, x, self.t_min, self.t_max, data_std)
        return rest + known + prior(path, x, self.t_max)
