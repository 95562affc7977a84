"""improved-diffusion's steps, samples and bounds on chains, whole and respaced; nothing below names a case.

Each is made by our samplers and by the terms of the bound's job, fed with the noise that the reference drew.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evaluation.jobs import vlb
from sampling import ancestral, base, ddim
from sampling.kernels.ddim import predictor as ddim_kernel
from score_flow.numerics import expand
from score_flow.paths.base import Path
from score_flow.process.bound import kl, tables
from score_flow.process.grid import respace
from tests.chains import (
    CASE,
    PREDICTED,
    VARIANCES,
    Chain,
    StepDenoiser,
    by_kind,
    check,
    every_chain,
    law,
    nhwc,
    part,
    rounding_of_a_level,
)  # fmt: skip
from tests.golden_compare import Ours, compare
from tests.golden_data import golden_dir, load
from tests.paths.variants import EPS

pytestmark = pytest.mark.skipif(not (golden_dir() / f"{CASE}.npz").exists(), reason="not in the committed subset")

NOISE = r".*\.noise"


@every_chain
def test_golden_ancestral_steps(every):
    """One step for each example from its own time: the law of x_s with the reference's noise, none at the first."""
    description, arrays = load(CASE)
    step = jnp.asarray(arrays["t"], jnp.int32)
    compared, cases = part(arrays, r"p_sample\.(\w+)\.(\w+)\.(\w+)", every)

    def evaluate(x64):
        values, x = {}, jnp.asarray(nhwc(arrays["x_t"]), float)
        for case, (schedule, mean, variance) in cases.items():
            chain = Chain(arrays, schedule, description["T_combos"], VARIANCES[variance], PREDICTED[mean])
            got = law(chain, chain.params(True), x, step, True)
            noise = expand(jnp.where(step == 0, 0.0, 1.0), x) * nhwc(arrays[f"{case}.noise"])
            values[f"{case}.sample"] = got["mean"] + jnp.exp(got["log_variance"] / 2) * noise
            values[f"{case}.pred_xstart"] = got["pred_xstart"]
        return values

    check("p_sample", compared, evaluate, NOISE)


@every_chain
def test_golden_ddim_steps(every):
    """One step for each example from its own time, towards the data and back, whatever the variance of a step."""
    description, arrays = load(CASE)
    compared, cases = part(arrays, r"ddim_(\w+)\.(\w+)\.(\w+)\.\w+", every)
    step = np.asarray(arrays["t"])
    own = np.arange(len(step))

    def evaluate(x64):
        x = jnp.asarray(nhwc(arrays["x_t"]), float)

        @functools.cache
        def law_of(kind, schedule, mean):
            chain = Chain(arrays, schedule, description["T_combos"], "small", PREDICTED[mean])
            denoiser, t, n = StepDenoiser(chain, chain.params(True)), chain.time(step), chain.path.n
            estimate = denoiser.estimate(x, t)
            if kind == "reverse":  # one step up; beyond the last time there is only noise
                later, last = jnp.minimum(t + 1 / n, 1.0), step + 1 == n
                alpha = jnp.where(last, 0.0, chain.path.alpha(later))
                sigma = jnp.where(last, 1.0, chain.path.sigma(later))
                return estimate.x0, expand(alpha, x) * estimate.x0 + expand(sigma, x) * estimate.noise, 0.0
            kernel = ddim_kernel(float(kind.removeprefix("eta")))
            s = jnp.asarray(np.append(0.0, chain.path.times())[step], float)
            mean, std = jax.vmap(lambda s, t: tuple(kernel(denoiser, x, s, t)))(s, t)  # a kernel has one time for all
            return estimate.x0, mean[own, own], expand(std, x)

        values = {}
        for case, groups in cases.items():
            x0, mean, std = law_of(*groups)
            noise = nhwc(arrays.get(f"{case}.noise", np.zeros(1)))
            values |= {f"{case}.sample": mean + std * noise, f"{case}.pred_xstart": x0}
        return values

    check("ddim", compared, evaluate, NOISE)


# Whole and respaced chains. Their settings are those of the loops, under the same respacing.schedule.learnL.xstartX.

SPACED = r"([\w,]+)\.(\w+)\.learn(\d)\.xstart\d"


def settings_of(description):
    """respacing.schedule.learnL.xstartX -> the settings."""
    loops = [case for case in description["cases"] if case["key"].startswith("loop.")]
    return {case["key"].split(".", 2)[2]: case for case in loops}


def spaced(arrays, settings):
    """(chain, parameters) of some settings."""
    respacing = settings["respacing"]
    kept = list(respace(settings["steps"], respacing)) if respacing not in ("", "none") else None
    prediction = "data" if settings["predict_xstart"] else "noise"
    chain = Chain(arrays, settings["schedule"], settings["steps"], variance_of(settings), prediction, kept)
    return chain, chain.params(settings["rescale_timesteps"])


def variance_of(settings):
    return "range" if settings["learn_sigma"] else "small" if settings["sigma_small"] else "large"


def sampler_of(settings, kind):
    """The sampler of some settings and a kind: p, ddim0, ddim1."""
    respacing = settings["respacing"].removeprefix("none")
    chain = {"t_min": 0.0, "n_steps": settings["steps"], "respacing": respacing}
    if kind == "p":
        return ancestral.build(**chain, variance=variance_of(settings))
    return ddim.build(**chain, eta=float(kind.removeprefix("ddim")))


def feed(monkeypatch, prior, noises):
    """Make samplers and bounds draw the recorded prior and then the recorded noises, in their order."""
    monkeypatch.setattr(Path, "prior_sample", lambda self, keys, shape, t_max=1.0: prior)
    for module in (base, vlb):
        monkeypatch.setattr(module, "normal", lambda keys, shape, fold: noises[fold])


def sample(monkeypatch, sampler, denoiser, noises):
    """The sample of recorded noises (noises[0]: the prior's)."""

    def draw(noises):
        feed(patch, noises[0], noises[1:])
        keys = base.example_keys(0, jnp.arange(noises.shape[1]))
        return sampler(keys, denoiser, noises.shape[2:]).x

    with monkeypatch.context() as patch:
        return jax.jit(draw)(jnp.asarray(np.moveaxis(noises, 2, -1), float))


@every_chain
def test_golden_samplers(every, monkeypatch):
    description, arrays = load(CASE)
    compared, cases = part(arrays, rf"loop\.(\w+)\.{SPACED}", every)

    def evaluate(x64):
        values = {}
        for case, (kind, *_) in cases.items():
            settings = next(row for row in description["cases"] if row["key"] == case)
            chain, params = spaced(arrays, settings)
            denoiser = StepDenoiser(chain, params, settings["clip_denoised"])
            x = sample(monkeypatch, sampler_of(settings, kind), denoiser, arrays[f"{case}.noise"])
            # A step multiplies by two exponentials of log alpha, takes the difference of two log SNR, 2 log alpha, and
            # rounds x a few times.
            log_alpha = np.log(chain.path.alpha(chain.time(np.arange(len(chain.bound.times)))))
            values[f"{case}.out"] = (x, EPS[x64] * float((6 * np.abs(log_alpha) + 4).sum()))
        return values

    check("loop", compared, evaluate, NOISE)


def bound_values(monkeypatch, denoiser, bound, x0, noises):
    """What the reference calls calc_bpd_loop, which goes down the steps; its first noise is the last step's."""

    def evaluate(x0, noises):
        feed(patch, None, noises[::-1])
        keys = base.example_keys(0, jnp.arange(len(x0)))
        return vlb.bound_terms(keys, denoiser, bound, x0), bound.prior(x0, 1.0)

    with monkeypatch.context() as patch:
        terms, prior = jax.jit(evaluate)(x0, jnp.asarray(np.moveaxis(noises, 2, -1), float))
    vb, x0_error, noise_error = (row[::-1].T for row in terms)
    total = prior + vb.sum(axis=1)
    return {"vb": vb, "xstart_mse": x0_error, "mse": noise_error, "prior_bpd": prior, "total_bpd": total}


@every_chain
def test_golden_bounds(every, monkeypatch):
    """Every term on recorded noise, the errors of x0 and of the noise, the published prior N(0, 1), the total."""
    description, arrays = load(CASE)
    settings = settings_of(description)
    compared, cases = part(arrays, rf"bpd\.{SPACED}", every)

    def evaluate(x64):
        values = {}
        for case in cases:
            chain, params = spaced(arrays, settings[case.removeprefix("bpd.")])
            noises = arrays[f"{case}.noise"]
            got = bound_values(monkeypatch, StepDenoiser(chain, params), chain.bound, chain.x0, noises)
            with jax.enable_x64(True):
                chain, params = spaced(arrays, settings[case.removeprefix("bpd.")])
                first = jnp.zeros(len(chain.x0), jnp.int32)
                x = chain.path.perturb(chain.x0, jnp.asarray(nhwc(noises[-1]), float), chain.time(first))
                bits = rounding_of_a_level(chain, params, x, first, EPS[x64], clip=True)[0]
            allowed = {"total_bpd": bits, "vb": bits[:, None]}
            values |= {f"{case}.{name}": (value, 0.0, allowed.get(name, 0.0)) for name, value in got.items()}
        return values

    check("bpd", compared, evaluate, NOISE)


@every_chain
def test_golden_losses_of_respaced_chains(every):
    """improved-diffusion's losses on the kept steps, whose own factor is the number of those steps."""
    description, arrays = load(CASE)
    settings, ours = settings_of(description), {}
    compared, cases = part(arrays, rf"spaced_loss\.{SPACED}", every)
    for case in cases:
        with jax.enable_x64(True):
            chain, params = spaced(arrays, settings[case.removeprefix("spaced_loss.")])
            noise, step = jnp.asarray(nhwc(arrays["noise"]), float), jnp.asarray(arrays[f"{case}.t"])
            x = chain.path.perturb(chain.x0, noise, chain.time(step))
            rounding = rounding_of_a_level(chain, params, x, step, EPS[True])[0] * len(chain.bound.times) / 1000
            loss, square, vb = by_kind(*chain.losses(params, noise, step))["RESCALED_MSE"]
        values = {"loss": Ours(loss, absolute=rounding), "mse": Ours(square), "vb": Ours(vb, absolute=rounding)}
        ours |= {(f"{case}.{name}", True): value for name, value in values.items()}
    compare("spaced_loss", compared, ours, r".*\.t")


def test_golden_betas_of_respaced_chains():
    """1 - abar_t/abar_s of the kept steps, which is the forward variance of ours."""
    description, arrays = load(CASE)
    betas, ours = {key: value for key, value in arrays.items() if key.startswith("spaced.")}, {}
    for key in betas:
        _, respacing, schedule, _ = key.split(".")
        settings = next(iter(settings_of(description).values()))
        chain = spaced(arrays, settings | {"respacing": respacing, "schedule": schedule})[0]
        ours[key, True] = Ours(np.exp(tables(chain.path, chain.bound.times).log_large))
    compare("spaced", {f"{key}_64": value for key, value in betas.items()}, ours, "")


def test_golden_divergence():
    """KL of Gaussians of the file's means and log variances: N(noise, dgll.log_scales) from N(dgll.means, x_t/10)."""
    _, arrays = load(CASE)
    tenth = np.float32(0.1) * arrays["x_t"]
    with jax.enable_x64(True):
        names = ("noise", "dgll.means", "dgll.log_scales")
        mean_p, mean_q, log_p, log_q = (jnp.asarray(a, float) for a in (*(arrays[name] for name in names), tenth))
        value = kl(mean_p - mean_q, log_p, log_q)
    compare("kl", {"kl.out64": arrays["kl.out64"]}, {("kl.out", True): Ours(value)}, "")
