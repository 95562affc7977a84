"""Every number that the source projects' process code gave (drift, marginals, chains, losses, ...), against ours.

Nothing below names a case: parameters come from the json beside the arrays, and a key that no computation is mapped to
fails the test. A reference that is NaN or infinite (interpolants at their ends) asks of ours a number or the infinite
limit, never NaN. `pytest -s` prints the worst relative error of each array.
"""

import re
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sampling.sde import DIFFUSIONS
from score_flow.grid import uniform
from score_flow.model import Model, Preconditioning, score_of, velocity_of
from score_flow.objective import WEIGHTINGS, Objective
from score_flow.paths.base import Path
from score_flow.paths.ddpm import DDPM
from score_flow.paths.gvp import GVP
from score_flow.paths.linear import Linear
from score_flow.paths.subvp import SubVP
from score_flow.paths.ve import VE
from score_flow.paths.vp import VP
from score_flow.prediction import PREDICTIONS, noise, score, velocity
from score_flow.times import uniform as uniform_times
from score_flow.transition import forward_step, posterior_coefficients
from tests.golden_data import load
from tests.paths.variants import EPS


class Ours(NamedTuple):
    """A value of ours, and what the source's own approximation may differ by: relatively and absolutely."""

    value: object
    relative: object = 0.0
    absolute: object = 0.0


def split_precision(key: str) -> tuple[str, bool]:
    """(name, whether it is a float64 run): names end in 64, or in _64 after a digit."""
    short = re.sub(r"(_64|(?<=\D)64)$", "", key)
    return short, short != key


def size(reference):
    """What errors are relative to: the largest number of a row; a row is a time (or an example)."""
    magnitude = np.abs(np.where(np.isfinite(reference), reference, 0.0))
    return magnitude.max(axis=tuple(range(1, reference.ndim)), keepdims=True) if reference.ndim > 1 else magnitude


def worst_relative(difference, reference, noise=0.0) -> float:
    """The largest relative error; a reference that is 0 but for noise has none."""
    scale = np.broadcast_to(size(reference), reference.shape)
    error = np.divide(np.abs(difference), scale, out=np.zeros(reference.shape), where=scale > noise)
    return float(np.max(error, initial=0.0))


def compare(case: str, arrays: dict, ours: dict, given: str, rtol: float = 1e-9) -> None:
    """Compare every array but the given ones (a regular expression) with ours[name, x64]."""
    doubles = {split_precision(key)[0]: np.asarray(a, np.float64) for key, a in arrays.items() if split_precision(key)[1]}
    worst, off, unmapped = [], [], []
    for key, array in arrays.items():
        name, x64 = split_precision(key)
        if re.fullmatch(given, key):
            continue
        if (name, x64) not in ours:
            unmapped.append(key)
            continue
        value, own_relative, own_absolute = ours[name, x64]
        reference, value = np.broadcast_arrays(np.asarray(array, np.float64), np.asarray(value, np.float64))
        finite = np.isfinite(reference)
        difference = np.where(finite, value - np.where(finite, reference, 0.0), 0.0)
        if x64:
            allowed = rtol
        else:  # three times what float32 cost the source, and a few roundings of ours
            double = doubles.get(name, reference)
            allowed = 3 * worst_relative(np.where(np.isfinite(double), array - double, 0.0), double) + 16 * EPS[False]
        within = np.abs(difference) <= (allowed + own_relative) * size(reference) + own_absolute
        error = worst_relative(difference, reference, own_absolute)
        print(f"{error:9.1e}  {key}")
        if x64:
            worst.append((error, key))
        if np.isnan(value).any() or not within.all():
            off.append(f"{key}: {error:.1e}, allowed {np.max(allowed + own_relative):.1e}")
    error, key = max(worst)
    print(f"{case}: {len(arrays)} arrays, {len(worst)} of them float64: worst relative error {error:.1e} ({key}); {len(off)} off")
    assert not unmapped
    assert not off


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


def discretise(p: Process, t, x, x64):
    """(f, G) of the source's step x + f + G z at each t: its index is trunc(t (n - 1)); tables are float64 on the host."""
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
    f, g = discretise(p, t, x, z)
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


def reverse_values(p: Process, t, x, forward: dict) -> dict:
    """The reverse SDE and its probability flow (_pf) by the samplers' route: score -> pair -> velocity."""
    t, x = jnp.asarray(t, float), jnp.asarray(x, float)
    c = p.path.at(t).expand(x)
    s = (0.3 - x) / (0.5 + t.reshape(-1, *(1,) * (x.ndim - 1)))
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
    with jax.enable_x64(True):
        if p.kind in ("ve", "velin"):
            path = VE(p.low, p.high, "linear" if p.kind == "velin" else "geometric")
            return {"discrete_sigmas": Ours(path.sigma(jnp.arange(p.n) / (p.n - 1)))}
        if p.kind != "vp":
            return {}
        t, beta = jnp.asarray(p.chain.times()), p.chain.table()
        alpha, sigma = p.chain.alpha(t), p.chain.sigma(t)
    return {
        "discrete_betas": Ours(beta), "alphas": Ours(1 - beta), "alphas_cumprod": Ours(alpha**2),
        "sqrt_alphas_cumprod": Ours(alpha), "sqrt_1m_alphas_cumprod": Ours(sigma, EPS[True] / beta[0]),
    }  # fmt: skip


def index_values(p: Process, names) -> dict:
    """trunc(t (n - 1)) along linspace(1, eps, n): the table index of each sampler step."""
    values = {}
    for name in names:
        places = uniform(p.path, p.n - 1, float(name.split("eps")[1]), 1.0) * (p.n - 1)
        # In float32 a place that lies a rounding from an integer may be cut on either side of it.
        doubtful = np.abs(places - np.rint(places)) <= 4 * EPS[False] * places
        for x64 in (False, True):
            values[name, x64] = Ours(np.trunc(places), absolute=0.0 if x64 else 1.0 * doubtful)
    return values


def processes(arrays, rows):
    """(tag, process, names of its arrays) for every row of the json."""
    for tag, p in rows.items():
        yield tag, p, {split_precision(key.removeprefix(f"{tag}."))[0] for key in arrays if key.startswith(f"{tag}.")}


def test_score_sde():
    description, arrays = load("score_sde/sde/sde_grid")
    fields = ("kind", "beta_min_or_sigma_min", "beta_max_or_sigma_max", "N")
    ours = {}
    for tag, p, names in processes(arrays, {tag: Process(*(row[f] for f in fields)) for tag, row in description["sdes"].items()}):
        for x64 in (False, True):
            with jax.enable_x64(x64):
                values = sde_values(p, arrays["t"], arrays["x"], arrays["z"])
                values |= reverse_values(p, arrays["t"], arrays["x"], values) | table_values(p)
            ours |= {(f"{tag}.{name}", x64): value for name, value in values.items()}
        indices = index_values(p, [name for name in names if name.startswith("sampler_timestep_index")])
        ours |= {(f"{tag}.{name}", x64): value for (name, x64), value in indices.items()}
    compare("score_sde/sde", arrays, ours, given="t|x|z")


def first_order(x, by=None):
    """The source's x for expm1(x), which it takes where |by| <= 1e-3, over the true one; 1 elsewhere."""
    x = np.asarray(x, np.float64)
    return np.where(np.abs(x if by is None else by) <= 1e-3, x / np.expm1(x), 1.0)


def importance_values(p: Process, t, eps: float, quantile, time) -> dict:
    """Integrals of g^2/sigma^2 = -d log SNR/dt from eps, and their inverse."""
    t, quantile, time = (jnp.asarray(a, float) for a in (t, quantile, time))
    start, one = jnp.asarray(eps, float), jnp.asarray(1.0, float)

    def weight(t):
        # VP sums log(1 - exp(2 log alpha)), subVP 2 log(exp(-2 log alpha) - 1), both with the source's branch.
        exponents = 2 * log_alpha(p, t), 2 * log_alpha(p, start)
        errors = (np.log(first_order(e)) if p.kind == "vp" else 2 * np.log(first_order(-e)) for e in exponents)
        error = next(errors) - next(errors)
        rounding = sum(4 * EPS[t.dtype == jnp.float64] * (1 / np.abs(e) + 16) for e in exponents)
        # Where the branch ends the sum jumps by its error, 1e-3 for subVP: times there are ill defined.
        jump = np.where(np.abs(np.abs(exponents[0]) - 1e-3) < 1e-7, 1.01e-3, 0.0)
        return error, Ours(p.path.log_snr(start) - p.path.log_snr(t) + error, absolute=rounding + jump)

    c = p.path.at(time)
    rate = np.asarray(2 * c.det / (c.alpha * c.sigma), np.float64)
    error, at_time = weight(time)
    inverse = p.path.inverse_log_snr(p.path.log_snr(start) - quantile + error, eps, 1.0)
    return {
        "cum_weight": weight(t[t >= eps])[1], "Z": weight(one)[1], "quantile": at_time,
        "time": Ours(inverse, absolute=at_time.absolute / rate),
    }  # fmt: skip


def high_precision_values(p: Process, t, values: dict) -> dict:
    """hp0 is 1 - exp; hp1, `high_precision`, its first-order branch where |log alpha| is small: the less accurate one."""
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
    for tag, p, names in processes(arrays, {tag: Process(*row) for tag, row in description["sdes"].items()}):
        for x64 in (False, True):
            with jax.enable_x64(x64):
                values = sde_values(p, arrays["t"], arrays["x_nhwc"], arrays["z_nhwc"]) | table_values(p)
                if "vp" in p.kind:
                    values |= high_precision_values(p, arrays["t"], values)
                for suffix in {name.removeprefix("time") for name in names if name.startswith("time.eps")}:
                    quantile, time = (arrays[f"{tag}.{name}{suffix}" + "_64" * x64] for name in ("quantile", "time"))
                    integrals = importance_values(p, arrays["t"], float(suffix.removeprefix(".eps")), quantile, time)
                    values |= {f"{name}{suffix}": value for name, value in integrals.items()}
            ours |= {(f"{tag}.{name}", x64): value for name, value in values.items()}
    compare("score_flow/sde", arrays, ours, given="t|x_nhwc|z_nhwc")


# SiT's transport: t_sit = 1 - t, x1 is data, x0 is noise, v_sit = -v.

INTERPOLANTS = {"Linear": Linear(), "GVP": GVP(), "VP": VP(0.1, 20.0)}
FORMS = {"SBDM": "g2", "inccreasing-decreasing": "increasing_decreasing"}  # the source's spellings


class ToyFlow(nn.Module):
    """The network of the SiT cases; negative: our velocity is minus theirs."""

    negative: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b c h w"], t, condition, *, deterministic=True):
        w, u, a = (self.param(name, nn.initializers.zeros, (1, x.shape[1], 1, 1)) for name in "wua")
        t, y = (value.reshape(-1, 1, 1, 1) for value in (t, condition["label"]))
        out = (a + 0.3 * jnp.cos(3 * t)) * x + u * jnp.tanh(w * x + t) + 0.05 * y
        return -out if self.negative else out


def toy_model(path: Path, prediction: str) -> Model:
    return Model(ToyFlow(prediction == "velocity"), path, PREDICTIONS[prediction], Preconditioning("1-t", 1.0))


def transport_grid(path: Path, arrays, names, t) -> dict:
    """The interpolant's own quantities at our times t."""
    data, start, v = (jnp.asarray(arrays[f"grid.{name}"], float) for name in ("x1", "x0", "v"))
    c, x = path.at(t), path.perturb(data, start, t)
    ce = c.expand(x)
    pair = velocity.decode(-v, x, ce)
    params = {name: jnp.asarray(arrays[f"toy_{name}"], float) for name in "wua"}
    label = {"label": jnp.zeros(len(t), int)}
    values = {
        "xt": x, "ut": -velocity.target(noise.decode(start, x, ce)._replace(x0=data), ce), "alpha": c.alpha, "d_alpha": -c.dalpha,
        "sigma": c.sigma, "d_sigma": -c.dsigma, "d_alpha_alpha_ratio": -c.drift, "drift": ce.drift * x, "drift_var": ce.g2 / 2,
        "score_from_velocity": score_of(pair, ce), "noise_from_velocity": pair.noise,
        "velocity_from_score": -velocity_of(score.decode(v, x, ce), ce),
    }  # fmt: skip
    for name in (name for name in names if name.startswith("diffusion.")):
        _, form, norm = name.split(".", 2)
        w = DIFFUSIONS[FORMS.get(form, form)](ce, t.reshape(-1, 1, 1, 1), float(norm.removeprefix("norm")))
        values[name] = w / 2  # their w is half of ours
    functions = {}
    for prediction in ("velocity", "score", "noise"):
        denoiser = toy_model(path, prediction).bind(params, label)
        functions[f"{prediction}.drift"] = -denoiser.velocity(data, t)
        functions[f"{prediction}.score"] = denoiser.score(data, t)
    return {"grid": values, "fn": functions}


def transport_loss(arrays, path_name: str, prediction: str, weighting: str, eps: float, base: str) -> dict:
    """Their loss of each example, the network's output, and the gradient of the mean by w."""
    path, start = INTERPOLANTS[path_name], 0.0 if path_name == "VP" else eps
    weight, half = {"None": ("simple", 1.0), "velocity": ("velocity", 1.0), "likelihood": ("likelihood", 0.5)}[weighting]
    if prediction == "velocity":  # SiT weights the other two only
        weight, half = "velocity", 1.0
    t = 1 - (jnp.asarray(arrays[f"{base}.t_uniform"], float) * (1 - eps - start) + start)
    data, start_noise = (jnp.asarray(arrays[name], float) for name in ("x1", f"{base}.x0"))
    params = {name: jnp.asarray(arrays[f"toy_{name}"], float) for name in "wua"}
    label = {"label": jnp.asarray(arrays["y"])}
    model = toy_model(path, prediction)
    objective = Objective(model, uniform_times(path, 0.0), WEIGHTINGS[weight])

    def losses(params):
        return half * objective.at(params, data, start_noise, t, label)

    sign = -1 if prediction == "velocity" else 1
    return {
        "loss": losses(params),
        "pred": sign * model.apply(params, path.perturb(data, start_noise, t), t, label),
        "grad_w": jax.grad(lambda params: losses(params).mean())(params)["w"],
    }


def test_sit_transport():
    description, arrays = load("sit/transport/transport")
    eps = {case["key"]: case.get("train_eps") for case in description["cases"]}
    ours = {("prior.logp", False): Ours(Linear().prior_log_prob(jnp.asarray(arrays["prior.z"])))}
    for path_name, path in INTERPOLANTS.items():
        prefix = f"grid.{path_name}."
        names = {split_precision(key)[0].removeprefix(prefix) for key in arrays if key.startswith(prefix)}
        results = {}
        # Our float32 time 1 - t_sit is rounded where theirs is not: what eps does to a value is found by doing it.
        for x64, shift in ((False, 0.0), (True, 0.0), (True, EPS[False])):
            with jax.enable_x64(x64):
                t = jnp.asarray(np.abs(1 - np.asarray(arrays["grid.t"], np.float64) - shift), float)
                results[x64, shift] = jax.tree.map(np.asarray, transport_grid(path, arrays, names, t))
        for kind, values in results[True, 0.0].items():
            for name, exact in values.items():
                moved = np.abs(results[True, EPS[False]][kind][name] - exact)
                if name == "d_sigma":  # jax differentiates expm1(y) as expm1(y) + 1: eps of y', however small exp(y) is
                    moved = moved + EPS[False] * np.abs(results[True, 0.0]["grid"]["d_alpha_alpha_ratio"])
                ours[f"{kind}.{path_name}.{name}", True] = Ours(exact)
                ours[f"{kind}.{path_name}.{name}", False] = Ours(results[False, 0.0][kind][name], absolute=4 * moved)
    for base in (key for key in eps if key.startswith("loss.")):
        for x64 in (False, True):
            with jax.enable_x64(x64):
                values = transport_loss(arrays, *base.split(".")[1:], eps[base], base)
            ours |= {(f"{base}.{name}", x64): Ours(value) for name, value in values.items()}
    # loss_sit.* needs the published SiT weights: the tests of the SiT network and its importer compare those.
    given = r"x1|y|toy_.|grid\.(t|x0|x1|v)|prior\.z|loss\..*\.(x0|t_uniform)|sit\..*|loss_sit\..*"
    compare("sit/transport", arrays, ours, given)


# improved-diffusion's tables.


def schedule_values(path: DDPM) -> dict:
    t = jnp.asarray(path.times())
    s = jnp.concatenate([jnp.zeros(1), t[:-1]])
    alpha, sigma = path.alpha(t), path.sigma(t)
    on_x_t, on_x0, std = posterior_coefficients(path, s, t)
    clipped = jnp.concatenate([std[1:2], std[1:]])
    # A posterior needs 1 - SNR_t/SNR_s, by us from two log SNR, by them from products: eps over the smallest beta.
    posterior = 16 * EPS[True] / path.table().min()
    return {
        "betas": Ours(path.table()), "alphas_cumprod": Ours(alpha**2), "alphas_cumprod_prev": Ours(path.alpha(s) ** 2),
        "alphas_cumprod_next": Ours(jnp.concatenate([alpha[1:] ** 2, jnp.zeros(1)])),
        "sqrt_recip_alphas_cumprod": Ours(1 / alpha), "sqrt_recipm1_alphas_cumprod": Ours(sigma / alpha, posterior),
        "log_one_minus_alphas_cumprod": Ours(2 * jnp.log(sigma), posterior, 2 * EPS[True]),
        "posterior_variance": Ours(std**2, posterior), "posterior_log_variance_clipped": Ours(2 * jnp.log(clipped), posterior),
        "posterior_mean_coef1": Ours(on_x0, posterior), "posterior_mean_coef2": Ours(on_x_t, posterior),
    }  # fmt: skip


def test_improved_diffusion_schedules():
    _, arrays = load("improved_diffusion/diffusion/diffusion")
    arrays = {key: array for key, array in arrays.items() if key.startswith("sched.")}
    ours = {}
    for schedule, n in {tuple(key.split(".")[1:3]) for key in arrays}:
        with jax.enable_x64(True):
            values = schedule_values(DDPM(schedule, int(n)))
        ours |= {(f"sched.{schedule}.{n}.{name}", True): value for name, value in values.items()}
    compare("improved_diffusion/diffusion sched", {f"{key}_64": array for key, array in arrays.items()}, ours, "", rtol=1e-12)
