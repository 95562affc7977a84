"""Every number that the source projects' processes (drift, marginals, chains, importance weights) gave, against ours.

Nothing below names a case: parameters come from the json beside the arrays, and a key that no computation is mapped to
fails the test. A reference that is NaN or infinite asks of ours a number or the infinite limit, never NaN.
`pytest -s` prints the worst relative error of each array.
"""

import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_flow.model import score_of, velocity_of
from score_flow.numerics import expand
from score_flow.paths.base import Path
from score_flow.paths.ddpm import DDPM
from score_flow.paths.subvp import SubVP
from score_flow.paths.ve import VE
from score_flow.paths.vp import VP
from score_flow.process.grid import uniform
from score_flow.process.prediction import score
from score_flow.process.transition import forward_step, posterior_coefficients
from tests.golden_compare import Ours, compare, split_precision
from tests.golden_data import load
from tests.paths.variants import EPS, coefficients, evaluate

Table = functools.partial(Ours, rtol=1e-12)


# The SDEs of score_sde and score_flow.


class Process(NamedTuple):
    """A row of the json: kind, the ends of its schedule, and the number of discrete times."""

    kind: str
    low: float
    high: float
    n: int

    @property
    def path(self) -> Path:
        match self.kind:
            case "vp":
                return VP(self.low, self.high)
            case "subvp":
                return SubVP(self.low, self.high)
            case "ve":
                return VE(self.low, self.high)
            case "velin":  # its marginals start from 0, its table of sigmas from sigma_min
                return VE(0.0, self.high, "linear")

    @property
    def chain(self) -> DDPM:
        return DDPM(betas=tuple(np.linspace(self.low / self.n, self.high / self.n, self.n).tolist()))

    @property
    def reference_prior_std(self) -> float:
        # The sources end VP at N(0, I); ours ends at its own sigma(1), and a change of variables relates the two.
        return self.high if self.kind.startswith("ve") else 1.0


def log_alpha(p: Process, t):
    return np.log(np.asarray(p.path.alpha(t), np.float64))


def discretise(p: Process, t, x):
    """(f, G) of the source's step x + f + G z at each t: table row trunc(t (n - 1)), tables in float64."""
    index = np.trunc(np.asarray(t) * np.asarray(t).dtype.type(p.n - 1))
    c = p.path.at(t)
    if p.kind not in ("vp", "ve"):  # Euler-Maruyama
        return c.expand(x).drift * x / p.n, jnp.sqrt(c.g2 / p.n)
    with jax.enable_x64(True):
        i = jnp.asarray(index, float)
        if p.kind == "vp":
            scale, std = forward_step(p.chain, i / p.n, (i + 1) / p.n)
        else:
            scale, std = forward_step(p.path, (i - 1) / (p.n - 1), i / (p.n - 1))
            std = jnp.where(i == 0, p.path.sigma(0 * i), std)  # there is no sigma before the first
        return (np.asarray(scale) - 1).reshape(-1, *(1,) * (x.ndim - 1)) * np.asarray(x, float), std


def sde_values(p: Process, t, x, z) -> dict:
    """What both projects compute at every t; x64 is the caller's mode."""
    t, x, z = (jnp.asarray(a, float) for a in (t, x, z))
    c, d = p.path.at(t), z[0].size
    f, g = discretise(p, t, x)
    # Marginals of a VP path by 1 - exp cancel: the source's rounding is eps over the difference.
    rounding = EPS[t.dtype == jnp.float64] / -np.expm1(2 * log_alpha(p, t)) if "vp" in p.kind else 0.0
    stretch = p.path.sigma(jnp.asarray(1.0, float)) / p.reference_prior_std
    prior = p.path.prior_log_prob(stretch * z) + d * jnp.log(stretch)
    at_zero = p.path.prior_log_prob(0 * z) + d * jnp.log(stretch)
    return {
        "mean": Ours(p.path.perturb(x, 0 * x, t)),
        "std": Ours(c.sigma, rounding),
        "drift": Ours(c.expand(x).drift * x),
        "diffusion": Ours(jnp.sqrt(c.g2), rounding),
        "disc_f": Ours(f),
        "disc_G": Ours(g, rounding),
        "prior_logp": Ours(prior),
        "prior_entropy": Ours(0.5 * d - at_zero),
    }


def analytic_score(formula: str):
    """s(x, t) of a formula such as `score(x,t) = (0.3 - x) / (0.5 + t)`."""
    mean, variance = map(float, re.fullmatch(r".*= *\(([\d.e-]+) - x\) / \(([\d.e-]+) \+ t\)", formula).groups())
    return lambda x, t: (mean - x) / (variance + expand(t, x))


def reverse_values(p: Process, t, x, forward: dict, score_at) -> dict:
    """The reverse SDE and its probability flow (_pf) by the samplers' route: score -> pair -> velocity."""
    t, x = jnp.asarray(t, float), jnp.asarray(x, float)
    c = p.path.at(t).expand(x)
    s = score_at(x, t)
    pair = score.decode(s, x, c)
    flow = velocity_of(pair, c)
    f, g = np.asarray(forward["disc_f"].value), np.asarray(forward["disc_G"].value)
    g2_score = (g**2).reshape(-1, *(1,) * (x.ndim - 1)) * np.asarray(s)
    return {
        "rev_drift": Ours(flow - 0.5 * c.g2 * score_of(pair, c)),
        "rev_drift_pf": Ours(flow),
        "rev_diffusion": forward["diffusion"],
        "rev_diffusion_pf": Ours(0.0),
        "rev_disc_f": Ours(f - g2_score),
        "rev_disc_f_pf": Ours(f - 0.5 * g2_score),
        "rev_disc_G": forward["disc_G"],
        "rev_disc_G_pf": Ours(0.0),
    }


def table_values(p: Process) -> dict:
    """Discrete tables, in float64 for both precisions."""
    if p.kind in ("ve", "velin"):
        path = VE(p.low, p.high, "linear" if p.kind == "velin" else "geometric")
        return {"discrete_sigmas": Table(evaluate(path.sigma, np.arange(p.n) / (p.n - 1)))}
    if p.kind != "vp":
        return {}
    alpha, sigma = evaluate(lambda t: (p.chain.alpha(t), p.chain.sigma(t)), p.chain.times())
    beta = p.chain.table()
    return {
        "discrete_betas": Table(beta), "alphas": Table(1 - beta), "alphas_cumprod": Table(alpha**2),
        "sqrt_alphas_cumprod": Table(alpha), "sqrt_1m_alphas_cumprod": Table(sigma, EPS[True] / beta[0]),
    }  # fmt: skip


def index_values(p: Process, names) -> dict:
    """trunc(t (n - 1)) along linspace(1, eps, n): the table index of each sampler step."""
    values = {}
    for name in names:
        places = uniform(p.path, p.n - 1, float(name.split("eps")[1]), 1.0) * (p.n - 1)
        for x64 in (False, True):
            # Times are 1 + i h, cut after a product with n - 1: four roundings, of numbers up to 1, by them and by us.
            # A place that lies so near an integer may be cut on either side of it; all others are compared exactly.
            doubtful = np.abs(places - np.rint(places)) <= 4 * EPS[x64] * (p.n - 1)
            values[name, x64] = Ours(np.trunc(places), absolute=1.0 * doubtful, rtol=0.0)
    return values


def test_indices_are_exact_but_on_an_edge():
    """Of 1999 - 0.999 i only i = 0 and 1000 are integers, which a rounding may turn into the one below."""
    for value in index_values(Process("vp", 0.1, 20.0, 2000), ["sampler_timestep_index_eps0.001"]).values():
        np.testing.assert_array_equal(np.flatnonzero(value.absolute), [0, 1000])
        assert value.rtol == value.relative == 0 and set(value.absolute) == {0.0, 1.0}
        np.testing.assert_array_equal(value.value[1:4], [1998, 1997, 1996])


def processes(arrays, rows):
    """(tag, process, names of its arrays) for every row of the json."""
    for tag, p in rows.items():
        yield tag, p, {split_precision(key.removeprefix(f"{tag}."))[0] for key in arrays if key.startswith(f"{tag}.")}


def test_score_sde():
    description, arrays = load("score_sde/sde/sde_grid")
    fields = ("kind", "beta_min_or_sigma_min", "beta_max_or_sigma_max", "N")
    score_at = analytic_score(description["analytic_score"])
    ours = {}
    rows = {tag: Process(*(row[field] for field in fields)) for tag, row in description["sdes"].items()}
    for tag, p, names in processes(arrays, rows):
        for x64 in (False, True):
            with jax.enable_x64(x64):
                values = sde_values(p, arrays["t"], arrays["x"], arrays["z"])
                values |= reverse_values(p, arrays["t"], arrays["x"], values, score_at) | table_values(p)
            ours |= {(f"{tag}.{name}", x64): value for name, value in values.items()}
        indices = index_values(p, [name for name in names if name.startswith("sampler_timestep_index")])
        ours |= {(f"{tag}.{name}", x64): value for (name, x64), value in indices.items()}
    compare("score_sde/sde", arrays, ours, given="t|x|z")


def first_order(x, by=None):
    """The source's x for expm1(x), which it takes where |by| <= 1e-3, over the true one; 1 elsewhere."""
    x = np.asarray(x, np.float64)
    return np.where(np.abs(x if by is None else by) <= 1e-3, x / np.expm1(x), 1.0)


def importance_values(p: Process, t, eps: float, quantile, time, x64) -> dict:
    """Integrals of g^2/sigma^2 = -d log SNR/dt from eps, and their inverse."""
    (start,) = evaluate(p.path.log_snr, [eps], x64=x64)

    def weight(t):
        # VP sums log(1 - exp(2 log alpha)), subVP 2 log(exp(-2 log alpha) - 1), both with the source's branch.
        exponents = 2 * np.log(evaluate(p.path.alpha, t)), 2 * np.log(evaluate(p.path.alpha, [eps]))
        branch = [np.log(first_order(e)) if p.kind == "vp" else 2 * np.log(first_order(-e)) for e in exponents]
        rounding = sum(4 * EPS[x64] * (1 / np.abs(e) + 16) for e in exponents)
        # Where the branch ends the sum jumps by its error, 1e-3 for subVP: times there are ill defined.
        jump = np.where(np.abs(np.abs(exponents[0]) - 1e-3) < 1e-7, 1.01e-3, 0.0)
        error = branch[0] - branch[1]
        return error, Ours(start - evaluate(p.path.log_snr, t, x64=x64) + error, absolute=rounding + jump)

    error, at_time = weight(time)
    inverse = evaluate(lambda value: p.path.inverse_log_snr(value, eps, 1.0), start - quantile + error, x64=x64)
    return {
        "cum_weight": weight(t[t >= eps])[1], "Z": weight([1.0])[1], "quantile": at_time,
        "time": Ours(inverse, absolute=at_time.absolute / coefficients(p.path, time)["rate"]),
    }  # fmt: skip


def high_precision_values(p: Process, t, values: dict) -> dict:
    """hp0 is 1 - exp; hp1, `high_precision`, takes a first-order branch where |log alpha| is small: less accurate."""
    l = log_alpha(p, jnp.asarray(t, float))
    mean, std, diffusion, step = (values[name] for name in ("mean", "std", "diffusion", "disc_G"))
    std_error = first_order(2 * l, by=l) ** (0.5 if p.kind == "vp" else 1.0)
    mean_error = np.where(np.abs(l) <= 1e-3, (1 + l) / np.exp(l), 1.0).reshape(-1, 1, 1, 1)
    # The error of a first-order form: |2l|/2 of sigma^2 (VP) or sigma (subVP), l^2/2 of alpha; |l| is at most 1e-3.
    assert (np.abs(std_error - 1) <= 1.001e-3).all() and (np.abs(mean_error - 1) <= 0.502e-6).all()
    changed = {
        "mean.hp0": mean, "std.hp0": std, "mean.hp1": mean._replace(value=mean.value * mean_error),
        "std.hp1": std._replace(value=std.value * std_error),
    }  # fmt: skip
    if p.kind == "subvp":  # g^2 = beta (1 - exp(4 log alpha)), by default in its branch
        error = first_order(4 * l) ** 0.5
        hp1 = diffusion._replace(value=diffusion.value * error)
        changed |= {"diffusion.hp0": diffusion, "diffusion.hp1": hp1, "diffusion": hp1}
        changed["disc_G"] = step._replace(value=step.value * error)
    return changed


def test_score_flow():
    description, arrays = load("score_flow/sde")
    ours = {}
    rows = {tag: Process(*row) for tag, row in description["sdes"].items()}
    for tag, p, names in processes(arrays, rows):
        for x64 in (False, True):
            with jax.enable_x64(x64):
                values = sde_values(p, arrays["t"], arrays["x_nhwc"], arrays["z_nhwc"]) | table_values(p)
                if "vp" in p.kind:
                    values |= high_precision_values(p, arrays["t"], values)
                for suffix in {name.removeprefix("time") for name in names if name.startswith("time.eps")}:
                    quantile, time = (arrays[f"{tag}.{name}{suffix}" + "_64" * x64] for name in ("quantile", "time"))
                    eps = float(suffix.removeprefix(".eps"))
                    integrals = importance_values(p, arrays["t"], eps, quantile, time, x64)
                    values |= {f"{name}{suffix}": value for name, value in integrals.items()}
            ours |= {(f"{tag}.{name}", x64): value for name, value in values.items()}
    compare("score_flow/sde", arrays, ours, given="t|x_nhwc|z_nhwc")


# improved-diffusion's tables.


def schedule_values(path: DDPM) -> dict:
    t = path.times()
    s = np.concatenate([[0.0], t[:-1]])
    alpha, sigma, before = evaluate(lambda s, t: (path.alpha(t), path.sigma(t), path.alpha(s)), s, t)
    on_x_t, on_x0, std = evaluate(lambda s, t: posterior_coefficients(path, s, t), s, t)
    clipped = np.concatenate([std[1:2], std[1:]])
    # A posterior needs 1 - SNR_t/SNR_s, by us from two log SNR, by them from products: eps over the smallest beta.
    posterior = 16 * EPS[True] / path.table().min()
    return {
        "betas": Table(path.table()), "alphas_cumprod": Table(alpha**2), "alphas_cumprod_prev": Table(before**2),
        "alphas_cumprod_next": Table(np.concatenate([alpha[1:] ** 2, [0.0]])),
        "sqrt_recip_alphas_cumprod": Table(1 / alpha), "sqrt_recipm1_alphas_cumprod": Table(sigma / alpha, posterior),
        "log_one_minus_alphas_cumprod": Table(2 * np.log(sigma), posterior, 2 * EPS[True]),
        "posterior_variance": Table(std**2, posterior),
        "posterior_log_variance_clipped": Table(2 * np.log(clipped), posterior),
        "posterior_mean_coef1": Table(on_x0, posterior), "posterior_mean_coef2": Table(on_x_t, posterior),
    }  # fmt: skip


def test_improved_diffusion_schedules():
    _, arrays = load("improved_diffusion/diffusion/diffusion")
    # All tables are float64. The other arrays of the file: the tests of losses and samplers.
    arrays = {f"{key}_64": array for key, array in arrays.items() if key.startswith("sched.")}
    ours = {}
    for schedule, n in {tuple(key.split(".")[1:3]) for key in arrays}:
        values = schedule_values(DDPM(schedule, int(n)))
        ours |= {(f"sched.{schedule}.{n}.{name}", True): value for name, value in values.items()}
    compare("improved_diffusion/diffusion sched", arrays, ours, given="")
