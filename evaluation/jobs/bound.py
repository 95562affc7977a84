"""A variational bound on the likelihood of every image of a split, on any path (Song et al. 2021, arXiv:2101.09258).

For x_t = alpha x_0 + sigma n and a denoiser's guess n_hat(x_t, t) of the noise, theorem 3 of the paper reads

    -log p(x_0) <= KL(q(x_T | x_0) || p(x_T)) + 1/2 int g^2/sigma^2 E|n_hat - n|^2 dt + H(q(x_eps | x_0)) + offset,

the integral over [eps, T], where H(q(x_eps | x_0)) = d/2 log(2 pi e sigma_eps^2), g^2/sigma^2 = -d log SNR/dt and the
score is -n_hat/sigma. What is known of the paper's expectations is taken out of them: its terms in div f and in
|grad log p(x_t | x_0)|^2, and the mean over x_T.
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from evaluation import dequantisers
from evaluation.context import Context
from evaluation.fold import Fold, write_arrays
from evaluation.jobs.base import Job, Opened
from evaluation.jobs.rounds import per_image
from sampling.base import Stream, example_keys, normal, split
from sampling.likelihood import Probe, bits_per_dim, probes
from score_flow.config.options import EvalOptions
from score_flow.errors import UserError
from score_flow.experiment import Experiment
from score_flow.model import Denoiser
from score_flow.numerics import mean_and_error, sum_flat, value_and_divergence
from score_flow.paths.base import Path
from score_flow.process.bound import known_integral, prior, share_of_gaussian
from score_flow.process.grid import noisy_end
from score_flow.process.times import TimeSampler, log_snr, stratified
from score_flow.runs.places import Place
from score_flow.types import Images, Keys, Times

Form = Literal["dsm", "ssm"]


class Terms(NamedTuple):
    """Nats of each example: their sum is the bound; without the offset it is one on -E log p_eps(x_eps)."""

    prior: Float[Array, "b"]  # KL(q(x_T | x_0) || N(0, sigma_T^2 I))
    integral: Float[Array, "b"]  # over [eps, T], and the entropy of q(x_eps | x_0), for the sum converges as eps -> 0
    offset: Float[Array, "b"]  # -E log p(x_0 | x_eps) less that entropy


def time_sampler(path: Path, t_min: float, t_max: float, *, importance: bool) -> TimeSampler:
    """Draw times in even cells of log SNR, whose density is g^2/sigma^2 on every path, or else of t."""
    return (log_snr if importance else stratified)(path, t_min, t_max)


def excess(
    denoiser: Denoiser,
    x0: Images,
    noise: Images,
    *,
    t: Times,
    data_std: float,
    probes: Float[Array, "p b *d"] | None = None,
) -> Float[Array, "b"]:
    """Compute |n_hat - n|^2 at one draw of x_t less its mean for exact n_hat and data N(m, data_std^2 I), d share.

    With probes, the sliced form, by Stein's lemma E[n_hat . n] = sigma E[div n_hat] (arXiv:1905.07088). Either form is
    less a multiple of |n|^2 - d, of mean 0, that takes the noise out where the data are such. data_std = inf gives the
    paper's own estimator; all have the same mean.
    """
    path, d = denoiser.path, x0[0].size
    x, sigma = path.perturb(x0, noise, t), jnp.broadcast_to(path.sigma(t), x0.shape[:1])
    share = share_of_gaussian(path, t, data_std)
    if probes is None:
        square = sum_flat((denoiser.estimate(x, t).noise - noise) ** 2)
        in_square = share
    else:
        guess, divergence = value_and_divergence(lambda x: denoiser.estimate(x, t).noise, x, probes)
        square = sum_flat(guess**2) - 2 * sigma * divergence + d
        in_square = 1 - share
    return square - in_square**2 * (sum_flat(noise**2) - d) - share * d


def offset(denoiser: Denoiser, x0: Images, noise: Images, *, t_min: float, data_std: float) -> Float[Array, "b"]:
    """Compute -log p(x_0 | x_eps) less the entropy of q(x_eps | x_0), at one draw of x_eps.

    With p(x_0 | x_eps) = N(x0_hat, (sigma/alpha)^2 I) a bound on -log p(x_eps) becomes, by Jensen's inequality, one on
    -log p(x_0) (arXiv:2101.09258).
    """
    d, t = x0[0].size, jnp.full(x0.shape[:1], t_min, x0.dtype)
    share = share_of_gaussian(denoiser.path, t, data_std)
    return 0.5 * (excess(denoiser, x0, noise, t=t, data_std=data_std) - d * (1 - share)) - d * jnp.log(
        denoiser.path.alpha(t)
    )


def bound_terms(
    keys: Keys,
    denoiser: Denoiser,
    x0: Images,
    *,
    times: TimeSampler,
    t_min: float,
    t_max: float,
    n_times: int,
    data_std: float,
    form: Form = "dsm",
    probe: Probe = "rademacher",
    n_probes: int = 1,
) -> Terms:
    """Compute an unbiased estimate of every term of the bound, from n_times + 1 network calls."""
    path, shape = denoiser.path, x0.shape[1:]
    time_keys, keys = split(keys)
    noise_keys, probe_keys = split(keys)
    t, weight = jax.vmap(lambda key: times.sample(times.init(), key, n_times))(time_keys)

    def at(draw):
        i, t, weight = draw
        e = None
        if form == "ssm":
            e_keys = jax.vmap(jax.random.fold_in, (0, None))(probe_keys, i)
            e = probes(e_keys, probe, n_probes, shape=shape).astype(x0.dtype)
        c, noise = path.at(t), normal(noise_keys, shape, i).astype(x0.dtype)
        return weight * c.g2 / c.sigma**2 * excess(denoiser, x0, noise, t=t, data_std=data_std, probes=e)

    draws = jnp.arange(n_times), t.T.astype(x0.dtype), weight.T.astype(x0.dtype)
    mean = jnp.mean(jax.lax.map(at, draws), axis=0)
    integral = known_integral(path, x0, t_min, t_max, data_std) + 0.5 * (t_max - t_min) * mean
    last = normal(noise_keys, shape, n_times).astype(x0.dtype)
    return Terms(prior(path, x0, t_max), integral, offset(denoiser, x0, last, t_min=t_min, data_std=data_std))


def open_bound(run: Experiment, options: EvalOptions, workdir: Place) -> Opened:
    """Raise UserError without the dequantiser, or where no density of x_0 has a finite bound."""
    t, refused = options.smallest_time, "which the job bound cannot use"
    if not run.model.path.sigma(jnp.asarray(t)) > 0:
        raise UserError(f"config.eval.smallest_time is {t}, without noise, {refused}; give a later one.")
    if options.dequantizer in dequantisers.AT_A_TIME:
        raise UserError(f"config.eval.dequantizer is {options.dequantizer}, {refused}; allowed: uniform, variational.")
    dequantisers.refuse_missing(run, options, options.dequantizer, workdir=workdir)
    return Opened()


def build(context: Context, opened: None) -> Fold:
    """Compute the bound in bits/dim of the levels, num_repeats times, term by term; bound.npz has every image's."""
    options, run, d = context.options, context.run, math.prod(context.run.image_shape)
    chosen = dequantisers.choose(run, options, options.dequantizer, workdir=context.workdir, begun=context.begun)
    t_min, t_max = options.smallest_time, noisy_end(run.model.path, options.largest_time)
    times = time_sampler(run.model.path, t_min, t_max, importance=options.bound_importance)
    settings = {
        "times": times, "t_min": t_min, "t_max": t_max, "n_times": options.bound_times,
        "data_std": run.model.preconditioning.data_std, "form": options.bound_form, "probe": options.probe,
        "n_probes": options.n_probes,
    }  # fmt: skip

    def terms(params, batch, seeds, dequantise):  # in nats, and the dequantiser's bits/dim
        noise_keys, keys = split(example_keys(run.seed, seeds, Stream.BOUND))
        with jax.default_matmul_precision("highest"):  # likelihoods are float32 whatever the backend prefers
            x0, levels = dequantise(noise_keys, batch["image"])
            nats = bound_terms(keys, context.denoiser(params, batch), x0, **settings)
        return {"levels": jnp.broadcast_to(levels, seeds.shape), **nats._asdict()}, None

    def in_bits(arrays):
        values = {name: bits_per_dim(-arrays[name].astype(np.float64), d, 0.0) for name in Terms._fields}
        return {"bits": sum(values.values()) + arrays["levels"], "levels": arrays["levels"]} | values, {}

    def finish(state):
        write_arrays(context.directory / "bound.npz", **state)
        return {
            **figures(state),
            **context.about(options.num_repeats),
            "form": options.bound_form,
            "importance": options.bound_importance,
            **chosen.said,
            "network_calls_per_image": options.bound_times + 1,
            "smallest_time": t_min,
            "largest_time": t_max,
        } | ({name: settings[name] for name in ("probe", "n_probes")} if options.bound_form == "ssm" else {})

    return per_image(
        context.depending_on(chosen.of), terms, finish, repeats=options.num_repeats, arguments=(chosen.dequantise,),
        summarise=in_bits,
    )  # fmt: skip


def figures(state: dict[str, Float[np.ndarray, "repeats n"]]) -> dict[str, float]:
    """Compute the mean, its standard error over images, and the means of the terms, which add up to the bound's."""
    mean, error = mean_and_error(state["bits"].mean(axis=0))  # repeats of an image are not independent
    means = {name: float(value.mean()) for name, value in state.items()}
    return {
        "bits_per_dim": mean,
        "standard_error": error,
        "prior_bits": means["prior"],
        "integral_bits": means["integral"],
        "offset_bits": means["offset"],
        "dequantizer_bits": means["levels"],
        "bits_without_offset": mean - means["offset"],
    }


READS = (
    "num_repeats", "smallest_time", "largest_time", "dequantizer", "decoder_time", "bound_times",
    "bound_form", "bound_importance", "probe", "n_probes",
)  # fmt: skip
job = Job(build, frozenset({"denoiser", "pixels", "levels", "split"}), READS, open_bound)
