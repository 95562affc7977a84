"""The training loss on a whole split, by time."""

import jax
import jax.numpy as jnp
import numpy as np

from evaluation.context import Context
from evaluation.fold import Fold
from sampling.base import example_keys
from score_flow.record import mean_and_error
from score_flow.sharding import to_host

STREAM = 2  # of example keys
N_BINS = 10


def build(context: Context) -> Fold:
    """Mean loss with its standard error, and in ten bins of time; times and noise belong to the image."""
    run, options, n = context.run, context.options, len(context.source)
    per_repeat, repeats = context.rounds_of(n), options.num_repeats

    def losses(params, batch, seeds):
        keys = jax.vmap(lambda key: jax.random.split(key, 3))(example_keys(run.seed, seeds, STREAM))
        loss = run.loss
        t, weight = jax.vmap(lambda key: loss.times.sample(loss.times.init(), key, 1))(keys[:, 0])
        noise = jax.vmap(lambda key: jax.random.normal(key, run.image_shape))(keys[:, 1])
        x0 = run.to_model(batch["image"], keys[:, 2])
        t = t[:, 0]
        return weight[:, 0] * loss.at(params, x0, noise, t, run.condition(batch)), jnp.asarray(t)

    compiled = context.compile(losses)

    def init():
        return {"loss": np.zeros((repeats, n)), "t": np.zeros((repeats, n))}

    def step(state, round_number):
        repeat, batch, indices, mask, seeds = context.repeated(round_number)
        values, t = to_host(compiled(batch, seeds))
        state = {name: value.copy() for name, value in state.items()}
        state["loss"][repeat, indices[mask]], state["t"][repeat, indices[mask]] = values[mask], t[mask]
        return state

    def finish(state):
        mean, error = mean_and_error(state["loss"].mean(axis=0))
        bins = np.clip((state["t"] * N_BINS).astype(int), 0, N_BINS - 1)
        by_time = [float(state["loss"][bins == i].mean()) if (bins == i).any() else None for i in range(N_BINS)]
        return {
            "loss": mean,
            "standard_error": error,
            "n_images": n,
            "repeats": repeats,
            "split": context.source.name,
            "by_time": by_time,
        }

    return Fold(repeats * per_repeat, init, step, finish)
