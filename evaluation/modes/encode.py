"""`--mode=encode`: latents of a data set's images, for a model of latents, and features of their patches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, UInt8

from evaluation.metrics.extractors.base import colours
from evaluation.modes.converting import convert, is_made, refuse_store
from score_flow.config.options import Config
from score_flow.data import latents, packed
from score_flow.data.base import FIRST, Examples, Source, checksum
from score_flow.data.features import FEATURES
from score_flow.data.pipeline import gather
from score_flow.errors import NonFinite, UserError
from score_flow.experiment import Experiment
from score_flow.networks import dinov2 as encoders
from score_flow.pretrained import autoencoder_kl, dinov2
from score_flow.runs import files, places
from score_flow.runs.processes import is_main
from score_flow.runs.sharding import batch_sharding, multiple, replicated, to_host
from score_flow.runs.workdir import held

KEYS = ("first", "n", "autoencoder_sha256", "scale", "shift", "centered", "mirrored", FEATURES)
OF_IMAGES = ("first", "n", "decoding", FEATURES)


Arrays = Callable[[UInt8[Array, "b h w c"]], dict[str, Array]]


class Part(NamedTuple):
    """A network that makes arrays of images, {name: (b, ...)}; facts: what it is."""

    of: Callable[[PyTree, UInt8[Array, "b h w c"]], dict[str, Array]]
    params: PyTree
    facts: dict[str, Any]


class Mirrored:
    """The examples of a source, and then their mirror images."""

    def __init__(self, whole: Source):
        self._whole = whole

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def __len__(self) -> int:
        return 2 * len(self._whole)

    def read(self, indices: np.ndarray) -> Examples:
        n = len(self._whole)
        examples = self._whole.read(indices % n)
        turned = (indices >= n)[:, None, None, None]
        return examples | {"image": np.where(turned, examples["image"][:, :, ::-1], examples["image"])}


def encode(run: Experiment, config: Config, workdir: places.Place) -> None:
    """Write moments of (latent - shift) scale of every image, in workdir/{train,test}/; resumable, what is done stays.

    With config.eval.encoder the features of its patches stand beside them; without an autoencoder, beside the images
    themselves, as `--mode=pack` leaves these. With config.data.random_flip the mirrored images follow the others:
    mirrored latents would not be theirs. Raises UserError without a network or for data that are latents already, and
    Preempted after SIGTERM.
    """
    refuse_store(workdir, "encode")
    networks = {"autoencoder": moments, "encoder": patches}
    networks = {name: open_ for name, open_ in networks.items() if getattr(config.eval, name)}
    if not networks:
        raise UserError(
            "--mode=encode needs an autoencoder: give --config.eval.autoencoder=FOLDER, or --config.eval.encoder=FILE."
        )
    if config.data.source.name == "latents":
        raise UserError("--mode=encode takes images, and config.data.source.name is latents; give their data set.")
    if run.real:
        raise UserError("--mode=encode takes images of pixel levels, and the data are real numbers.")
    parts = {name: open_(run, config) for name, open_ in networks.items()}
    arrays = program(run, parts)
    with held(workdir, "making of latents"):
        for split in ("train", "test"):
            encode_split(run, config, parts, arrays, run.open_source(split), workdir / split)


def moments(run: Experiment, config: Config) -> Part:
    """Open the autoencoder."""
    folder = places.local(places.place_of(config.eval.autoencoder))
    network, params, scale, shift = autoencoder_kl.load(folder)
    scales, shifts = np.asarray(scale, np.float32), np.asarray(shift, np.float32)

    def of(params: PyTree, image: UInt8[Array, "b h w c"]) -> dict[str, Array]:
        x = 2 * (image.astype(jnp.float32) / (run.scaling.levels - 1)) - 1
        law = network.apply({"params": params}, x, method="encode")
        return {"mean": (law.mean - shifts) * scales, "std": law.std * scales}

    digest = files.sha256_of(autoencoder_kl.weights_of(folder))
    said = {"scale": np.asarray(scale).tolist(), "shift": np.asarray(shift).tolist(), "centered": network.centered}
    return Part(of, params, {"autoencoder_sha256": digest} | said)


def patches(run: Experiment, config: Config) -> Part:
    """Open the encoder: one of its patches for encoder_stride pixels, resized to 14 as REPA does (bicubic, not wider).

    Raises UserError where these pixels do not divide an image.
    """
    (h, w, _), stride, side = run.image_shape, config.eval.encoder_stride, encoders.PATCH
    if h % stride or w % stride:
        raise UserError(f"config.eval.encoder_stride is {stride}; it must divide the images' sides, {h} x {w}.")
    file = places.local(places.place_of(config.eval.encoder))
    network, params, name = dinov2.load(file)
    rows, columns = encoders.cubic(h, side * h // stride), encoders.cubic(w, side * w // stride)

    def of(params: PyTree, image: UInt8[Array, "b h w c"]) -> dict[str, Array]:
        x = encoders.resized(colours(image, run.scaling.levels, name), rows, columns)
        tokens = network.apply({"params": params}, encoders.normalised(x), method="tokens")
        return {FEATURES: tokens.patches.astype(jnp.float16)}

    facts = {"encoder": name, "sha256": files.sha256_of(file), "stride": stride}
    return Part(of, params, {FEATURES: facts | {"patches": h * w // stride**2, "channels": network.width}})


def program(run: Experiment, parts: dict[str, Part]) -> Arrays:
    """Return what makes the arrays of all networks, compiled once for both splits."""
    params = jax.device_put({name: part.params for name, part in parts.items()}, replicated(run.mesh))

    @jax.jit
    def arrays(params: PyTree, image: UInt8[Array, "b h w c"]) -> dict[str, Array]:
        with jax.default_matmul_precision("highest"):
            found = [part.of(params[name], image) for name, part in parts.items()]
        return {name: array for each in found for name, array in each.items()}

    return lambda image: arrays(params, image)


def encode_split(
    run: Experiment, config: Config, parts: dict[str, Part], arrays: Arrays, source: Source, target: places.Place
) -> None:
    """Encode one split: a round writes the arrays of the next images to their place in the files."""
    mesh, all_of = run.mesh, Mirrored(source) if config.data.random_flip else source

    def make(indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = gather(all_of, indices, batch_sharding(mesh))
        kept = [name for name in ("image", "label") if name in batch and (of_images or name == "label")]
        made = to_host(arrays(batch["image"]) | {name: batch[name] for name in kept})
        if not all(np.isfinite(array).all() for array in made.values()):
            raise NonFinite(f"{target}: what the networks make of images {indices[:8].tolist()}, ... is not finite.")
        return made

    facts, of_images = {FEATURES: None}, "autoencoder" not in parts
    for part in parts.values():
        facts |= part.facts
    if of_images:
        facts, keys, file, what = packed.described(all_of) | facts, OF_IMAGES, packed.FACTS, "images and features"
    else:
        keys, file, what = KEYS, latents.FACTS, "latents"
        facts |= {"name": f"latents of {source.name}", "num_classes": source.num_classes, "data": source.name}
        facts |= {"first": checksum(source, FIRST), "n": len(all_of), "mirrored": bool(config.data.random_flip)}
        given = jax.ShapeDtypeStruct((1, *source.image_shape), jnp.uint8)
        facts |= {"latent_shape": jax.eval_shape(arrays, given)["mean"].shape[1:]}
    if not is_made(facts, target, file, keys, f"{what} of other data or another network"):
        convert(facts, target, file, keys, size=multiple(mesh, config.eval.batch_size), make=make, what=what)
    if is_main():
        print(f"{what}: {target}", flush=True)
