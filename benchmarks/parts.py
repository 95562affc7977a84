"""What benchmarks/gpu.py measures: each a generator of rows from a case of benchmarks/compiled.py and some seconds.

`tiny` takes a case's network so small that a CPU does it, to try the measurements themselves.
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from benchmarks import loader
from benchmarks.compiled import CASES, ONE_STEP
from benchmarks.measure import Options, random_params, significant
from benchmarks.train_step import carry, repeat
from evaluation.metrics.extractors.inception import Inception
from evaluation.plan.chips import HERE, chip_of, machine
from evaluation.plan.compiling import Step, example, step_of, useful_flops
from evaluation.plan.flops import flops
from sampling import ode
from sampling.base import example_keys
from sampling.flow import Solver
from sampling.guidance import guide
from sampling.likelihood import log_likelihood
from score_flow.config.loading import load
from score_flow.experiment import Experiment
from score_flow.networks.inception import N_FEATURES, InceptionV3
from score_flow.training.ema import n_averages
from score_flow.training.run import holding, initial_state

TINY = {
    "sit_xl_2": {"network.width": 32, "network.depth": 2, "network.num_heads": 2, "training.batch_size": 2},
    "sit_b_2": {"network.width": 32, "network.depth": 1, "network.num_heads": 2, "training.batch_size": 2},
    "ncsnpp_cifar10": {"network.width": 8, "network.num_res_blocks": 1, "training.batch_size": 2},
    "adm_64": {"network.width": 32, "network.num_res_blocks": 1, "training.batch_size": 2},
}
SAMPLED, STEPS, SCALE = 64, 50, 1.5  # images in a batch, network calls, guidance
Row = dict[str, Any]


def settled(case: str, tiny: bool) -> Any:
    """The config of a case, with its network small if tiny."""
    recipe, settings = CASES[case].recipe, CASES[case].settings
    return load(recipe, [], ONE_STEP | settings | (TINY[case] if tiny else {}))


def times_of(f: Callable[[], Any], seconds: float) -> tuple[float, Float[np.ndarray, "n"]]:
    """Seconds to compile and run f() once, and of each of as many calls as fit; one at least, each waited for."""
    start = time.perf_counter()
    jax.block_until_ready(f())
    first, taken, end = time.perf_counter() - start, [], time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        start = time.perf_counter()
        jax.block_until_ready(f())
        taken.append(time.perf_counter() - start)
    return first, np.array(taken)


def rate(value: float, unit: str, taken: Float[np.ndarray, "n"], useful: float | None, first: float, **more) -> Row:
    """A row: how much of a unit a second at the median of some times, and the share of the peak that its FLOPs take."""
    seconds, chip = float(np.median(taken)), chip_of(jax.devices()[0].device_kind)
    [found, p10, p90] = significant(value / np.percentile(taken, (50, 90, 10)), 4)
    share = None if chip is None or useful is None else round(useful / (seconds * chip.peak * jax.device_count()), 4)
    memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "value": found, "unit": unit, "p10": p10, "p90": p90, "n": len(taken), "mfu": share, "flops": useful,
        "peak_flops_per_second": chip and chip.peak, "peak_memory": memory, "first_seconds": round(first, 1), **more,
    }  # fmt: skip


def train(case: str, seconds: float, tiny: bool) -> Iterator[Row]:
    """Images a second of the train step, ten steps at a time, as training does not wait between steps."""
    config = settled(case, tiny)
    step = step_of(config, machine(HERE))
    n, size = 10, config.training.batch_size
    first, taken = times_of(repeat(carry(step.program, fresh(step, config), random_batch(step)), n), seconds)
    yield rate(n * size, "images/s", taken, n * useful_flops(step), first, batch_size=size, dtype="bfloat16")


def fresh(step: Step, config: Any) -> Any:
    """The state that training begins in, on its devices and in the form that its program takes."""
    begin = functools.partial(initial_state, step.run, n_averages(config.model), step.run.loss)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example(step.run))
    hold = holding(step.run, config, jax.eval_shape(begin, zeros))
    return jax.jit(lambda first: hold(begin(first)), out_shardings=step.shardings)(zeros)


def random_batch(step: Step) -> Any:
    """Images, or moments of latents, and labels as a step takes them."""
    rng = np.random.default_rng(0)
    draw = {"u": lambda x: rng.integers(0, 256, x.shape, np.uint8), "i": lambda x: rng.integers(0, 2, x.shape)}
    noise = lambda x: rng.standard_normal(x.shape, np.float32)  # noqa: E731
    return {name: jnp.asarray(draw.get(x.dtype.kind, noise)(x), x.dtype) for name, x in step.batch.items()}


def sampling(case: str, seconds: float, tiny: bool) -> Iterator[Row]:
    """Images a second of guided samples by Euler's method, each of whose calls is one of a doubled batch."""
    run, params, size = opened(case, tiny)
    sampler, null = ode.build(method="euler", n_steps=2 if tiny else STEPS), run.conditioning.num_classes
    wrap = guide(null, run.image_shape[-1], (run.scaling.low, run.scaling.high), scale=SCALE)
    keys, labels = example_keys(0, jnp.arange(size)), jnp.zeros(size, jnp.int32)

    @jax.jit
    def program(params, keys, labels):
        return sampler(keys, wrap(run.model.bind(params, {"label": labels})), run.image_shape)

    first, taken = times_of(lambda: program(params, keys, labels), seconds)
    calls = int(program(params, keys, labels).n_evaluations)
    useful = calls * a_call(run, params, jnp.zeros((size, *run.image_shape)), labels, wrap)
    per_call = significant(1e3 * np.median(taken, keepdims=True) / calls, 4)[0]
    yield rate(size, "images/s", taken, useful, first, batch_size=size, calls=calls, scale=SCALE, ms_per_call=per_call)


def likelihood(case: str, seconds: float, tiny: bool) -> Iterator[Row]:
    """Images a second of log p at the tolerance of eval.solver, and how many calls it takes."""
    run, params, size = opened(case, tiny)
    keys, labels = example_keys(0, jnp.arange(size)), jnp.zeros(size, jnp.int32)
    x0 = 0.5 * jax.random.normal(jax.random.key(0), (size, *run.image_shape))

    @jax.jit
    def program(params, keys, labels, x0):
        return log_likelihood(keys, run.model.bind(params, {"label": labels}), x0, solver=Solver())

    first, taken = times_of(lambda: program(params, keys, labels, x0), seconds)
    answer = program(params, keys, labels, x0)
    calls = int(answer.n_evaluations)
    useful = 2.0 * calls * a_call(run, params, x0, labels)  # and as much for its derivative along a probe
    arrived = int(jnp.sum(answer.ok))
    yield rate(size, "images/s", taken, useful, first, batch_size=size, calls=calls, arrived=arrived)


def opened(case: str, tiny: bool) -> tuple[Experiment, Any, int]:
    """The run of a case, random weights that answer with something, and the images in a batch."""
    run = step_of(settled(case, tiny), machine(HERE)).run
    return run, random_params(run), 2 if tiny else SAMPLED


def a_call(run: Experiment, params: Any, x: Any, labels: Any, wrap: Callable = lambda denoiser: denoiser) -> int:
    """FLOPs of a call of the network."""

    def velocity(params, x, labels):
        return wrap(run.model.bind(params, {"label": labels})).velocity(x, jnp.full(len(x), 0.5))

    return flops(velocity, params, x, labels)


def features(case: str, seconds: float, tiny: bool) -> Iterator[Row]:
    """Images a second of InceptionV3's features, with random weights, of 256 x 256 pixels."""
    size, dtype, side = (2, "float32", 32) if tiny else (128, "float32", 256)
    network = InceptionV3(dtype)
    params = jax.jit(lambda key: network.init(key, jnp.zeros((1, side, side, 3))))(jax.random.key(0))["params"]
    extractor = Inception("random weights", N_FEATURES, params, network, 256, False)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (size, side, side, 3), np.uint8))
    program = jax.jit(lambda extractor, images: extractor(images).pool)
    first, taken = times_of(lambda: program(extractor, images), seconds)
    useful = flops(lambda images: extractor(images).pool, images)
    yield rate(size, "images/s", taken, useful, first, batch_size=size, dtype=dtype, shape=list(images.shape[1:]))


def read(case: str, seconds: float, tiny: bool) -> Iterator[Row]:
    """Images a second that a core reads, of each kind of source."""
    each = seconds / len(loader.SOURCES)
    for row in loader.measure(None, Options(0.0 if tiny else each, 8 if tiny else 64)):
        yield {"source": row["name"]} | {name: row[name] for name in ("value", "unit", "p10", "p90", "n", "shape")}


MEASURES = {"train": train, "sampling": sampling, "likelihood": likelihood, "features": features, "loader": read}
