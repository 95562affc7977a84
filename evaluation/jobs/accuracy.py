"""How often a classifier of noisy images is right, by time."""

import jax
import jax.numpy as jnp
import numpy as np

from evaluation.context import Context
from evaluation.fold import Fold
from evaluation.jobs.base import Job
from evaluation.jobs.rounds import per_image
from sampling.base import Stream, example_keys

N_TIMES = 11


def build(context: Context, opened: None) -> Fold:
    """Compute the share of a split's images whose likeliest label is theirs, at eleven times from data to noise.

    Every image has noise of its own, the same at all times.
    """
    run, options = context.run, context.options
    times = np.linspace(options.smallest_time, options.largest_time, N_TIMES)

    def right(params, batch, seeds):
        keys = example_keys(run.seed, seeds, Stream.ACCURACY)
        noise = jax.vmap(lambda key: jax.random.normal(key, run.image_shape))(keys)
        x0 = run.scaling.normalise(batch["image"])

        def at(t):
            x = run.model.path.perturb(x0, noise, jnp.broadcast_to(t, len(x0)))
            return run.loss.log_probs(params, x, t).argmax(axis=1) == batch["label"]

        return {"right": jax.lax.map(at, jnp.asarray(times, x0.dtype)).T}, None

    def finish(state):
        accuracy = state["right"].mean(axis=(0, 1))
        figures = {"accuracy": float(accuracy.mean()), "accuracy_by_time": accuracy.tolist(), "times": times.tolist()}
        return figures | context.about(options.num_repeats)

    return per_image(context, right, finish, repeats=options.num_repeats)


job = Job(build, frozenset({"classifier", "split"}), ("num_repeats", "smallest_time", "largest_time"))
