"""Samplers, kernels, and the one loop that repeats kernels over a time grid."""

import enum
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Integer

from score_flow.model import Denoiser
from score_flow.paths.base import Path
from score_flow.process.grid import Intervals
from score_flow.process.transition import Gaussian
from score_flow.types import Images, Key, Keys, Times

WHERE = "config.sampling"  # the section whose samplers these are, as messages name it


class Samples(NamedTuple):
    """A batch of samples, the batched network calls that it took, and which examples a solver finished.

    calls: those that each example's own steps took, where examples step alone.
    """

    x: Images
    n_evaluations: Int[Array, ""]
    ok: Bool[Array, "b"]
    calls: Int[Array, "b"] | None = None


# (keys (b,), denoiser, shape of one example) -> samples. Every key is folded from a global sample index, so neither the
# batch nor the devices nor an interruption can change a sample.
Sampler = Callable[[Keys, Denoiser, tuple[int, ...]], Samples]

# What a kernel returns: a law, or, where its step looks at the very noise that it adds (the published Langevin
# corrector, SiT's Heun step), noise -> law.
Law = Gaussian | Callable[[Images], Gaussian]


@runtime_checkable
class Kernel(Protocol):
    """One step of a chain: the law of the next state, of which `chain` then draws.

    A predictor arrives at s: chains of it carry the law of x_t to that of x_s, with an error that falls at least as the
    length of their steps. A corrector stays at t: where it moves x by m standard deviations of x_t, m below 1, it
    changes the mean by less than m^4 of them and the variance by less than a share of m^4.

    A file of sampling/kernels/ exports `predictor(**fields) -> Kernel`, `corrector(**fields) -> Kernel`, or both, with
    limits in the fields' annotations and with defaults, of which tests build it. The fields become arguments of the
    sampler predictor_corrector; those that it has itself have its values (t_min, t_max, n_steps, grid, norms, denoise,
    probability_flow, and snr, which says how far a corrector goes). `chain: ChainGiven = None` (sampling.published) is
    the published chain whose steps it is to take; a kernel without is refused where config.sampling.chain names one.
    """

    def __call__(self, denoiser: Denoiser, x: Images, s: Times, t: Times) -> Law:
        """Return the law of the next state, given x at time t, s < t.

        Times are () or (b,); what they decide comes from denoiser.path, and `expand` makes it broadcast over x. The
        denoiser is called once, at (x, t), by one of estimate, x0, score and velocity: samplers count on that.

        A kernel draws nothing, and gives each example a law of its own: `chain` draws the noise, by the examples' keys,
        so that a sample depends on its number alone. mean has the shape and dtype of x; std >= 0 broadcasts over it.

        The law is finite on every path, from t = 1, where alpha may be 0 (g2, drift and log SNR are infinite there;
        estimate, score and velocity are not), to s = 0, where sigma may be 0. alpha(s) and sigma(t) never are.
        """
        ...


class Stream(enum.IntEnum):
    """Keeps different uses of one example's index apart. The numbers never change: every result depends on them."""

    OWN = 0  # of a caller, who has no other
    LIKELIHOOD = 1
    LOSS = 2
    SAMPLES = 3  # one index is one sample, whichever job draws it
    SNAPSHOT = 4
    VLB = 5
    ACCURACY = 6
    BOUND = 7
    ENCODING = 8
    LABELS = 9


def example_keys(seed: int, indices: Integer[Array, "b"], stream: Stream = Stream.OWN) -> Keys:
    """Fold one key for each global example index, of one stream."""
    base: Key = jax.random.fold_in(jax.random.key(seed), stream)
    return jax.vmap(lambda index: jax.random.fold_in(base, index))(indices)


def keys(seed: int, n: int) -> Keys:
    """The keys of the first n samples of a seed."""
    return example_keys(seed, jnp.arange(n))


def normal(keys: Keys, shape: tuple[int, ...], fold: int | Int[Array, ""]) -> Images:
    """Draw standard normal noise of one example's shape for each key, folded with a step number."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, fold), shape))(keys)


def chain(
    keys: Keys,
    denoiser: Denoiser,
    x: Images,
    *,
    kernels: Sequence[Kernel],
    intervals: Intervals,
    denoise: bool = True,
) -> Images:
    """Apply every kernel on each interval (s, t) in turn; denoise: return the last mean, without the last noise.

    What constrains the denoiser constrains the result of each kernel, with noise of its own: the last kernel of an
    interval arrives at s, those before it (correctors) stay at t.
    """
    denoiser, n_calls = denoiser.in_chain(), len(kernels) * len(intervals)

    def visit(carry, row):
        x, _ = carry
        index, (s, t) = row
        for j, kernel in enumerate(kernels):
            fold, law = index * len(kernels) + j, kernel(denoiser, x, s, t)
            noise = normal(keys, x.shape[1:], fold)
            mean, std = law(noise) if callable(law) else law
            arrived = s if j == len(kernels) - 1 else t
            again = normal(keys, x.shape[1:], n_calls + fold)  # compiled away unless it is used
            x, mean = denoiser.constrain(mean + std * noise, mean, again, arrived)
        return (x, mean), None

    intervals = jnp.asarray(intervals, x.dtype)
    (x, mean), _ = jax.lax.scan(visit, (x, x), (jnp.arange(len(intervals)), intervals))
    return mean if denoise else x


def chain_sampler(kernels: Sequence[Kernel], times: Callable[[Path], Intervals], denoise: bool = True) -> Sampler:
    """Return a sampler that draws from the prior where the intervals times(path) begin, then runs `chain`."""

    def sample(keys: Keys, denoiser: Denoiser, shape: tuple[int, ...]) -> Samples:
        intervals = times(denoiser.path)
        prior_keys, noise_keys = split(keys)
        x = denoiser.start(prior_keys, shape, float(intervals[0, 1]))
        x = chain(noise_keys, denoiser, x, kernels=kernels, intervals=intervals, denoise=denoise)
        return Samples(x, jnp.asarray(len(intervals) * len(kernels)), finite(x))

    return sample


def split(keys: Keys) -> tuple[Keys, Keys]:
    """Make two independent keys of each key: the prior's and the steps'."""
    pairs = jax.vmap(jax.random.split)(keys)
    return pairs[:, 0], pairs[:, 1]


def finite(x: Images) -> Bool[Array, "b"]:
    """Say which examples hold only finite numbers."""
    return jnp.all(jnp.isfinite(x.reshape(x.shape[0], -1)), axis=1)
