"""How often a classifier of noisy images is right, by time."""

import jax
import jax.numpy as jnp
import numpy as np

from evaluation.context import Context
from evaluation.fold import Fold
from sampling.base import example_keys
from score_flow.sharding import to_host
from score_flow.types import UserError

STREAM = 6  # of example keys
N_TIMES = 11


def build(context: Context) -> Fold:
    """The share of a split's images whose likeliest label is theirs, at eleven times from data to noise.

    Every image has noise of its own, the same at all times. Raises UserError for a model that is no classifier.
    """
    run, options, n = context.run, context.options, len(context.source)
    if run.loss.produces != "classifier":
        raise UserError("the job accuracy is a classifier's: config.training.objective must be classifier.")
    per_repeat, repeats = context.rounds_of(n), options.num_repeats
    times = np.linspace(options.smallest_time, options.largest_time, N_TIMES)

    def right(params, batch, seeds):
        noise = jax.vmap(lambda key: jax.random.normal(key, run.image_shape))(example_keys(run.seed, seeds, STREAM))
        x0 = run.scaling.normalise(batch["image"])

        def at(t):
            x = run.model.path.perturb(x0, noise, jnp.broadcast_to(t, len(x0)))
            return run.loss.log_probs(params, x, t).argmax(axis=1) == batch["label"]

        return jax.lax.map(at, jnp.asarray(times, x0.dtype))

    compiled = context.compile(right)

    def step(state, round_number):
        _, batch, _, mask, seeds = context.repeated(round_number)
        correct = to_host(compiled(batch, seeds))
        return {"correct": state["correct"] + correct[:, mask].sum(axis=1)}

    def finish(state):
        accuracy = state["correct"] / (n * repeats)
        return {
            "accuracy": float(accuracy.mean()),
            "accuracy_by_time": accuracy.tolist(),
            "times": times.tolist(),
            "n_images": n,
            "repeats": repeats,
            "split": context.source.name,
        }

    return Fold(repeats * per_repeat, lambda: {"correct": np.zeros(N_TIMES, np.int64)}, step, finish)
