"""One loss for every path, prediction and weighting."""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from score_flow.model import Model
from score_flow.numerics import expand, mean_flat, sum_flat
from score_flow.paths.base import Coefficients
from score_flow.prediction import Estimate
from score_flow.times import TimeSampler
from score_flow.types import Condition, Images, Key, Params, Times

# Weights of |noise_hat - noise|^2. Each is written as the space in which the error is a plain mean square.
WEIGHTINGS: dict[str, Callable[[Coefficients], Times]] = {
    "simple": lambda c: jnp.ones_like(c.alpha),  # |noise error|^2 (Ho et al. 2020, eq. 14)
    "velocity": lambda c: (c.det / c.alpha) ** 2,  # |velocity error|^2 (Lipman et al. 2023)
    "data": lambda c: (c.sigma / c.alpha) ** 2,  # |x0 error|^2
    "likelihood": lambda c: c.g2 / c.sigma**2,  # g^2 |score error|^2 (Song et al. 2021, thm. 1, arXiv:2101.09258)
}


class Aux(NamedTuple):
    """What a loss says besides its value: per-example losses (importance weights included) at their times."""

    losses: Float[Array, "b"]
    t: Float[Array, "b"]
    time_state: PyTree


@dataclasses.dataclass(frozen=True)
class Objective:
    """E_t [ weight(t) |noise_hat(x_t, t) - noise|^2 ] with t from a time sampler.

    reduce: "mean" over the axes of an example, or "sum", half the sum (score_sde's `reduce_mean=False`).
    label_dropout: probability of replacing a label by the null class `null_label` (arXiv:2207.12598).
    """

    model: Model
    times: TimeSampler
    weighting: Callable[[Coefficients], Times]
    reduce: Literal["mean", "sum"] = "mean"
    label_dropout: float = 0.0
    null_label: int = 0

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
        if train and self.label_dropout and condition:
            dropped = jax.random.bernoulli(label_key, self.label_dropout, condition["label"].shape)
            condition = condition | {"label": jnp.where(dropped, self.null_label, condition["label"])}
        losses = importance * self.at(params, x0, noise, t, condition, key=dropout_key if train else None)
        return jnp.mean(losses), Aux(losses, t, self.times.update(time_state, t, losses))

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
        output, _ = model.split(model.apply(params, x, t, condition, key=key), x)
        c = model.path.at(t)
        # The ends of an interpolant (alpha or sigma exactly 0) have 0 x inf in weight x gain^2; their limit is finite.
        c = c._replace(alpha=jnp.maximum(c.alpha, 1e-12), sigma=jnp.maximum(c.sigma, 1e-12))
        target = model.prediction.target(Estimate(x0, noise), c.expand(x0))
        scale = expand(self.weighting(c) * model.prediction.gain(c) ** 2, x0)
        squared = scale * (output - target) ** 2
        return mean_flat(squared) if self.reduce == "mean" else 0.5 * sum_flat(squared)
