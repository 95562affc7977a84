"""`--mode=encode`: the latents of a data set's images, for a model of latents to be trained on."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt8

from evaluation.modes.converting import convert, is_made, refuse_store
from score_flow.config.options import Config
from score_flow.data.base import FIRST, Source, checksum
from score_flow.data.latents import FACTS
from score_flow.data.pipeline import gather
from score_flow.experiment import Experiment
from score_flow.pretrained import autoencoder_kl
from score_flow.runs import files, places
from score_flow.runs.processes import is_main
from score_flow.runs.sharding import batch_sharding, multiple, place, replicated, to_host
from score_flow.runs.workdir import held
from score_flow.types import UserError

KEYS = ("first", "n", "autoencoder_sha256", "mirrored")


def encode(run: Experiment, config: Config, workdir: places.Place) -> None:
    """Write moments of (latent - shift) scale of every image, in workdir/{train,test}/; resumable, what is done stays.

    With config.data.random_flip the mirrored images follow the others: mirrored latents would not be theirs. Raises
    UserError without an autoencoder or for data that are latents already, and Preempted after SIGTERM.
    """
    refuse_store(workdir, "encode")
    if not config.eval.autoencoder:
        raise UserError("--mode=encode needs an autoencoder: give --config.eval.autoencoder=FOLDER.")
    if config.data.source.name == "latents":
        raise UserError("--mode=encode takes images, and config.data.source.name is latents; give their data set.")
    if run.real:
        raise UserError("--mode=encode takes images of pixel levels, and the data are real numbers.")
    folder = places.local(places.place_of(config.eval.autoencoder))
    network, params, scale, shift = autoencoder_kl.load(folder)
    params = jax.device_put(params, replicated(run.mesh))
    digest = files.sha256_of(autoencoder_kl.weights_of(folder))
    scales, shifts = np.asarray(scale, np.float32), np.asarray(shift, np.float32)

    @jax.jit
    def moments(params, image: UInt8[Array, "b h w c"], mirrored: Bool[Array, "b"]) -> tuple[Array, Array]:
        x = 2 * (image.astype(jnp.float32) / (run.scaling.levels - 1)) - 1
        x = jnp.where(mirrored[:, None, None, None], x[:, :, ::-1], x)
        with jax.default_matmul_precision("highest"):
            law = network.apply({"params": params}, x, method="encode")
        return (law.mean - shifts) * scales, law.std * scales

    with held(workdir, "making of latents"):
        for split in ("train", "test"):
            source, target = run.open_source(split), workdir / split
            facts = {"name": f"latents of {source.name}", "num_classes": source.num_classes, "data": source.name}
            facts |= {"first": checksum(source, FIRST), "autoencoder_sha256": digest, "scale": scale, "shift": shift}
            facts |= {"n": len(source) * (1 + config.data.random_flip), "mirrored": bool(config.data.random_flip)}
            if not is_made(facts, target, FACTS, KEYS, "latents of other data or another autoencoder"):
                encode_split(run, config, source, target, facts, lambda *args: moments(params, *args))
            if is_main():
                print(f"latents: {target}", flush=True)


def encode_split(
    run: Experiment, config: Config, source: Source, target: places.Place, facts: dict[str, Any], moments: Any
) -> None:
    """Encode one split: a round writes the moments of the next images to their place in the files."""
    mesh, n_images = run.mesh, len(source)
    given = jax.ShapeDtypeStruct((1, *source.image_shape), jnp.uint8), jax.ShapeDtypeStruct((1,), bool)
    facts |= {"latent_shape": jax.eval_shape(moments, *given)[0].shape[1:]}

    def make(indices):
        batch = gather(source, indices % n_images, batch_sharding(mesh))
        mean, std = moments(batch["image"], place(mesh, indices >= n_images))
        return to_host({"mean": mean, "std": std} | ({"label": batch["label"]} if source.num_classes else {}))

    convert(facts, target, FACTS, KEYS, size=multiple(mesh, config.eval.batch_size), make=make, what="latents")
