"""improved-diffusion's chains with a toy network, as golden files hold them: their laws, losses and comparisons."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.model import Denoiser, Model, Preconditioning
from score_flow.numerics import expand, mean_flat
from score_flow.paths.ddpm import DDPM
from score_flow.process.bound import VariationalBound
from score_flow.process.prediction import PREDICTIONS, Estimate
from score_flow.process.times import uniform
from tests.golden_compare import Ours, compare
from tests.toy_losses import of_chain

CASE = "improved_diffusion/diffusion/diffusion"
NO_TIMES = uniform(DDPM(), 0.0)  # the reference gives the times
PREDICTED = {"EPSILON": "noise", "START_X": "data", "PREVIOUS_X": None}  # ours has no prediction of x_s: see estimate()
VARIANCES = {"FIXED_SMALL": "small", "FIXED_LARGE": "large", "LEARNED": "log", "LEARNED_RANGE": "range"}


def nhwc(x):
    return np.moveaxis(x, 1, -1) if np.ndim(x) == 4 else x


def nchw(x):
    return np.moveaxis(np.asarray(x), -1, 1) if np.ndim(x) == 4 else np.asarray(x)


@dataclasses.dataclass(frozen=True)
class CompiledDDPM(DDPM):
    """The path with its functions of time compiled once, for every chain on it."""

    at, alpha, sigma = (jax.jit(f, static_argnums=0) for f in (DDPM.at, DDPM.alpha, DDPM.sigma))


class Toy(nn.Module):
    """The reference's stand-in for a network (golden/README.md); `time` is the step, scaled by a parameter."""

    variance: str

    @nn.compact
    def __call__(self, x, time, condition=None, *, deterministic=True):
        w, u, a, v = (self.param(name, nn.initializers.zeros, (1, 1, 1, x.shape[-1])) for name in "wuav")
        scale = self.param("scale", nn.initializers.ones, ())
        t, y = expand(scale * time, x), expand(condition["label"].astype(x.dtype), x)
        mean = (a + 0.3 * jnp.cos(0.05 * t)) * x + u * jnp.tanh(w * x) + 0.05 * y
        if self.variance not in ("log", "range"):
            return mean
        return jnp.concatenate([mean, jnp.tanh(v * x + 0.01 * t) - 3 * (self.variance == "log")], axis=-1)


class Chain:
    """A chain of the reference and the toy network on its data; `kept` are the steps of a respaced one."""

    def __init__(self, arrays, schedule, n, variance, prediction, kept=None):
        self.path, self.prediction = CompiledDDPM(schedule, n), prediction
        times = self.path.times() if kept is None else self.path.times()[kept]
        self.bound = VariationalBound(self.path, tuple(times.tolist()), variance)
        time = Preconditioning("t", float(n), -1.0)  # step i lies at (i + 1)/n
        self.model = Model(Toy(variance), self.path, PREDICTIONS[prediction or "noise"], time)
        self.weights = {name: jnp.asarray(nhwc(arrays[f"toy_{name}"]), float) for name in "wuav"}
        self.x0 = jnp.asarray(nhwc(arrays["x_start"]), float)
        self.condition = {"label": jnp.asarray(arrays["y"])}

    def params(self, rescale):
        """The network's; its times on the scale of 1000 steps or not."""
        return self.weights | {"scale": jnp.asarray(1000.0 / self.path.n if rescale else 1.0, float)}

    def time(self, step):
        return jnp.asarray(self.bound.times, float)[step]

    def estimate(self, params, x, step):
        """(mean of x_s or None where ours follows from x0, estimate)."""
        output, channels = self.model.split(self.model.apply(params, x, self.time(step), self.condition), x)
        if self.prediction:
            return None, self.model.bind(params, self.condition).estimate(x, self.time(step))
        ones, zeros = jnp.ones_like(x), jnp.zeros_like(x)
        on_x_t, on_x0 = self.bound.posterior_mean(ones, zeros, step), self.bound.posterior_mean(zeros, ones, step)
        return output, self.of_x0((output - on_x_t * x) / on_x0, channels, x, step)

    def of_x0(self, x0, channels, x, step):
        return Estimate(x0, PREDICTIONS["data"].decode(x0, x, self.path.at(self.time(step)).expand(x)).noise, channels)

    def losses(self, params, noise, step):
        """(square, bound, {weight: hybrid}) of each example, the bound n L; weights are those of the two hybrids."""
        weights = (1 / len(self.bound.times), 1e-3)
        if not self.prediction:
            return self.losses_of_previous(params, noise, step, weights)
        space = {"noise": "simple", "data": "data"}[self.prediction]

        def loss(kind, weight=0.0):
            of_kind = of_chain(kind, self.model, NO_TIMES, self.bound, space, weight=weight)
            return of_kind.at(params, self.x0, noise, self.time(step), self.condition)

        hybrid = "hybrid" if self.bound.learned else "simple"
        return loss("simple"), loss("vlb"), {weight: loss(hybrid, weight) for weight in weights}

    def losses_of_previous(self, params, noise, step, weights):
        """The same of a network that outputs the mean of x_s, in terms of ours."""
        x, n = self.path.perturb(self.x0, noise, self.time(step)), len(self.bound.times)
        mean, estimate = self.estimate(params, x, step)
        square = mean_flat((mean - self.bound.posterior_mean(x, self.x0, step)) ** 2)
        vlb = n * self.bound.term(self.x0, x, estimate, step)
        frozen = n * self.bound.term(self.x0, x, estimate._replace(x0=jax.lax.stop_gradient(estimate.x0)), step)
        return square, vlb, {weight: square + weight * frozen * self.bound.learned for weight in weights}


def by_kind(square, vlb, hybrids):
    """The reference's names -> (loss, square, the bound as it enters the loss)."""
    small, weight = hybrids
    return {
        "MSE": (hybrids[small], square, small * vlb),
        "RESCALED_MSE": (hybrids[weight], square, weight * vlb),
        "KL": (small * vlb, square, small * vlb),
        "RESCALED_KL": (vlb, square, vlb),
    }


@dataclasses.dataclass(frozen=True)
class StepDenoiser(Denoiser):
    """What samplers and bounds see of a chain, each time being the nearest of its steps; clip: x0 stays in [-1, 1]."""

    chain: Chain
    params: dict
    clip: bool = True

    @property
    def path(self):
        return self.chain.path

    def given(self, condition):
        return self

    def estimate(self, x, t):
        step = jnp.broadcast_to(self.chain.bound.step(jnp.reshape(t, -1)), x.shape[:1])
        estimate = self.chain.estimate(self.params, x, step)[1]
        if not self.clip:
            return estimate
        return self.chain.of_x0(jnp.clip(estimate.x0, -1, 1), estimate.variance, x, step)


def law(chain, params, x, step, clip):
    """The law of x_s given x_t = x: what the reference calls p_mean_variance."""
    mean, estimate = chain.estimate(params, x, step)
    if clip:
        estimate = chain.of_x0(jnp.clip(estimate.x0, -1, 1), estimate.variance, x, step)
    log_variance = jnp.broadcast_to(chain.bound.log_variance(estimate.variance, x, step), x.shape)
    mean = chain.bound.posterior_mean(x, estimate.x0, step) if mean is None else mean
    return {"mean": mean, "variance": jnp.exp(log_variance), "log_variance": log_variance, "pred_xstart": estimate.x0}


def rounding_of_a_level(chain, params, x, step, eps, clip=False):
    """Bits by which roundings can move each example's term: of the first step, where a level's probability p is a
    difference of two numbers near 1, floored at 1e-12. Each is off by 2 eps: log p may be anything within p +- 4 eps.
    """
    got = law(chain, params, x, step, clip)
    p = jnp.exp(chain.bound.log_likelihood(chain.x0, got["mean"], got["log_variance"] / 2))
    moved = jnp.maximum(jnp.log((p + 4 * eps) / p), jnp.log(p / jnp.maximum(p - 4 * eps, 1e-12)))
    return np.asarray(jnp.where(step == 0, mean_flat(moved), 0.0)) / np.log(2.0), p


# Chains take seconds to compile: the normal tests look at every fifth.
every_chain = pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"])


def part(arrays, pattern, every):
    """(arrays, case -> groups) of a pattern for every so many-th chain: the first three groups, of case = group 0."""
    found = {key: m for key in arrays if (m := re.fullmatch(f"({pattern})" + r"\..*", key))}
    kept = sorted({m.groups()[1:4] for m in found.values()})[::every]
    found = {key: m for key, m in found.items() if m.groups()[1:4] in kept}
    assert found
    return {key: arrays[key] for key in found}, {m[1]: m.groups()[1:] for m in found.values()}


def check(name, arrays, evaluate, given=r"$^"):
    """Compare arrays with evaluate(x64) -> {name: value, or Ours without its tolerance}, in both precisions."""
    ours = {}
    for x64 in (False, True):
        with jax.enable_x64(x64):
            values = {name: v if isinstance(v, tuple) else (v,) for name, v in evaluate(x64).items()}
            ours |= {(name, x64): Ours(*(nchw(part) for part in parts)) for name, parts in values.items()}
    compare(name, arrays, ours, given)
