"""The training loss on a whole split, by time."""

import jax
import numpy as np

from evaluation.context import Context, taught
from evaluation.fold import Fold
from evaluation.jobs.base import Job
from evaluation.jobs.rounds import per_image
from evaluation.report import page
from sampling.base import Stream, example_keys
from score_flow.numerics import mean_and_error

N_BINS = 10


def build(context: Context, opened: None) -> Fold:
    """Compute mean loss with its standard error, and in ten bins of time; times and noise belong to the image."""
    run, repeats = taught(context.run), context.options.num_repeats

    def losses(params, batch, seeds):
        keys = jax.vmap(lambda key: jax.random.split(key, 3))(example_keys(run.seed, seeds, Stream.LOSS))
        times = run.loss.times
        t, weight = jax.vmap(lambda key: times.sample(times.init(), key, 1))(keys[:, 0])
        noise = jax.vmap(lambda key: jax.random.normal(key, run.image_shape))(keys[:, 1])
        x0, t = run.to_model(batch["image"], keys[:, 2]), t[:, 0]
        return {"loss": weight[:, 0] * run.loss.at(params, x0, noise, t, run.condition(batch)), "t": t}, None

    def finish(state):
        mean, error = mean_and_error(state["loss"].mean(axis=0))
        bins = np.clip((state["t"] * N_BINS).astype(int), 0, N_BINS - 1)
        by_time = [float(state["loss"][bins == i].mean()) if (bins == i).any() else None for i in range(N_BINS)]
        return {"loss": mean, "standard_error": error, **context.about(repeats), "by_time": by_time}

    return per_image(context, losses, finish, repeats=repeats)


def section(record: page.Record) -> str:
    """Show bars of the loss by time."""
    from evaluation.report import figures  # matplotlib: mistakes are answered without waiting for it

    result = record.results["loss"]
    if not any(value is not None for value in result.get("by_time", [])):
        return ""
    mean = (
        f": mean {result['loss']:.4g} {page.error_of(result)} over {page.images_of(result)}" if "loss" in result else ""
    )
    bars = page.picture(
        figures.loss_by_time(result["by_time"]), "Bars of the mean loss in bins of time", f"Loss by time{mean}"
    )
    return page.section("Loss", bars)


job = Job(build, frozenset({"objective", "split"}), ("num_repeats",), section=section, place=60)
