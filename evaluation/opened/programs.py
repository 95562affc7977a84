"""What is compiled of a run for arrays that a caller gives; parameters are arguments, and no program's constants."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax

from evaluation import dequantisers
from evaluation.context import build_guide
from evaluation.jobs import bits
from evaluation.jobs.base import open_solver
from sampling import encoding
from sampling.base import Sampler
from sampling.building import build_sampler
from score_flow.config.loading import with_settings
from score_flow.config.options import Config, EvalOptions
from score_flow.data.levels import middles, to_model
from score_flow.experiment import Experiment
from score_flow.runs.places import Place

Settings = tuple  # of a section of the config, ((name, value), ...): what a cache can know again


class Flow(NamedTuple):
    """The probability flow of a model, compiled; each returns which examples arrived beside what it computes.

    encode: (parameters, {"image": levels[, "label"]}) -> z. decode: (parameters, pixels, {"z": z[, "label"]}) ->
    levels.
    """

    encode: Callable
    decode: Callable


class Programs:
    """The programs of a run, each made when it is first asked for, and kept while few are newer."""

    def __init__(self, run: Experiment, config: Config, workdir: Place):
        self.guide = functools.lru_cache(8)(lambda settings: build_guide(run, changed("guidance", settings)))
        self.draw = functools.lru_cache(4)(lambda sampler: draw(run, sampler or build_sampler(config)))
        self.flow = functools.lru_cache(4)(lambda solver: flow(run, changed("eval.solver", solver).eval))
        self.score = score(run)

        @functools.lru_cache(4)
        def figures(solver: Settings, seed: int) -> Callable:
            seeded = dataclasses.replace(run, seed=seed)
            return likelihood(seeded, changed("eval.solver", solver).eval, workdir)

        def changed(section: str, settings: Settings) -> Config:
            return with_settings(config, {f"{section}.{name}": value for name, value in settings})

        self.likelihood = figures


def draw(run: Experiment, sampler: Sampler) -> Callable:
    """(parameters, guidance, control or None, pixels, keys, numbers) -> levels of the samples, which arrived."""

    @jax.jit
    def draw(params, guide, control, pixels, keys, numbers):
        denoiser = guide(run.model.bind(params, guide.in_turn(numbers)))
        samples = sampler(keys, control(denoiser, numbers) if control else denoiser, run.image_shape)
        return pixels(samples.x), samples.ok

    return draw


def flow(run: Experiment, options: EvalOptions) -> Flow:
    """Compile the flow as config.eval solves it; raises UserError where its solver cannot."""
    solver = open_solver(run, options, options.smallest_time)
    times = {"t_min": options.smallest_time, "t_max": options.largest_time}

    @jax.jit
    def encode(params, batch):
        x0 = to_model(run.scaling, run.dequantised, batch["image"], middles)
        with jax.default_matmul_precision("highest"):  # as likelihoods are computed
            z, stats = encoding.encode(run.model.bind(params, run.condition(batch)), x0, solver, **times)
        return z, stats.ok

    @jax.jit
    def decode(params, pixels, batch):
        with jax.default_matmul_precision("highest"):
            x, stats = encoding.decode(run.model.bind(params, run.condition(batch)), batch["z"], solver, **times)
        return pixels(x), stats.ok

    return Flow(encode, decode)


def likelihood(run: Experiment, options: EvalOptions, workdir: Place) -> Callable:
    """(parameters, batch, numbers of its images) -> bits/dim of each, which arrived; as the job likelihood computes.

    Raises UserError where the dequantiser of eval.dequantizer is missing, or the solver cannot solve.
    """
    name, solver = bits.open_for("", run, options, workdir).value
    dequantise = dequantisers.choose(run, options, name, workdir=workdir, begun={}).dequantise
    compiled = jax.jit(bits.bits_of(run, options, name, solver))

    def figures(params, batch, numbers):
        found, ok = compiled(params, batch, numbers, dequantise)
        return found["bits"], ok

    return figures


def score(run: Experiment) -> Callable:
    """(parameters, x, t, condition) -> grad log p_t(x)."""
    return jax.jit(lambda params, x, t, condition: run.model.bind(params, condition).score(x, t))
