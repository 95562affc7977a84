"""What a sampler adds to its network: its time per network call against bare jitted forwards.

Ours is a whole sampler under one jit: Heun's method for the probability-flow ODE, DDIM, Euler for the reverse SDE. The
other is as many calls of the jitted network, each dispatched from Python on the output of the last, with no wait in
between. What the ratio exceeds 1 by are the prior draw, noise, decoding and the solver's arithmetic; it falls below 1
where dispatching costs more than they do. Goals: <= 1.05 on a CPU, <= 1.02 on a GPU.

    python -m benchmarks.sampler --config=configs/digits.py --batch=64
"""

import sys
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from benchmarks.measure import Options, Row, interleave, main, params_of, row
from sampling import ddim, ode, sde
from sampling.base import Sampler, example_keys
from score_flow.build import experiment
from score_flow.config.options import Config
from score_flow.experiment import Experiment
from score_flow.types import Params

SAMPLERS = {
    "sampler_ode_heun": ode.build(method="heun", n_steps=25),
    "sampler_ddim": ddim.build(n_steps=50),
    "sampler_sde_euler": sde.build(method="euler", n_steps=50),
}


def measure(config: Config, options: Options) -> Iterable[Row]:
    """A row for each sampler: ms per network call, and its ratio to a bare forward's."""
    run = experiment(config)
    params = params_of(run, config, options)
    for name, sampler in SAMPLERS.items():
        yield against_forwards(name, sampler, run, params, options)


def against_forwards(name: str, sampler: Sampler, run: Experiment, params: Params, options: Options) -> Row:
    """The row of one sampler."""
    size = options.batch
    condition, t = run.example_condition(size), jnp.full(size, 0.5)
    keys, start = example_keys(run.seed, jnp.arange(size)), jnp.ones((size, *run.image_shape))
    sample = jax.jit(lambda keys, params, condition: sampler(keys, run.model.bind(params, condition), run.image_shape))
    forward = jax.jit(lambda params, x, t, condition: run.model.apply(params, x, t, condition))
    calls = int(sample(keys, params, condition).n_evaluations)

    def forwards() -> jax.Array:
        x = start
        for _ in range(calls):
            x = forward(params, x, t, condition)
        return x

    timing = interleave(lambda: sample(keys, params, condition), forwards, options.seconds)
    goal = 1.05 if jax.default_backend() == "cpu" else 1.02
    return row(
        name, 1e3 * timing.ours / calls, "ms/call", timing.ratios, "as many bare jitted forwards", goal,
        calls=calls, network=type(run.model.network).__name__, batch_size=size,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(measure))
