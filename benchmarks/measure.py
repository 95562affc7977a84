"""What the rows share: their flags, timing by turns, the printed line, and a network worth timing."""

import argparse
import datetime
import importlib.metadata
import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from evaluation.weights import checkpoints_of, load_params, which_of
from score_flow.config.loading import load
from score_flow.config.options import Config
from score_flow.errors import UserError
from score_flow.experiment import Experiment
from score_flow.runs.processes import keep_memory
from score_flow.types import Params

MIN_TRIALS = 3
WAKE = 0.5  # random flows then take about as many solver steps as trained ones


class Options(NamedTuple):
    """How long to measure each row, the images in a batch where the config does not say, and a run for its weights."""

    seconds: float
    batch: int
    workdir: Path | None = None


Row = dict[str, Any]
Measurement = Callable[[Config, Options], Iterable[Row]]
Contender = Callable[[], Any]  # does its work once; it is done when the arrays that it returns are ready


class Timing(NamedTuple):
    """Seconds of each trial, trial i of the one right before trial i of the other, and what the two answered."""

    ours: Float[np.ndarray, "n"]
    other: Float[np.ndarray, "n"]
    answers: tuple[Any, Any]

    @property
    def ratios(self) -> Float[np.ndarray, "n"]:
        return self.ours / self.other


def interleave(
    ours: Contender, other: Contender, seconds: float, timer: Callable[[], float] = time.perf_counter
) -> Timing:
    """Both in turn, A B A B ..., for about `seconds` and at least MIN_TRIALS times, after one warm-up of each."""
    answers = jax.block_until_ready((ours(), other()))
    trials, end = [], time.perf_counter() + seconds
    while len(trials) < MIN_TRIALS or time.perf_counter() < end:
        trials.append((clock(ours, timer), clock(other, timer)))
    return Timing(*np.array(trials).T, answers)


def clock(f: Contender, timer: Callable[[], float] = time.perf_counter) -> float:
    """Seconds until the results of f() are ready, by the wall's clock or another."""
    start = timer()
    jax.block_until_ready(f())
    return timer() - start


def row(
    name: str,
    values: Float[np.ndarray, "n"],
    unit: str,
    ratios: Float[np.ndarray, "n"],
    against: str,
    goal: float | None,
    n_devices: int = 1,
    **more: Any,
) -> Row:
    """One line: medians over n trials with their 10th and 90th percentiles; the ratio is taken within each trial."""
    value, p10, p90 = significant(np.percentile(values, (50, 10, 90)), 4)
    ratio, ratio_p10, ratio_p90 = significant(np.percentile(ratios, (50, 10, 90)), 4)
    return {
        "name": name, "value": value, "unit": unit, "ratio": ratio, "against": against, "goal": goal,
        "device": jax.devices()[0].device_kind, "n_devices": n_devices, "n": len(values), "p10": p10, "p90": p90,
        "ratio_p10": ratio_p10, "ratio_p90": ratio_p90, **more,
        **made_by("jax", "jaxlib", "flax", "diffrax"),
    }  # fmt: skip


def made_by(*packages: str) -> Row:
    """The versions of packages, as far as they are installed, and the date: the end of every line."""
    there = {each.name.lower() for each in importlib.metadata.distributions() if each.name}
    versions = {package: importlib.metadata.version(package) for package in packages if package in there}
    return {"versions": versions, "date": datetime.datetime.now(datetime.UTC).date().isoformat()}


def significant(numbers: Float[np.ndarray, "n"], digits: int) -> list[float]:
    """Plain floats that print with so many digits."""
    return [float(f"{number:.{digits}g}") for number in np.atleast_1d(numbers)]


def params_of(run: Experiment, config: Config, options: Options) -> Params:
    """The weights of a trained run, or random ones without it."""
    if not options.workdir:
        return random_params(run)
    [(checkpoints, step)] = checkpoints_of(options.workdir, 0, 0)
    return load_params(run, which_of(config), checkpoints, step)


def random_params(run: Experiment) -> Params:
    """Fresh parameters with random kernels where a network starts with zeros.

    A fresh network answers 0 everywhere: its flow would be a straight line, which any solver crosses in a step.
    """
    rng = np.random.default_rng(run.seed)

    def wake(path: Any, leaf: jax.Array) -> jax.Array:
        if path[-1].key != "kernel" or jnp.max(jnp.abs(leaf)) > 1e-3:
            return leaf
        std = WAKE / math.sqrt(math.prod(leaf.shape[:-1]))
        return jnp.asarray(std * rng.standard_normal(leaf.shape, np.float32))

    return jax.tree.map_with_path(wake, jax.jit(run.init)(jax.random.key(run.seed)))


def main(*measurements: Measurement, argv: list[str] | None = None) -> int:
    """Run measurements with the flags of the command line, print their rows and return the exit code."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Time ours against a yardstick, by turns.")
    parser.add_argument("--config", default="configs/digits.py", help="recipe; --config.key=value as in main.py")
    parser.add_argument("--workdir", type=Path, help="a trained run: its config and weights, in place of random ones")
    parser.add_argument("--seconds", type=float, default=5.0, help=f"for each row (5), {MIN_TRIALS} trials at least")
    parser.add_argument("--batch", type=int, default=16, help="images that a sampler or a likelihood takes (16)")
    parser.add_argument("--out", type=Path, help="a JSON file for the rows, besides printing them")
    flags, overrides = parser.parse_known_args(argv)
    if argv is None:
        keep_memory()  # as main.py does
    rows = []
    try:
        if flags.batch < 1:
            raise UserError(f"--batch is {flags.batch}; it must be at least 1.")
        if flags.out and not flags.out.parent.is_dir():
            raise UserError(f"--out: there is no folder {flags.out.parent}.")
        recipe = str(flags.workdir / "config.json") if flags.workdir else flags.config
        config = load(recipe, overrides)
        for measurement in measurements:
            for measured in measurement(config, Options(flags.seconds, flags.batch, flags.workdir)):
                rows.append(measured | {"config": " ".join([recipe, *overrides])})
                print(json.dumps(rows[-1]), flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if flags.out:
        flags.out.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    return 0
