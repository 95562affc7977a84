"""score_sde's and score_flow's training losses and their gradients, array by array; nothing below names a case.

Settings come from the keys and from the json beside the arrays; a key that no computation is mapped to fails the test.
"""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from score_flow.model import Model, Preconditioning
from score_flow.numerics import expand
from score_flow.paths.base import Path
from score_flow.paths.subvp import SubVP
from score_flow.paths.vp import VP
from score_flow.process.prediction import PREDICTIONS
from score_flow.process.times import uniform
from tests.chains import every_chain
from tests.golden_compare import Ours, compare
from tests.golden_data import golden_dir, load
from tests.paths.variants import EPS
from tests.pretrained.imported import Imported
from tests.sampling.test_golden_sampling import Toy, process_of
from tests.sampling.test_golden_sde import Process
from tests.toy_losses import denoising

SCORE_SDE, SCORE_FLOW = "score_sde/losses/losses", "score_flow/losses_bound"


def present(case):
    return pytest.mark.skipif(not (golden_dir() / f"{case}.npz").exists(), reason="not in the committed subset")


class ToyScore(nn.Module):
    """The score of the sources' toy networks: of t, or of the level that a discrete model is told."""

    process: Process
    discrete: bool
    shape: tuple[int, ...]
    marginals: Path  # by whose sigma the noise is divided

    @nn.compact
    def __call__(self, x, t, condition=None, *, deterministic=True):
        weights = {name: self.param(name, nn.initializers.zeros, self.shape) for name in ("w", "u", "mu")}
        weights["s2"] = self.param("s2", nn.initializers.zeros, ())
        toy = Toy(self.process, self.discrete, weights)
        if self.process.kind == "ve":
            return toy.ve(x, t)
        return toy.vp(x, t) * expand(self.process.path.sigma(t) / self.marginals.sigma(t), x)


def objective_of(model, likelihood, mean):
    weighting = "likelihood" if likelihood else "simple"
    return denoising(model, uniform(model.path, 0.0), weighting, "mean" if mean else "sum")


def toy_objective(process, discrete, likelihood, mean, params, path=None):
    path = path or process.path
    network = ToyScore(process, discrete, params["w"].shape, path)
    model = Model(network, path, PREDICTIONS["score"], Preconditioning("t", 1.0))
    return objective_of(model, likelihood, mean)


def mean_loss(objective, params, *drawn):
    """(loss of the batch, its gradient by every parameter)."""
    return jax.jit(jax.value_and_grad(lambda params: jnp.mean(objective.at(params, *drawn))))(params)


class ToyNoise(nn.Module):
    """The toy network of a discrete VP model: the noise, of a step counted from 0; `last` is the largest."""

    last: int

    @nn.compact
    def __call__(self, x, step, condition=None, *, deterministic=True):
        w, u = (self.param(name, nn.initializers.zeros, (1, x.shape[1], 1, 1)) for name in "wu")
        share = step.reshape(-1, *(1,) * (x.ndim - 1)) / self.last
        a = share / (share + 0.05)
        return a * x + u * jnp.tanh(w * x) * (1 - 0.5 * a)


def toy_case(case, description, arrays, params):
    """(objective, data, noise, times) of a toy case of score_sde."""
    x0, noise = (jnp.asarray(arrays[name], float) for name in ("batch", f"{case}.randn_like"))
    mean, likelihood = ".reduce_mean1" in case, case.endswith(".lw1")
    processes = {row[0]: process_of(row) for row in description["sdes"].values()}
    if match := re.match(r"sde\.(\w+)\.(cont|disc)\.", case):
        eps = description["eps"]
        t = jnp.asarray(arrays[f"{case}.rand"], float) * (1 - eps) + eps
        return toy_objective(processes[match[1]], match[2] == "disc", likelihood, mean, params), x0, noise, t
    label = jnp.asarray(arrays[f"{case}.randint"])
    if case.startswith("smld."):  # labels count the levels from the largest
        process = processes["ve"]
        return toy_objective(process, True, False, mean, params), x0, noise, 1 - label / (process.n - 1)
    process = processes["vp"]
    n, chain = process.n, process.chain
    model = Model(ToyNoise(n - 1), chain, PREDICTIONS["noise"], Preconditioning("t", float(n), -1.0))
    return objective_of(model, False, mean), x0, noise, jnp.asarray(chain.times(), float)[label]


def network_case(case, arrays, dtype):
    """{name: value} of a case of a published network, or None where its checkpoint is not here."""
    _, checkpoint, weighting = case.split(".")
    file = golden_dir() / "score_sde/models" / f"{checkpoint}.pth"
    if not file.exists():
        return None
    imported = Imported(file, load(f"score_sde/models/{checkpoint}")[0]["config"], dtype)
    model = imported.model()
    x0, noise = (jnp.moveaxis(jnp.asarray(arrays[f"{case}.{k}"], dtype), 1, -1) for k in ("batch", "randn_like"))
    eps = load(SCORE_SDE)[0]["eps"]
    t = jnp.asarray(arrays[f"{case}.rand"], dtype) * (1 - eps) + eps
    objective = objective_of(model, weighting == "lw1", True)
    value, gradient = mean_loss(objective, imported.params(model, "raw"), x0, noise, t)
    return {"loss": value, "grad_global_norm": optax.tree.norm(gradient)}


def gradients_last(arrays):
    """The arrays with their precision at the end of their names: grad64.w -> grad.w64."""
    return {re.sub(r"\.grad64\.(\w+)$", r".grad.\1_64", key): array for key, array in arrays.items()}


@every_chain
@present(SCORE_SDE)
def test_score_sde_losses(every):
    """Continuous and discrete, with and without likelihood weighting, mean and half the sum, SMLD's and DDPM's own."""
    description, arrays = load(SCORE_SDE)
    names = [name for name in ("w", "u", "mu", "s2") if f"toy_{name}" in arrays]
    cases, ours = [case["key"] for case in description["cases"] if not case["key"].startswith("net.")][::every], {}
    for case in cases:
        for x64 in (False, True):
            with jax.enable_x64(x64):
                params = {name: jnp.asarray(arrays[f"toy_{name}"], float) for name in names}
                objective, *drawn = toy_case(case, description, arrays, params)
                loss, gradient = mean_loss(objective, params, *drawn)
            process = getattr(objective.model.network, "process", None)
            # A rounding of t moves VE's sigma by its logarithmic slope; losses and gradients hold powers up to sigma^4.
            slope = np.log(process.high / process.low) if process and process.kind == "ve" else 0.0
            values = {"loss": loss} | {f"grad.{name}": value for name, value in gradient.items()}
            ours |= {(f"{case}.{name}", x64): Ours(value, 4 * slope * EPS[x64]) for name, value in values.items()}
    toys = {k: a for k, a in gradients_last(arrays).items() if any(k.startswith(f"{case}.") for case in cases)}
    compare(SCORE_SDE, toys, ours, given=r".*\.(rand|randint|randn_like)")


@pytest.mark.slow
@present(SCORE_SDE)
def test_score_sde_losses_of_networks():
    description, arrays = load(SCORE_SDE)
    ours, known = {}, {}
    for case in (case["key"] for case in description["cases"] if case["key"].startswith("net.")):
        for x64 in (False, True):
            with jax.enable_x64(x64):
                values = network_case(case, arrays, "float64" if x64 else "float32")
            if values:
                ours |= {(f"{case}.{name}", x64): Ours(value) for name, value in values.items()}
                known |= {key: array for key, array in arrays.items() if key.startswith(f"{case}.")}
    if not known:
        pytest.skip("no checkpoint")
    compare(f"{SCORE_SDE} net", known, ours, given=r".*\.(batch|rand|randn_like)")


# score_flow: JAX, NHWC, all in float64.


@dataclasses.dataclass(frozen=True)
class FirstOrder(Path):
    """score_flow's `high_precision` marginals: alpha = 1 + l and 1 - exp(2 l) = -2 l where |l| <= 1e-3, l = log alpha.

    Off by up to 1e-3 of sigma^2, where ours are exact.
    """

    exact: VP | SubVP

    def alpha(self, t):
        l = self.exact.log_alpha(t)
        return jnp.where(jnp.abs(l) <= 1e-3, 1 + l, jnp.exp(l))

    def sigma(self, t):
        l = self.exact.log_alpha(t)
        power = 0.5 if isinstance(self.exact, VP) else 1.0
        return jnp.where(jnp.abs(l) <= 1e-3, -2 * l, -jnp.expm1(2 * l)) ** power


def variance(arrays):
    """Of the toy network's data: as in the sources' other cases, unless this one carries it."""
    return jnp.asarray(arrays.get("s2", 0.25), float)


@every_chain
@present(SCORE_FLOW)
def test_score_flow_losses(every):
    """With importance-sampled times the likelihood's loss is the plain one: the constant Z is left out."""
    _, arrays = load(SCORE_FLOW)
    rows = {tag: Process(*row) for tag, row in load("score_flow/sde")[0]["sdes"].items()}
    cases = sorted({key.rpartition(".")[0] for key in arrays if key.startswith("loss.")})[::every]
    losses, ours = {f"{k}_64": a for k, a in arrays.items() if k.rpartition(".")[0] in cases}, {}
    for case in cases:
        tag, mean, likelihood, importance = re.fullmatch(r"loss\.(\w+)\.reduce_mean(\d)\.lw(\d)\.iw(\d)", case).groups()
        process = rows[tag]
        with jax.enable_x64(True):
            params = {name: jnp.asarray(arrays[name], float) for name in ("w", "u", "mu")} | {"s2": variance(arrays)}
            drawn = [jnp.asarray(arrays[name]) for name in ("data_nhwc", f"{case}.z", f"{case}.t")]
            weighted = likelihood == "1" and importance == "0"
            path = FirstOrder(process.path) if "vp" in tag and not weighted else process.path
            objective = toy_objective(process, False, weighted, mean == "1", params, path)
            ours[f"{case}.loss", True] = Ours(jnp.mean(objective.at(params, *drawn)))
    compare(SCORE_FLOW, losses, ours, given=r".*\.(quantile|t|z)_64")
