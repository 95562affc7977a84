"""score_flow's variational bounds and their offsets, from the times and the noise that it drew; no case is named below.

Ours is exact where score_flow has first-order branches, its prior is the path's own N(0, sigma(1)^2), it integrates
over [eps, 1] where score_flow averages, and what is known of a Monte Carlo sum is taken out of it. The test puts all of
it back: coefficients of the branches, the prior N(0, 1), the mean, and squares of noise as they were drawn.
"""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from evaluation.jobs import bound
from sampling.likelihood import bits_per_dim
from score_flow.data.scaling import Scaling
from score_flow.model import Model, Preconditioning
from score_flow.numerics import bisection, standard_normal_log_prob, sum_flat
from score_flow.process.prediction import PREDICTIONS
from tests.golden_compare import Ours, compare
from tests.golden_data import golden_dir, load
from tests.losses.test_golden_losses import SCORE_FLOW, FirstOrder, ToyScore, variance
from tests.sampling.test_golden_sde import Process

SCALINGS = {"x": Scaling(0.0, 1.0), "(x+1)/2": Scaling(-1.0, 1.0)}  # by its inverse
pytestmark = pytest.mark.skipif(not (golden_dir() / f"{SCORE_FLOW}.npz").exists(), reason=f"no {SCORE_FLOW}")


def denoiser_of(process, arrays):
    """The toy network, its noise by the source's marginals."""
    params = {name: jnp.asarray(arrays[name], float) for name in ("w", "u", "mu")} | {"s2": variance(arrays)}
    path = FirstOrder(process.path) if "vp" in process.kind else process.path
    network = ToyScore(process, False, params["w"].shape, path)
    return Model(network, path, PREDICTIONS["score"], Preconditioning("t", 1.0)).bind(params)


def log_snr_in_branch(process, t):
    """The integral of -g^2/sigma^2, up to a constant, with the first-order branch that the source has here."""
    l = process.path.log_alpha(t)
    if process.kind == "vp":
        return 2 * l - jnp.log(jnp.where(-2 * l <= 1e-3, -2 * l, -jnp.expm1(2 * l)))
    return -2 * l - 2 * jnp.log(jnp.where(-2 * l <= 1e-3, -2 * l, jnp.expm1(-2 * l)))


def drift_and_g2(process, t):
    """f(t) and g(t)^2 as published: of subVP with a first-order branch of its own."""
    c = process.path.at(t)
    if process.kind != "subvp":
        return c.drift, c.g2
    e = -4 * process.path.log_alpha(t)
    return c.drift, c.g2 * jnp.where(e <= 1e-3, e / -jnp.expm1(-e), 1.0)


def times_of(process, drawn, eps, importance):
    """(times, Z) of the recorded uniform numbers: times themselves, or quantiles of g^2/sigma^2."""
    if not importance:
        return drawn, 1.0  # as published: the mean over [eps, 1] stands for the integral
    start, end = (log_snr_in_branch(process, jnp.asarray(t)) for t in (eps, 1.0))
    times = bisection(lambda t: log_snr_in_branch(process, t), start - drawn.ravel(), eps, 1.0)
    return times.reshape(drawn.shape), start - end


def offset_of(denoiser, x0, noise, eps):
    """Ours, with |n|^2 for its mean, d."""
    return bound.offset(denoiser, x0, noise, t_min=eps, data_std=math.inf) + 0.5 * (sum_flat(noise**2) - x0[0].size)


def bits(process, denoiser, x0, row, drawn):
    """The bound by the source's sums over the times and noise that it drew."""
    flags = re.fullmatch(r"bound\.\w+\.dsm(\d)\.iw(\d)\.offset(\d)", row["key"]).groups()
    denoising, importance, with_offset = (flag == "1" for flag in flags)
    d, drawn = x0[0].size, iter(drawn)
    times, z = times_of(process, next(drawn), row["eps"], importance)
    total = 0.0
    for t in times:
        probe, noise = next(drawn), next(drawn)
        (f, g2), sigma = drift_and_g2(process, t), denoiser.path.sigma(t)
        excess = bound.excess(denoiser, x0, noise, t=t, data_std=math.inf, probes=None if denoising else probe[None])
        weight = z * sigma**2 / g2 if importance else 1.0
        total += weight * (g2 / sigma**2 * excess - 2 * f * sum_flat(probe**2)) / len(times)
    end = denoiser.path.perturb(x0, next(drawn), jnp.ones(len(x0)))
    nats = 0.5 * total - standard_normal_log_prob(end / process.reference_prior_std)
    nats += d * math.log(process.reference_prior_std)
    if with_offset:
        nats += offset_of(denoiser, x0, next(drawn), row["eps"])
    return bits_per_dim(-nats, d, SCALINGS[row["inverse_scaler"]].bits_offset)


def test_score_flow_bounds():
    """All arrays are in float64."""
    rows, arrays = load(SCORE_FLOW)
    processes = {tag: Process(*row) for tag, row in load("score_flow/sde")[0]["sdes"].items()}
    known, ours = {f"{k}_64": a for k, a in arrays.items() if k.startswith(("bound.", "offset."))}, {}
    for row in (row for row in rows if row["key"].startswith(("bound.", "offset."))):
        key, process = row["key"], processes[row["key"].split(".")[1]]
        with jax.enable_x64(True):
            denoiser, x0 = denoiser_of(process, arrays), jnp.asarray(arrays["data_nhwc"])
            if key.startswith("offset."):
                value = offset_of(denoiser, x0, jnp.asarray(arrays[f"{key}.z"]), row["eps"])
                ours[f"{key}.out", True] = Ours(value)
            else:
                names = sorted(name for name in arrays if name.startswith(f"{key}.rng"))
                drawn = [jnp.asarray(arrays[name], float) for name in names]
                ours[f"{key}.bpd", True] = Ours(bits(process, denoiser, x0, row, drawn))
    assert ours
    compare(SCORE_FLOW, known, ours, given=r".*\.(z|rng\d+\.\w+)_64")
