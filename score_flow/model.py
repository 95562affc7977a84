"""Where networks meet paths: the static half of a trained thing, and the posterior means it defines."""

import abc
import dataclasses
import functools
import math
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from score_flow.errors import UserError, check_choice
from score_flow.networks.blocks.transformer import ASIDE
from score_flow.numerics import expand
from score_flow.paths.base import Coefficients, Path
from score_flow.process.prediction import Estimate, Prediction, uncontrasted
from score_flow.types import Condition, Images, Key, Keys, Params, Times

OWN = "objective"  # the name, among a run's parameters, of what its loss learns beside the network
PROJECTOR = "projector"  # ... the part of it that nothing reads after training (losses/alignment.py)
Output = Float[Array, "b *_"]  # of a network: as x, or with twice the channels
TimeFeature = Literal["t", "1-t", "log_t", "log_sigma", "sigma", "log_snr"]
InputScale = Literal["none", "unit_variance", "2x-1"]


@dataclasses.dataclass(frozen=True)
class Preconditioning:
    """What the network sees of (x, t): time_scale x (a time feature) + time_shift, and a scaled input.

    Time: t; 1 - t (SiT; level numbers of NCSN, which count from the largest sigma); log sigma, sigma (NCSN++ with
    Fourier features); log_snr. score_sde scales t by 999, improved-diffusion by 1000, and step i of a chain of n steps,
    at t = (i + 1)/n, is n t - 1: kept per recipe, so that weights transfer. Input: none, 2x - 1 (score_sde's
    `centered=False`), or unit_variance = x / sqrt(alpha^2 data_std^2 + sigma^2) (EDM, arXiv:2206.00364, table 1).
    """

    time: TimeFeature = "t"
    time_scale: float = 999.0
    time_shift: float = 0.0
    input: InputScale = "none"
    data_std: float = 0.5

    def __post_init__(self):
        check_choice("model.time", self.time, get_args(TimeFeature))
        check_choice("model.input", self.input, get_args(InputScale))

    def time_feature(self, t: Times, c: Coefficients) -> Times:
        match self.time:
            case "t":
                feature = t
            case "1-t":
                feature = 1.0 - t
            case "log_t":
                feature = jnp.log(t)
            case "sigma":
                feature = c.sigma
            case "log_sigma":
                feature = jnp.log(c.sigma)
            case "log_snr":
                feature = c.log_snr
        return self.time_scale * feature + self.time_shift

    def scale_input(self, x: Images, c: Coefficients) -> Images:
        match self.input:
            case "none":
                return x
            case "2x-1":
                return 2.0 * x - 1.0
            case "unit_variance":
                return x / expand(jnp.sqrt((c.alpha * self.data_std) ** 2 + c.sigma**2), x)


UNGUIDED = (0.0, 0.0, 1.0)  # what a network is told of no guidance: 1 - 1/scale, first and last time


class Denoiser(abc.ABC):
    """A path and the posterior means along it; samplers, likelihoods and guidance see only this."""

    path: Path
    condition: Condition = None
    spans: bool = False  # whether condition["span"] means something to it: see average_velocity
    consistency: bool = False  # whether it knows average velocities to s = 0 alone, and no velocity

    @abc.abstractmethod
    def given(self, condition: Condition) -> "Denoiser":
        """Return the denoiser under a condition of another batch (solvers that step an example alone slice theirs)."""

    @abc.abstractmethod
    def estimate(self, x: Images, t: Times) -> Estimate:
        """E[x0 | x_t] and E[noise | x_t]; one network call."""

    def start(self, keys: Keys, shape: tuple[int, ...], t: float) -> Images:
        """Return what samplers begin from at time t: a draw of the prior, unless sampling is controlled."""
        return self.path.prior_sample(keys, shape, t)

    def in_chain(self) -> "Denoiser":
        """Return the denoiser for kernels in a chain, which calls `constrain`; who needs this refuses any other use."""
        return self

    def constrain(self, x: Images, mean: Images, noise: Images, t: Times) -> tuple[Images, Images]:
        """Put what is known of x0 into a kernel's draw of x_t and its mean; noise is new and standard normal."""
        return x, mean

    def x0(self, x: Images, t: Times) -> Images:
        return self.estimate(x, t).x0

    def score(self, x: Images, t: Times) -> Images:
        """grad log p_t(x) = -E[noise | x_t] / sigma."""
        return score_of(self.estimate(x, t), self.path.at(t).expand(x))

    def velocity(self, x: Images, t: Times) -> Images:
        """dx/dt of the probability-flow ODE, alpha' E[x0 | x_t] + sigma' E[noise | x_t]."""
        return velocity_of(self.estimate(x, t), self.path.at(t).expand(x))

    def average_velocity(self, x: Images, t: Times, s: Times) -> Images:
        """u = (x_t - x_s)/(t - s) along the probability flow through (x, t): one network call (arXiv:2505.13447).

        A network that is told t - s, condition["span"], reads u out as it does the velocity, which is u at s = t. Of a
        consistency model u is not a number but at s = 0. Raises UserError for a denoiser that knows the velocity alone.
        """
        if not self.spans:
            raise UserError(
                "an average velocity needs a network that is told of two times: config.model.span = True, trained by "
                "training.objective = flow_map; a classifier, thresholds and config.control.method = pseudo_inverse "
                "ask for posterior means, which it has not."
            )
        span = jnp.broadcast_to(jnp.asarray(t - s, x.dtype), x.shape[:1])
        return self.given((self.condition or {}) | {"span": span}).velocity(x, t)


def score_of(estimate: Estimate, c: Coefficients) -> Images:
    """Return the score in a pair of posterior means; c broadcasts over one example."""
    return -estimate.noise / c.sigma


def velocity_of(estimate: Estimate, c: Coefficients) -> Images:
    """Return the probability-flow velocity in a pair of posterior means; c broadcasts over one example."""
    return c.dalpha * estimate.x0 + c.dsigma * estimate.noise


@dataclasses.dataclass(frozen=True)
class Model:
    """The static half: everything that a config decides. Hashable; holds no arrays.

    contrast: the weight of the contrastive term that the network was trained with, whose shift is undone wherever its
    output is read (process.prediction.uncontrasted). consistency: what it reads out is u(x_t, t, 0).
    """

    network: nn.Module
    path: Path
    prediction: Prediction
    preconditioning: Preconditioning = Preconditioning()
    contrast: float = 0.0
    consistency: bool = False

    @property
    def spans(self) -> bool:
        """Whether its network knows average velocities."""
        return self.consistency or getattr(self.network, "span", False)

    def init(self, key: Key, shape: tuple[int, ...], condition: Condition = None) -> Params:
        """Make parameters for a batch of the given shape (b, *d)."""
        return _init(self.network, key, shape, condition)

    def apply(
        self, params: Params, x: Images, t: Times, condition: Condition = None, *, key: Key | None = None
    ) -> Output:
        """Return the network's raw output, of c channels or, with a learned variance, 2 c; a key turns dropout on."""
        return self._applied(params, x, t, condition, key)

    def tapped(
        self, params: Params, x: Images, t: Times, condition: Condition = None, *, key: Key | None = None
    ) -> tuple[Output, Float[Array, "b n width"]]:
        """Return the output, and what the block `tap` of the network returns of its patches, row by row."""
        output, found = self._applied(params, x, t, condition, key, mutable=[ASIDE])
        return output, found[ASIDE]["hidden"]

    def with_velocity(
        self, params: Params, x: Images, t: Times, condition: Condition = None, *, key: Key | None = None
    ) -> tuple[Output, Output | None]:
        """Return the raw output, and that of the network's head for the velocity: None where it has none."""
        if not getattr(self.network, "velocity_head", 0):
            return self._applied(params, x, t, condition, key), None
        output, found = self._applied(params, x, t, condition, key, mutable=[ASIDE])
        return output, found[ASIDE]["velocity"]

    def _applied(
        self, params: Params, x: Images, t: Times, condition: Condition, key: Key | None, **options: Any
    ) -> Any:
        t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
        c = self.path.at(t)
        time, scaled = self.preconditioning.time_feature(t, c), self.preconditioning.scale_input(x, c)
        if getattr(self.network, "guidance", False):
            condition = {"guidance": jnp.broadcast_to(jnp.array(UNGUIDED, x.dtype), (len(x), 3))} | (condition or {})
        for name in [name for name in ("span", "guidance") if name in (condition or {})]:
            condition = condition | {name: self.preconditioning.time_scale * condition[name]}
        options |= {"deterministic": key is None, "rngs": None if key is None else {"dropout": key}}
        return self.network.apply({"params": params}, scaled, time, condition, **options)

    def split(self, output: Output, x: Images) -> tuple[Images, Images | None]:
        """(what `prediction` speaks of, the other half of the channels or None)."""
        c = x.shape[-1]
        return output[..., :c], output[..., c:] if output.shape[-1] > c else None

    def bind(self, params: Params, condition: Condition = None) -> "NetworkDenoiser":
        """Return the denoiser of some parameters; free to build inside jit."""
        return NetworkDenoiser(self, params, condition)


@functools.partial(jax.jit, static_argnums=(0, 2), inline=True)
def _init(network: nn.Module, key: Key, shape: tuple[int, ...], condition: Condition) -> Params:
    # A start asks for the parameters' shapes, more than once, and then for parameters: jit keeps one trace for all.
    t = jnp.full((shape[0],), 0.5)
    return network.init({"params": key}, jnp.zeros(shape), t, condition)["params"]


class NetworkDenoiser(Denoiser):
    """A model with its parameters and a condition of the same batch."""

    def __init__(self, model: Model, params: Params, condition: Condition = None):
        self.model, self.params, self.condition = model, params, condition
        self.path, self.spans, self.consistency = model.path, model.spans, model.consistency

    def given(self, condition: Condition) -> "NetworkDenoiser":
        return NetworkDenoiser(self.model, self.params, condition)

    def estimate(self, x: Images, t: Times) -> Estimate:
        """E[x0 | x_t] and E[noise | x_t]; UserError for a consistency model, which has neither."""
        span = (self.condition or {}).get("span")
        if self.consistency and span is None:
            raise UserError(
                "a consistency model (config.model.consistency) knows the jump to t = 0 alone, no velocity, score or "
                "posterior mean: draw by config.sampling.name = consistency, and ask for no likelihood."
            )
        output, variance = self.model.split(self.model.apply(self.params, x, t, self.condition), x)
        c = self.path.at(t).expand(x)
        estimate = self.model.prediction.decode(output, x, c)
        if self.consistency:
            unknown = expand(jnp.where(span == jnp.asarray(t, span.dtype), 0.0, jnp.nan).astype(x.dtype), x)
            estimate = Estimate(*(part + unknown for part in estimate[:2]))
        if self.model.contrast:
            mean = self.params[OWN]["mean"].reshape(x.shape[1:])
            estimate = uncontrasted(estimate, x, c, share=self.model.contrast, mean=mean)
        return estimate._replace(variance=variance)


def count_parameters(params: PyTree) -> int:
    """Count the numbers that a tree of parameters holds (works on jax.eval_shape's trees too)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
