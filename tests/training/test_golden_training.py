"""score_sde's averages, optimiser and training steps, array by array; nothing below names a case.

Numbers come from the case; what it does not carry is what the source has for everybody (betas, sigmas, eps, 999).
"""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from score_flow.model import Model, Preconditioning
from score_flow.numerics import expand
from score_flow.paths.ve import VE
from score_flow.paths.vp import VP
from score_flow.process.prediction import PREDICTIONS
from score_flow.process.times import uniform
from score_flow.training.optimiser import make_optimiser
from score_flow.training.steps import ema_rate_at
from tests.golden_data import golden_dir, load
from tests.paths.variants import EPS
from tests.sampling.test_golden_sampling import process_of
from tests.toy_losses import denoising
from tests.training.test_training import ADAM, optimise

CASE = "score_sde/train/ema_optimizer"
pytestmark = pytest.mark.skipif(not (golden_dir() / f"{CASE}.npz").exists(), reason="not in the committed subset")


def test_golden_averages():
    """score_sde's EMA: at a constant decay (numupd0) and with its warm-up (numupd1)."""
    _, arrays = load(CASE)
    pattern = re.compile(r"ema\.decay([\d.e-]+)\.numupd([01])\.step(\d+)\.(\d+)")
    rows = sorted((int(m[3]), m[1], m[2], m[4], key) for key in arrays if (m := pattern.fullmatch(key)))
    ours = {}
    for step, rate, warmup, i, key in rows:  # by step: each goes on from the one before
        before = ours.get((rate, warmup, i), arrays[f"ema.init.{i}"])
        decay = ema_rate_at(float(rate), jnp.asarray(step - 1), warmup == "1")
        ours[rate, warmup, i] = optax.incremental_update(arrays[f"ema.params.step{step}.{i}"], before, 1 - decay)
        # Two roundings a step here and there of numbers no larger than the largest so far.
        size = max(np.abs(arrays[k]).max() for k in arrays if k.startswith("ema."))
        np.testing.assert_allclose(ours[rate, warmup, i], arrays[key], atol=4 * step * EPS[False] * size, err_msg=key)
    unread = {key for key in arrays if key.startswith("ema.")} - {row[-1] for row in rows}
    assert rows and all(key.startswith(("ema.init.", "ema.params.")) for key in unread)


def test_golden_optimiser():
    """score_sde's optimize_fn around torch's Adam (warm-up, clipping, decay in the gradient): weights and moments."""
    description, arrays = load(CASE)
    n = len([key for key in arrays if re.fullmatch(r"opt\.grad\.step\d+\.0", key)])
    parameters = range(len([key for key in arrays if key.startswith("opt.init.")]))
    gradients = [[arrays[f"opt.grad.step{k}.{i}"] for i in parameters] for k in range(n)]
    init, read = [arrays[f"opt.init.{i}"] for i in parameters], set()
    for case in description["opt"]:
        fields = {name: case[name] for name in ADAM}
        history = optimise(make_optimiser("Adam", **fields), [jnp.asarray(p) for p in init], gradients)
        for step, values in enumerate(history):
            # torch clips by norm + 1e-6, we by the norm; it divides sqrt(v) by sqrt(1 - beta2^n), we v by 1 - beta2^n.
            # Moments are linear (quadratic) in the gradient, a step is lr times a ratio below 10.
            smallest = min(np.sqrt(sum((g**2).sum() for g in gradient)) for gradient in gradients[: step + 1])
            change = 1e-6 / smallest + 8 * EPS[False]
            size = max(np.abs(g).max() for gradient in gradients for g in gradient)
            size += case["weight_decay"] * max(np.abs(p).max() for p in init)
            steps = (step + 1) * (10 * case["lr"] * (change + 2**10 * EPS[False]) + 2 * EPS[False])
            allowed = {"": steps, "exp_avg.": change * size, "exp_avg_sq.": 2 * change * size**2}
            for (kind, atol), value in zip(allowed.items(), values, strict=True):
                for i in parameters:
                    key = f"{case['key']}.{kind}step{step}.{i}"
                    np.testing.assert_allclose(value[i], arrays[key], rtol=8 * EPS[False], atol=atol, err_msg=key)
                    read.add(key)
    unread = {key for key in arrays if key.startswith("opt.")} - read
    assert read and all(key.startswith(("opt.grad.", "opt.init.")) for key in unread)


class ToyVP(nn.Module):
    """The reference's stand-in for a noise network; `label` = 999 t."""

    @nn.compact
    def __call__(self, x, label, condition=None, *, deterministic=True):
        w, u = (self.param(name, nn.initializers.zeros, (1, x.shape[1], 1, 1)) for name in "wu")
        s = expand(label / 999.0, x)
        a = s / (s + 0.05)
        return a * x + u * jnp.tanh(w * x) * (1 - 0.5 * a)


class ToyVE(nn.Module):
    """The reference's stand-in for the score of data of variance s2; `label` = sigma."""

    s2: float

    @nn.compact
    def __call__(self, x, label, condition=None, *, deterministic=True):
        w, u, mu = (self.param(name, nn.initializers.zeros, (1, x.shape[1], 1, 1)) for name in ("w", "u", "mu"))
        sigma = expand(label, x)
        return (mu - x) / (self.s2 + sigma**2) + u * jnp.tanh(w * x / (1 + sigma)) / (1 + sigma)


def models(fields, arrays):
    """The toy models by their kind of process."""
    paths = {"vp": VP(), "ve": VE()} | {row[0]: process_of(row).path for row in fields.get("sdes", {}).values()}
    network = ToyVE(float(arrays["toy_s2"]))
    return {
        "vp": Model(ToyVP(), paths["vp"], PREDICTIONS["noise"], Preconditioning("t", 999.0)),
        "ve": Model(network, paths["ve"], PREDICTIONS["score"], Preconditioning("sigma", 1.0)),
    }


def test_golden_steps():
    """score_sde's step_fn: loss, parameters and EMA of every training step, and the EMA's loss at the end."""
    description, arrays = load(CASE)
    fields = description | description["step"]
    eps, reduce = fields.get("eps", 1e-5), "mean" if fields["reduce_mean"] else "sum"
    optimiser = make_optimiser("Adam", **ADAM | {name: fields[name] for name in ADAM if name in fields})
    given = {key for key in arrays if re.fullmatch(r"step\..*\.(batch|rand|randn_like)", key)}
    unread = {key for key in arrays if key.startswith("step.")} - given
    for tag in {key.split(".")[1] for key in unread}:
        model = models(fields, arrays)[tag]
        loss = denoising(model, uniform(model.path, eps), "simple", reduce)
        mean = jax.jit(jax.value_and_grad(lambda *args, loss=loss: jnp.mean(loss.at(*args))))
        names = {key.rpartition(".")[2] for key in unread if key.startswith(f"step.{tag}.0.param.")}
        params = ema = {name: jnp.asarray(arrays[f"toy_{name}"]) for name in names}
        state = optimiser.init(params)
        n = len([key for key in unread if re.fullmatch(rf"step\.{tag}\.\d+\.loss", key)])
        for step in range(n):
            drawn = [arrays[f"step.{tag}.{step}.{name}"] for name in ("batch", "randn_like", "rand")]
            x0, noise, u = (jnp.asarray(array) for array in drawn)
            training = step < n - 1  # the last is the evaluation, of the EMA
            value, gradient = mean(params if training else ema, x0, noise, eps + (1 - eps) * u)
            if training:
                updates, state = optimiser.update(gradient, state, params)
                params = optax.apply_updates(params, updates)
                decay = ema_rate_at(fields["ema_decay"], jnp.asarray(step), True)
                ema = optax.incremental_update(params, ema, 1 - decay)
            ours = {f"{kind}.{k}": p for kind, tree in (("param", params), ("ema", ema)) for k, p in tree.items()}
            ours["loss"] = value
            for name, array in ours.items():
                key = f"step.{tag}.{step}.{name}"
                unread.remove(key)
                # Every step of lr is a ratio of moments with 10 bits lost (see above), of sums in another order.
                atol = (step * fields["lr"] * 2**10 + 8) * EPS[False] * (1.0 + np.abs(arrays[key]).max())
                np.testing.assert_allclose(array, arrays[key], atol=atol, rtol=0, err_msg=key)
    assert given and not unread
