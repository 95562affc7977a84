"""The one way in which samples are drawn, for every job that shows or judges them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from sampling.base import Sampler, Stream, example_keys
from score_flow.config import registries
from score_flow.config.components import Component, with_defaults
from score_flow.errors import NonFinite
from score_flow.experiment import Experiment
from score_flow.runs.sharding import batch_sharding, multiple, place, to_host

# (parameters, guidance, control or None, global indices[, extractor]) -> ({"image": levels, "label": ..., "pool": ...},
# network calls of each, which arrived with finite values), on the host
Drawer = Callable[..., tuple[dict[str, np.ndarray], Int[np.ndarray, "b"], Bool[np.ndarray, "b"]]]


def drawer(run: Experiment, sampler: Sampler, *, stream: Stream = Stream.SAMPLES, keep: Sequence[str] = ()) -> Drawer:
    """Draw the samples of some global indices as pixel levels, with their conditions; compiled once a batch size.

    With an extractor, also their features ("pool", "logits"), in the same program. Only the arrays named in `keep`
    (all) leave the device.
    """

    to_levels = run.pixels  # a missing autoencoder is refused here rather than when the first samples are done

    def draw(params, guide, control, pixels, extractor, seeds):
        condition = guide.in_turn(seeds)
        denoiser = guide(run.model.bind(params, condition))
        if control:
            denoiser = control(denoiser, seeds)
        samples = sampler(example_keys(run.seed, seeds, stream), denoiser, run.image_shape)
        arrays = {"image": pixels(samples.x)} | (condition or {})
        if run.real:
            arrays["value"] = run.scaling.to_data(samples.x)
        if extractor is not None:
            arrays |= extractor.features(arrays["image"]).arrays()
        arrays = {name: array for name, array in arrays.items() if not keep or name in keep}
        calls = samples.n_evaluations if samples.calls is None else samples.calls
        return arrays, jnp.broadcast_to(calls, seeds.shape), samples.ok

    compiled = jax.jit(draw, in_shardings=(None,) * 5 + (batch_sharding(run.mesh),))

    def drawn(params, guide, control, indices, extractor=None):
        seeds = place(run.mesh, indices.astype(np.uint32))
        return to_host(compiled(params, guide, control, to_levels, extractor, seeds))

    return drawn


def described(section: Component) -> str:
    """Name the sampler that a config names, with every argument that it has, given or by default.

    A file of sampling/ may say it better itself, by a function `described` of those arguments.
    """
    arguments = with_defaults(registries.SAMPLERS, section, "config.sampling").arguments
    own = registries.SAMPLERS.beside(section.name, "described", "config.sampling.name")
    said = own(**arguments) if own else " ".join(f"{name}={_said(value)}" for name, value in arguments.items())
    return f"{section.name} {said}".strip()


def _said(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def refuse_failed(indices: Int[np.ndarray, "b"], ok: Bool[np.ndarray, "b"]) -> None:
    """Raise NonFinite, with the first indices, where a wanted sample did not arrive."""
    if not ok.all():
        bad = indices[~ok]
        more = f" and {len(bad) - 8} more" if len(bad) > 8 else ""
        raise NonFinite(
            f"samples {bad[:8].tolist()}{more} are not finite or did not arrive: use more steps or looser tolerances."
        )


def rehearse(run: Experiment, sampler: Sampler, guide: Any, control: Any) -> None:
    """Trace the drawing of a batch, without drawing: what a sampler refuses, its steps and times, is refused here."""
    params = jax.eval_shape(lambda: run.init(jax.random.key(0)))
    seeds = jax.ShapeDtypeStruct((multiple(run.mesh, 1),), np.uint32)

    def draw(params, guide, control, seeds):
        denoiser = guide(run.model.bind(params, guide.in_turn(seeds)))
        denoiser = control(denoiser, seeds) if control else denoiser
        return sampler(example_keys(run.seed, seeds, Stream.SAMPLES), denoiser, run.image_shape)

    jax.eval_shape(draw, params, guide, control, seeds)
