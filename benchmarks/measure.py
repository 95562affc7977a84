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
from ml_collections import ConfigDict

from score_flow.build import Experiment, example_condition
from score_flow.config import load
from score_flow.types import Condition, Params, UserError

MIN_TRIALS = 3
Row = dict[str, Any]
Measurement = Callable[[ConfigDict, float], Iterable[Row]]  # (config, seconds for each row) -> rows
Contender = Callable[[], Any]  # does its work once and returns arrays that are ready when it is done


class Timing(NamedTuple):
    """Seconds of each trial; trial i of the one ran right before trial i of the other."""

    ours: Float[np.ndarray, "n"]
    other: Float[np.ndarray, "n"]

    @property
    def ratios(self) -> Float[np.ndarray, "n"]:
        return self.ours / self.other


def interleave(ours: Contender, other: Contender, seconds: float) -> Timing:
    """Both in turn, A B A B ..., for about `seconds` and at least MIN_TRIALS times, after one warm-up of each."""
    trials, _, end = [], [clock(f) for f in (ours, other)], time.perf_counter() + seconds
    while len(trials) < MIN_TRIALS or time.perf_counter() < end:
        trials.append((clock(ours), clock(other)))
    return Timing(*np.array(trials).T)


def clock(f: Contender) -> float:
    """Seconds until the results of f() are ready."""
    start = time.perf_counter()
    jax.block_until_ready(f())
    return time.perf_counter() - start


def row(
    name: str, values: Float[np.ndarray, "n"], unit: str, ratios: Float[np.ndarray, "n"], against: str, goal: float | None, **more: Any
) -> Row:
    """One line: the median value with its 10th and 90th percentiles over n trials, and the median ratio of a trial."""
    percentiles = {f"p{q}": _round(np.percentile(values, q)) for q in (10, 90)}
    spread = {f"ratio_p{q}": _round(np.percentile(ratios, q)) for q in (10, 90)}
    device = {"device": jax.devices()[0].device_kind, "n_devices": jax.device_count()}
    versions = {package: importlib.metadata.version(package) for package in ("jax", "jaxlib", "flax", "diffrax")}
    return {
        "name": name, "value": _round(np.median(values)), "unit": unit, "ratio": _round(np.median(ratios)), "against": against,
        **device, "n": len(values), **percentiles, **spread, "goal": goal, **more,
        "versions": versions, "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }  # fmt: skip


def _round(number: float) -> float:
    return float(f"{number:.4g}")


def random_params(run: Experiment) -> Params:
    """Fresh parameters of which no kernel is zero.

    A new network answers 0 everywhere: the flow would be a straight line that any solver crosses in a step.
    """

    def wake(path, leaf, key):
        awake = path[-1].key != "kernel" or jnp.max(jnp.abs(leaf)) > 1e-3
        std = 0.2 / math.sqrt(math.prod(leaf.shape[:-1]))
        return jnp.where(awake, leaf, std * jax.random.normal(key, leaf.shape))

    @jax.jit
    def init(key):
        params = run.model.init(key, (1, *run.image_shape), example_condition(1, run.labelled))
        leaves, tree = jax.tree.flatten_with_path(params)
        keys = jax.random.split(jax.random.fold_in(key, 1), len(leaves))
        return tree.unflatten([wake(path, leaf, key) for (path, leaf), key in zip(leaves, keys, strict=True)])

    return init(jax.random.key(run.seed))


def forward(run: Experiment) -> Callable[..., Any]:
    """The bare network under jit: (params, x, t, condition) -> raw output."""
    return jax.jit(lambda params, x, t, condition: run.model.apply(params, x, t, condition))


def main(*measurements: Measurement, argv: list[str] | None = None) -> int:
    """Run measurements with the flags of the command line, print their rows and return the exit code."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description="One JSON line a row; see the file's first lines.")
    parser.add_argument("--config", default="configs/digits.py", help="recipe, with --config.key=value as in main.py")
    parser.add_argument("--seconds", type=float, default=8.0, help=f"for each row (default: 8); {MIN_TRIALS} trials at least")
    parser.add_argument("--out", type=Path, help="a JSON file for the rows, besides printing them")
    options, overrides = parser.parse_known_args(argv)
    rows = []
    try:
        config = load(options.config, overrides)
        for measurement in measurements:
            for row in measurement(config, options.seconds):
                rows.append(row | {"config": " ".join([options.config, *overrides])})
                print(json.dumps(rows[-1]), flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.out:
        options.out.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    return 0
