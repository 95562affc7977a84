"""The one way in which samples are drawn, for every job that shows or judges them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Bool, Int

from evaluation.collector import extract
from sampling.base import Sampler, example_keys
from score_flow.build import Experiment
from score_flow.sharding import batch_sharding, place, to_host
from score_flow.types import NonFinite

STREAM = 3  # of example keys: one index is one sample, whichever job draws it

# (parameters, guidance, control or None, global indices[, extractor]) -> ({"image": levels, "label": ..., "pool": ...},
# network calls, which arrived with finite values), on the host
Drawer = Callable[..., tuple[dict[str, np.ndarray], int, Bool[np.ndarray, "b"]]]


def drawer(run: Experiment, sampler: Sampler, stream: int = STREAM, keep: Sequence[str] = ()) -> Drawer:
    """The samples of some global indices as pixel levels, with their conditions; compiled once for each batch size.

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
        if extractor is not None:
            features = extract(extractor, arrays["image"])._asdict()
            arrays |= {name: array for name, array in features.items() if array is not None}
        arrays = {name: array for name, array in arrays.items() if not keep or name in keep}
        return arrays, samples.n_evaluations, samples.ok

    compiled = jax.jit(draw, in_shardings=(None,) * 5 + (batch_sharding(run.mesh),))

    def drawn(params, guide, control, indices, extractor=None):
        seeds = place(run.mesh, indices.astype(np.uint32))
        arrays, calls, ok = to_host(compiled(params, guide, control, to_levels, extractor, seeds))
        return arrays, int(calls), ok

    return drawn


def refuse_failed(indices: Int[np.ndarray, "b"], ok: Bool[np.ndarray, "b"]) -> None:
    """Raise NonFinite, with the first indices, where a wanted sample did not arrive."""
    if not ok.all():
        raise NonFinite(
            f"samples {indices[~ok][:8].tolist()} are not finite or did not arrive: "
            "use more steps or looser tolerances."
        )


def joined(files: Sequence[Path]) -> dict[str, np.ndarray]:
    """The arrays of the files of several rounds, one after the other."""
    parts = [np.load(file, allow_pickle=False) for file in files]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0].files}
