"""improved-diffusion's losses, laws of a step, bounds and resampler, array by array; nothing below names a case."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.model import Model, Preconditioning
from score_flow.numerics import expand, mean_flat
from score_flow.objective import WEIGHTINGS, Objective
from score_flow.paths.ddpm import DDPM
from score_flow.prediction import PREDICTIONS, Estimate
from score_flow.times import LossHistory, remember, second_moment_law, uniform
from score_flow.variational import VariationalBound
from tests.golden_compare import Ours, compare
from tests.golden_data import golden_dir, load
from tests.paths.variants import EPS

CASE, RESAMPLER = "improved_diffusion/diffusion/diffusion", "improved_diffusion/misc/resampler_adamw_ema"
pytestmark = pytest.mark.skipif(not (golden_dir() / f"{CASE}.npz").exists(), reason="not in the committed subset")

KINDS = ("MSE", "RESCALED_MSE", "KL", "RESCALED_KL")
NO_TIMES = uniform(DDPM(), 0.0)  # the reference gives the times
PREDICTED = {"EPSILON": "noise", "START_X": "data", "PREVIOUS_X": None}  # ours has no prediction of x_s: see previous()
VARIANCES = {"FIXED_SMALL": "small", "FIXED_LARGE": "large", "LEARNED": "log", "LEARNED_RANGE": "range"}


def nhwc(x):
    return np.moveaxis(x, 1, -1) if np.ndim(x) == 4 else x


def nchw(x):
    return np.moveaxis(np.asarray(x), -1, 1) if np.ndim(x) == 4 else np.asarray(x)


class Toy(nn.Module):
    """The reference's stand-in for a network (golden/README.md); `time` is the step, scaled by a parameter."""

    variance: str

    @nn.compact
    def __call__(self, x, time, condition=None, *, deterministic=True):
        w, u, a, v = (self.param(name, nn.initializers.zeros, (1, 1, 1, 3)) for name in "wuav")
        scale = self.param("scale", nn.initializers.ones, ())
        t, y = expand(scale * time, x), expand(condition["label"].astype(x.dtype), x)
        mean = (a + 0.3 * jnp.cos(0.05 * t)) * x + u * jnp.tanh(w * x) + 0.05 * y
        if self.variance not in ("log", "range"):
            return mean
        return jnp.concatenate([mean, jnp.tanh(v * x + 0.01 * t) - 3 * (self.variance == "log")], axis=-1)


class Chain:
    """A chain of the reference and the toy network on its data; `kept` are the steps of a respaced one."""

    def __init__(self, arrays, schedule, n, variance, prediction, kept=None):
        self.path, self.prediction = DDPM(schedule, n), prediction
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
            objective = Objective(self.model, NO_TIMES, WEIGHTINGS[space], "mean", 0.0, 0, kind, self.bound, weight)
            return objective.at(params, self.x0, noise, self.time(step), self.condition)

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


def matching(arrays, pattern):
    """case, the whole of group 1 -> its groups, for the keys of a pattern."""
    found = {m[1]: m.groups()[1:] for key in arrays if (m := re.fullmatch(pattern + r"\..*", key))}
    assert found
    return found


def check(arrays, prefix, evaluate, given=r"$^"):
    """Compare the arrays of a prefix with evaluate() -> {name: value}, in both precisions."""
    ours = {}
    for x64 in (False, True):
        with jax.enable_x64(x64):
            values = {name: v if isinstance(v, tuple) else (v,) for name, v in evaluate(x64).items()}
            ours |= {(name, x64): Ours(*(nchw(part) for part in parts)) for name, parts in values.items()}
    compare(prefix, {key: value for key, value in arrays.items() if key.startswith(prefix)}, ours, given)


@pytest.mark.parametrize(
    "predicted", [pytest.param(name, marks=() if name == "EPSILON" else pytest.mark.slow) for name in PREDICTED]
)
def test_golden_losses(predicted):
    """Every loss, its parts and its gradients, for every schedule, variance, loss and scaling of times."""
    description, arrays = load(CASE)
    losses = {key: value for key, value in arrays.items() if key.startswith("loss.")}
    assert {key.split(".")[2] for key in losses} <= PREDICTED.keys()
    arrays = {key: value for key, value in arrays.items() if key not in losses or f".{predicted}." in key}
    step = jnp.asarray(arrays["t"], jnp.int32)
    cases = matching(arrays, r"(loss\.(\w+)\.(\w+)\.(\w+)\.(\w+)\.resc(\d))")

    @functools.cache
    def every_kind(schedule, mean, variance, rescale, x64):
        """{name: values by kind} of one chain, in one program."""
        chain, program = programs(schedule, mean, variance, x64)
        return program(chain.params(rescale == "1"))

    @functools.cache
    def programs(schedule, mean, variance, x64):
        chain = Chain(arrays, schedule, description["T_combos"], VARIANCES[variance], PREDICTED[mean])
        noise = jnp.asarray(nhwc(arrays["noise"]), float)

        def losses(params):
            kinds = by_kind(*chain.losses(params, noise, step))
            return jnp.stack([jnp.mean(kinds[kind][0]) for kind in KINDS]), kinds

        def losses_and_gradients(params):
            if not x64:  # the reference's gradients are float64
                return losses(params)[1], {}
            _, pull, kinds = jax.vjp(losses, params, has_aux=True)
            return kinds, jax.vmap(pull)(jnp.eye(len(KINDS)))[0]

        return chain, jax.jit(losses_and_gradients)

    def evaluate(x64):
        values = {}
        for case, (schedule, mean, variance, kind, rescale) in cases.items():
            losses, gradients = every_kind(schedule, mean, variance, rescale, x64)
            path = DDPM(schedule, description["T_combos"])
            # x0 from noise divides by alpha, an exponential, and is squared.
            relative = (
                8 * EPS[x64] * np.abs(np.log(np.asarray(path.alpha(jnp.asarray(path.times()[arrays["t"]], float)))))
            )
            if not x64:  # of an image's numbers one may have a probability that float32 cannot tell from 0
                relative = np.where(np.asarray(step) == 0, 2 / arrays["x_start"][0].size, relative)
            parts = zip(("loss", "mse", "vb"), losses[kind], strict=True)
            values |= {f"{case}.{name}": (value, relative) for name, value in parts}
            # The decoder's slope is relative to a probability down to 5e-8, a difference of numbers near 1.
            slopes = {name: slope[KINDS.index(kind)] for name, slope in gradients.items()}
            values |= {f"{case}.grad_{name}": (slope, EPS[x64] / 5e-8) for name, slope in slopes.items()}
        return values

    check(arrays, "loss.", evaluate)


def law(chain, params, x, step, clip):
    """The law of x_s given x_t = x: what the reference calls p_mean_variance."""
    mean, estimate = chain.estimate(params, x, step)
    if clip:
        estimate = chain.of_x0(jnp.clip(estimate.x0, -1, 1), estimate.variance, x, step)
    log_variance = jnp.broadcast_to(chain.bound.log_variance(estimate.variance, x, step), x.shape)
    mean = chain.bound.posterior_mean(x, estimate.x0, step) if mean is None else mean
    return {"mean": mean, "variance": jnp.exp(log_variance), "log_variance": log_variance, "pred_xstart": estimate.x0}


def test_golden_laws_of_a_step():
    description, arrays = load(CASE)
    step = jnp.asarray(arrays["t"], jnp.int32)
    cases = matching(arrays, r"(pmv\.(\w+)\.(\w+)\.(\w+)\.clip(\d))")

    def evaluate(x64):
        values, x = {}, jnp.asarray(nhwc(arrays["x_t"]), float)
        for case, (schedule, mean, variance, clip) in cases.items():
            chain = Chain(arrays, schedule, description["T_combos"], VARIANCES[variance], PREDICTED[mean])
            got = law(chain, chain.params(True), x, step, clip == "1")
            if (
                variance == "FIXED_SMALL"
            ):  # the reference's at the first step is 0, but its logarithm that of the second
                got["variance"] = got["variance"].at[np.asarray(step) == 0].set(0.0)
            # x0 from noise divides by alpha, an exponential.
            relative = np.asarray(2 * EPS[x64] * np.abs(np.log(chain.path.alpha(chain.time(step)))))
            relative = np.maximum(relative, 0.0).reshape(-1, 1, 1, 1)
            values |= {f"{case}.{name}": (value, relative) for name, value in got.items()}
        return values

    check(arrays, "pmv.", evaluate)


def test_golden_likelihood_of_levels_and_divergence():
    _, arrays = load(CASE)
    bound = VariationalBound(DDPM(n=25), (0.5, 1.0))

    def evaluate(x64):
        x0, means, log_scales = (
            jnp.asarray(nhwc(arrays[key]), float) for key in ("x_start", "dgll.means", "dgll.log_scales")
        )
        log_p = bound.log_likelihood(x0, means, log_scales)
        return {"dgll.out": (log_p, 0.0, 4 * EPS[x64] / jnp.exp(log_p))}  # p is a difference of numbers near 1

    check(arrays, "dgll.", evaluate, r"dgll\.(means|log_scales)")


def test_golden_resampler():
    """The history, the law after every batch, and the weights of draws, of the loss-aware resampler."""
    description, arrays = load(RESAMPLER)
    for case, uniform_prob in description["uniform_prob"].items():
        history = arrays[f"{case}.history_final"]
        with jax.enable_x64(True):
            state = LossHistory(jnp.zeros(history.shape), jnp.zeros(len(history), jnp.int32))
            for row, (steps, losses) in enumerate(zip(arrays[f"{case}.ts"], arrays[f"{case}.losses"], strict=True)):
                state = remember(state, jnp.asarray(steps), jnp.asarray(losses))
                p = second_moment_law(state, uniform_prob)
                theirs = arrays[f"{case}.weights"][row]
                np.testing.assert_allclose(p, theirs / theirs.sum(), rtol=1e-12, err_msg=f"{case} {row}")
                counts = np.minimum(state.counts, history.shape[1])
                np.testing.assert_array_equal(counts, arrays[f"{case}.counts"][row])
            # Ours is a ring: the oldest loss lies where the next is written.
            oldest = np.where(state.counts >= history.shape[1], state.counts, 0)
            rows = [np.roll(values, -first) for values, first in zip(np.asarray(state.history), oldest, strict=True)]
            np.testing.assert_array_equal(rows, history)
            drawn = arrays[f"{case}.sample_indices"]
            np.testing.assert_allclose(1 / (len(p) * p[drawn]), arrays[f"{case}.sample_weights"], rtol=4 * EPS[False])
