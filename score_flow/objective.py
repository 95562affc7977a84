"""One loss for every path, prediction and weighting."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from score_flow.coupling import optimal
from score_flow.model import Model
from score_flow.numerics import expand, mean_flat, sum_flat
from score_flow.paths.base import Coefficients
from score_flow.prediction import Estimate
from score_flow.times import TimeSampler
from score_flow.types import Condition, Images, Key, Params, Times, UserError, check_choice
from score_flow.variational import VariationalBound

Kind = Literal["simple", "hybrid", "vlb"]
Coupling = Literal["independent", "ot"]


@functools.cache
def min_snr(gamma: float = 5.0) -> Callable[[Coefficients], Times]:
    """min(SNR, gamma) |x0 error|^2 = min(1, gamma/SNR) |noise error|^2 (Hang et al. 2023, arXiv:2303.09556)."""
    return lambda c: jnp.minimum(1.0, gamma * (c.sigma / c.alpha) ** 2)


# Weights of |noise_hat - noise|^2. Each is written as the space in which the error is a plain mean square.
WEIGHTINGS: dict[str, Callable[[Coefficients], Times]] = {
    "simple": lambda c: jnp.ones_like(c.alpha),  # |noise error|^2 (Ho et al. 2020, eq. 14)
    "velocity": lambda c: (c.det / c.alpha) ** 2,  # |velocity error|^2 (Lipman et al. 2023)
    "data": lambda c: (c.sigma / c.alpha) ** 2,  # |x0 error|^2
    "likelihood": lambda c: c.g2 / c.sigma**2,  # g^2 |score error|^2 (Song et al. 2021, thm. 1, arXiv:2101.09258)
    "min_snr": min_snr(),
}


class Aux(NamedTuple):
    """What a loss says besides its value: per-example losses (importance weights included) at their times."""

    losses: Float[Array, "b"]
    t: Float[Array, "b"]
    time_state: PyTree


def weighted(
    losses: Float[Array, "b"], importance: Float[Array, "b"], t: Times, times: TimeSampler, time_state: PyTree
) -> tuple[Float[Array, ""], Aux]:
    """The importance-weighted mean of a batch; the time sampler learns from the losses without their weights."""
    time_state = times.update(time_state, t, jax.lax.stop_gradient(losses))
    losses = importance * losses
    return jnp.mean(losses), Aux(losses, t, time_state)


@dataclasses.dataclass(frozen=True)
class Objective:
    """E_t [ weight(t) |noise_hat(x_t, t) - noise|^2 ] with t from a time sampler, or a chain's variational bound.

    kind: "simple", that; "vlb", n L_t in bits per dimension, whose mean over the n steps is the bound without its
    constant, the prior; "hybrid", simple + vlb_weight vlb, in which the bound trains the variance only: no gradient
    flows from it to the mean (Nichol and Dhariwal 2021, sec. 3.1, arXiv:2102.09672). Theirs is lambda = 0.001 of the
    whole bound for every n, that is n/1000 L_t beside a mean square; their unscaled variant, L_t, is vlb_weight = 1/n.
    reduce: "mean" over the axes of an example, or "sum", half the sum (score_sde's `reduce_mean=False`).
    label_dropout: probability of replacing a label by the null class `null_label` (arXiv:2207.12598).
    coupling: "independent" noise, or "ot": the batch's noise goes to its images by optimal transport. The velocity then
        still is that of a flow from noise to data, but -E[noise | x_t]/sigma no longer the score: samplers of the flow
        and its likelihood are right, those with noise are not. Labels are not looked at.
    """

    model: Model
    times: TimeSampler
    weighting: Callable[[Coefficients], Times]
    reduce: Literal["mean", "sum"] = "mean"
    label_dropout: float = 0.0
    null_label: int = 0
    kind: Kind = "simple"
    bound: VariationalBound | None = None
    vlb_weight: float = 1e-3
    coupling: Coupling = "independent"

    def __post_init__(self):
        check_choice("training.objective", self.kind, get_args(Kind))
        check_choice("training.coupling", self.coupling, get_args(Coupling))
        if self.coupling != "independent" and self.kind != "simple":
            raise UserError(f"training.coupling = {self.coupling} needs training.objective = simple, got {self.kind}.")
        if self.kind != "simple" and self.bound is None:
            raise UserError(f"training.objective = {self.kind} needs the variational bound of a chain.")
        if self.kind == "hybrid" and not self.bound.learned:
            raise UserError("training.objective = hybrid trains a variance; training.variance must be range or log.")

    def __call__(
        self,
        params: Params,
        time_state: PyTree,
        key: Key,
        x0: Images,
        condition: Condition = None,
        *,
        train: bool = True,
    ) -> tuple[Float[Array, ""], Aux]:
        """The mean loss of a batch. The key decides times, noise, dropout, dropped labels; train=False: no dropout."""
        time_key, noise_key, dropout_key, label_key = jax.random.split(key, 4)
        t, importance = self.times.sample(time_state, time_key, x0.shape[0])
        noise = jax.random.normal(noise_key, x0.shape, x0.dtype)
        if self.coupling == "ot":
            noise = optimal(x0, noise)
        if train and self.label_dropout and condition:
            dropped = jax.random.bernoulli(label_key, self.label_dropout, condition["label"].shape)
            condition = condition | {"label": jnp.where(dropped, self.null_label, condition["label"])}
        losses = self.at(params, x0, noise, t, condition, key=dropout_key if train else None)
        return weighted(losses, importance, t, self.times, time_state)

    def at(
        self,
        params: Params,
        x0: Images,
        noise: Images,
        t: Times,
        condition: Condition = None,
        *,
        key: Key | None = None,
    ) -> Float[Array, "b"]:
        """The weighted loss of each example at given times and noise."""
        model = self.model
        x = model.path.perturb(x0, noise, t)
        output, variance = model.split(model.apply(params, x, t, condition, key=key), x)
        match self.kind:
            case "simple":
                return self._square(output, x0, noise, t)
            case "vlb":
                return self._bound(output, variance, x0, x, t)
            case "hybrid":
                bound = self._bound(jax.lax.stop_gradient(output), variance, x0, x, t)
                return self._square(output, x0, noise, t) + self.vlb_weight * bound

    def _bound(self, output: Images, variance: Images | None, x0: Images, x: Images, t: Times) -> Float[Array, "b"]:
        """n L_t of a network's output."""
        estimate = self.model.prediction.decode(output, x, self.model.path.at(t).expand(x))
        terms = self.bound.term(x0, x, estimate._replace(variance=variance), self.bound.step(t))
        return len(self.bound.times) * terms * (1.0 if self.reduce == "mean" else 0.5 * math.prod(x0.shape[1:]))

    def _square(self, output: Images, x0: Images, noise: Images, t: Times) -> Float[Array, "b"]:
        """The weighted square of the error of a network's output."""
        model = self.model
        c = model.path.at(t)
        # The ends of an interpolant (alpha or sigma exactly 0) have 0 x inf in weight x gain^2; their limit is finite.
        c = c._replace(alpha=jnp.maximum(c.alpha, 1e-12), sigma=jnp.maximum(c.sigma, 1e-12))
        target = model.prediction.target(Estimate(x0, noise), c.expand(x0))
        scale = expand(self.weighting(c) * model.prediction.gain(c) ** 2, x0)
        squared = scale * (output - target) ** 2
        return mean_flat(squared) if self.reduce == "mean" else 0.5 * sum_flat(squared)
