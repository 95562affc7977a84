"""improved-diffusion's losses, laws of a step, bounds and resampler, array by array; nothing below names a case."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from score_flow.networks.blocks.layers import transformer_features
from score_flow.paths.ddpm import DDPM
from score_flow.process.bound import VariationalBound
from score_flow.process.times import LossHistory, remember, second_moment_law
from score_flow.training.optimiser import make_optimiser
from tests.chains import (
    CASE,
    PREDICTED,
    VARIANCES,
    Chain,
    CompiledDDPM,
    by_kind,
    check,
    every_chain,
    law,
    nchw,
    nhwc,
    part,
    rounding_of_a_level,
)  # fmt: skip
from tests.golden_compare import Ours, compare
from tests.golden_data import golden_dir, load
from tests.paths.variants import EPS
from tests.training.test_training import ADAM

RESAMPLER = "improved_diffusion/misc/resampler_adamw_ema"
pytestmark = pytest.mark.skipif(not (golden_dir() / f"{CASE}.npz").exists(), reason="not in the committed subset")

KINDS = ("MSE", "RESCALED_MSE", "KL", "RESCALED_KL")


def roundings(chain, params, noise, step, eps):
    """What rounding may change: (of terms, of slopes); in float64."""
    exact, doubles = jax.tree.map(lambda a: jnp.asarray(a, float), (params, noise))
    bits, p = rounding_of_a_level(chain, exact, chain.path.perturb(chain.x0, doubles, chain.time(step)), step, eps)
    # A slope divides by p, unless p is at its floor.
    return bits, 4 * eps / float(jnp.min(jnp.where(p > 1e-12, p, 1.0)))


@every_chain
def test_golden_losses(every):
    """Every loss, its parts and its gradients, for every schedule, prediction, variance, loss and scaling of times."""
    description, arrays = load(CASE)
    compared, cases = part(arrays, r"loss\.(\w+)\.(\w+)\.(\w+)\.(\w+)\.resc(\d)", every)
    step, n = jnp.asarray(arrays["t"], jnp.int32), description["T_combos"]

    @functools.cache
    def chain_of(schedule, mean, variance, x64):
        """(chain, {name: values by kind} of its parameters in one program, the noise)."""
        chain = Chain(arrays, schedule, n, VARIANCES[variance], PREDICTED[mean])
        noise = jnp.asarray(nhwc(arrays["noise"]), float)

        def losses(params):
            kinds = by_kind(*chain.losses(params, noise, step))
            return jnp.stack([jnp.mean(kinds[kind][0]) for kind in KINDS]), kinds

        def losses_and_gradients(params):
            if not x64:  # the reference's gradients are float64
                return losses(params)[1], {}
            _, pull, kinds = jax.vjp(losses, params, has_aux=True)
            return kinds, jax.vmap(pull)(jnp.eye(len(KINDS)))[0]

        return chain, jax.jit(losses_and_gradients), noise

    @functools.cache
    def every_kind(schedule, mean, variance, rescale, x64):
        """(losses by kind, gradients by kind, what rounding may change: of terms, of slopes)."""
        chain, program, noise = chain_of(schedule, mean, variance, x64)
        params = chain.params(rescale == "1")
        found = program(params)
        with jax.enable_x64(True):
            chain = Chain(arrays, schedule, n, VARIANCES[variance], PREDICTED[mean])
            return *found, *roundings(chain, params, noise, step, EPS[x64])

    def evaluate(x64):
        values = {}
        for case, (schedule, mean, variance, kind, rescale) in cases.items():
            losses, gradients, bits, slope = every_kind(schedule, mean, variance, rescale, x64)
            path = CompiledDDPM(schedule, n)
            # x0 from noise divides by alpha, an exponential, and is squared.
            alpha = np.asarray(path.alpha(jnp.asarray(path.times()[arrays["t"]], float)))
            weight = {"MSE": 1.0, "RESCALED_MSE": n / 1000, "KL": 1.0, "RESCALED_KL": n}[kind]
            for name, value in zip(("loss", "mse", "vb"), losses[kind], strict=True):
                rounding = 0.0 if name == "mse" else weight * bits
                values[f"{case}.{name}"] = (value, 8 * EPS[x64] * np.abs(np.log(alpha)), rounding)
            slopes = {name: rows[KINDS.index(kind)] for name, rows in gradients.items()}
            values |= {f"{case}.grad_{name}": (value, slope) for name, value in slopes.items()}
        return values

    check("loss", compared, evaluate)


@every_chain
def test_golden_laws_of_a_step(every):
    description, arrays = load(CASE)
    step = jnp.asarray(arrays["t"], jnp.int32)
    compared, cases = part(arrays, r"pmv\.(\w+)\.(\w+)\.(\w+)\.clip(\d)", every)

    def evaluate(x64):
        values, x = {}, jnp.asarray(nhwc(arrays["x_t"]), float)
        for case, (schedule, mean, variance, clip) in cases.items():
            chain = Chain(arrays, schedule, description["T_combos"], VARIANCES[variance], PREDICTED[mean])
            got = law(chain, chain.params(True), x, step, clip == "1")
            if variance == "FIXED_SMALL":  # the reference's at the first step is 0, its logarithm that of the second
                got["variance"] = got["variance"].at[np.asarray(step) == 0].set(0.0)
            # x0 from noise divides by alpha, an exponential.
            relative = np.asarray(2 * EPS[x64] * np.abs(np.log(chain.path.alpha(chain.time(step)))))
            relative = np.maximum(relative, 0.0).reshape(-1, 1, 1, 1)
            values |= {f"{case}.{name}": (value, relative) for name, value in got.items()}
        return values

    check("pmv", compared, evaluate)


def test_golden_law_of_a_step_with_another_estimate():
    """`denoised_fn`: the law at a function of E[x0 | x_t], A x + B in the key, of a network without labels."""
    description, arrays = load(CASE)
    pattern = re.compile(r"pmv_denoised_fn_([\d.]+)x_plus_([\d.]+)\.(\w+)\.(\w+)\.(\w+)\.mean")
    found, ours = {key: m.groups() for key in arrays if (m := pattern.fullmatch(key))}, {}
    for key, (a, b, schedule, mean, variance) in found.items():
        chain = Chain(arrays, schedule, description["T_combos"], VARIANCES[variance], PREDICTED[mean])
        chain.condition = {"label": jnp.zeros(len(arrays["y"]), jnp.int32)}
        x, step = jnp.asarray(nhwc(arrays["x_t"])), jnp.asarray(arrays["t"], jnp.int32)
        x0 = float(a) * chain.estimate(chain.params(False), x, step)[1].x0 + float(b)
        mean = chain.bound.posterior_mean(x, jnp.clip(x0, -1, 1), step)
        # A float32 run without a float64 one: x0 is a difference, over alpha, of numbers no larger than x.
        alpha = np.asarray(chain.path.alpha(chain.time(step)))
        rounding = float(a) * 4 * EPS[False] * np.abs(arrays["x_t"]).max() / alpha
        ours[key, False] = Ours(nchw(mean), absolute=rounding.reshape(-1, 1, 1, 1))
    compare("pmv_denoised_fn", {key: arrays[key] for key in found}, ours, "")


def test_golden_likelihood_of_levels_and_divergence():
    description, arrays = load(CASE)
    bound = VariationalBound(DDPM(n=description["T_combos"]), (0.5, 1.0))

    def evaluate(x64):
        x0, means, log_scales = (
            jnp.asarray(nhwc(arrays[key]), float) for key in ("x_start", "dgll.means", "dgll.log_scales")
        )
        log_p = bound.log_likelihood(x0, means, log_scales)
        return {"dgll.out": (log_p, 0.0, 4 * EPS[x64] / jnp.exp(log_p))}  # p is a difference of numbers near 1

    check("dgll", {k: v for k, v in arrays.items() if k.startswith("dgll.")}, evaluate, r"dgll\.(means|log_scales)")


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


def test_golden_optimiser_and_features_of_time():
    """AdamW with a rate annealed to 0 at `lr_anneal_steps`, its average, and the features of times, emb.N."""
    description, arrays = load(RESAMPLER)
    fields, unread = description["adamw"], {key for key in arrays if key.startswith(("adamw.", "emb."))}
    betas = dict(zip(("beta1", "beta2"), fields["betas"], strict=True))
    settings = ADAM | betas | {"eps": fields["eps"], "weight_decay": fields["weight_decay"]}
    params = ema = jnp.asarray(arrays["adamw.init"])
    state = make_optimiser("AdamW", **settings).init(params)
    for step in range(len([key for key in unread if key.startswith("adamw.grad")])):
        rate = fields["lr"] * (1 - step / fields["lr_anneal_steps"])
        optimiser = make_optimiser("AdamW", **settings | {"lr": rate})
        updates, state = optimiser.update(jnp.asarray(arrays[f"adamw.grad{step}"]), state, params)
        params = optax.apply_updates(params, updates)
        ema = optax.incremental_update(params, ema, 1 - description["ema_rate"])
        for name, value in {"param": params, "ema": ema}.items():
            # A step is the rate times a ratio of moments that loses 10 bits where 1 - beta2^n is 1e-3.
            atol = (step + 1) * EPS[False] * (fields["lr"] * 2**10 + 4 * np.abs(arrays["adamw.init"]).max())
            np.testing.assert_allclose(value, arrays[f"adamw.{name}{step}"], rtol=0, atol=atol, err_msg=f"{name}{step}")
            unread.remove(f"adamw.{name}{step}")
    for key in [key for key in unread if re.fullmatch(r"emb\.\d+", key)]:
        features = transformer_features(jnp.asarray(arrays["emb.t"]), int(key.removeprefix("emb.")))
        # Sines of an angle up to the largest time, whose rounding is that of the time and of the frequency.
        atol = 4 * EPS[False] * (1 + np.abs(arrays["emb.t"])[:, None])
        assert (np.abs(features - arrays[key]) <= atol).all(), key
        unread.remove(key)
    assert unread == {"adamw.init", "emb.t"} | {key for key in unread if key.startswith("adamw.grad")}
