"""`--mode=encode`: the latents of a data set's images, for a model of latents to be trained on."""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt8

from evaluation.fold import Fold, write_json
from evaluation.fold import run as run_fold
from score_flow.build import Experiment
from score_flow.data.base import FIRST, Source, checksum, sha256_of
from score_flow.data.latents import FACTS
from score_flow.data.pipeline import gather, rounds
from score_flow.options import Config
from score_flow.pretrained import autoencoder_kl
from score_flow.sharding import barrier, batch_sharding, is_main, multiple, place, replicated, to_host
from score_flow.types import UserError


def encode(run: Experiment, config: Config, workdir: Path) -> None:
    """Moments of (latent - shift) scale of every image, in workdir/{train,test}/; resumable, what is done stays.

    With config.data.random_flip the mirrored images follow the others: mirrored latents would not be theirs. Raises
    UserError without an autoencoder or for data that are latents already, and Preempted after SIGTERM.
    """
    folder = Path(config.eval.autoencoder).expanduser()
    if not config.eval.autoencoder:
        raise UserError("--mode=encode needs an autoencoder: give --config.eval.autoencoder=FOLDER.")
    if config.data.source.name == "latents":
        raise UserError("--mode=encode takes images, and config.data.source.name is latents; give their data set.")
    network, params, scale, shift = autoencoder_kl.load(folder)
    params = jax.device_put(params, replicated(run.mesh))
    digest = sha256_of(folder / autoencoder_kl.WEIGHTS)

    @jax.jit
    def moments(params, image: UInt8[Array, "b h w c"], mirrored: Bool[Array, "b"]) -> tuple[Array, Array]:
        x = 2 * (image.astype(jnp.float32) / (run.scaling.levels - 1)) - 1
        x = jnp.where(mirrored[:, None, None, None], x[:, :, ::-1], x)
        with jax.default_matmul_precision("highest"):
            law = network.apply({"params": params}, x, method="encode")
        return (law.mean - shift) * scale, law.std * scale

    for split in ("train", "test"):
        target = workdir / split
        if not (target / FACTS).exists():
            source = run.open_source(split)
            facts = {"name": f"latents of {source.name}", "num_classes": source.num_classes, "data": source.name}
            facts |= {"first": checksum(source, FIRST), "autoencoder_sha256": digest, "scale": scale, "shift": shift}
            encode_split(run, config, source, target, facts, lambda *args: moments(params, *args))
        if is_main():
            print(f"latents: {target}", flush=True)


def encode_split(
    run: Experiment, config: Config, source: Source, target: Path, facts: dict[str, Any], moments: Any
) -> None:
    """One split: a round writes the moments of a batch to their place in the files."""
    mesh, n_images = run.mesh, len(source)
    n, size = n_images * (1 + config.data.random_flip), multiple(mesh, config.eval.batch_size)
    given = jax.ShapeDtypeStruct((1, *source.image_shape), jnp.uint8), jax.ShapeDtypeStruct((1,), bool)
    shape = (n, *jax.eval_shape(moments, *given)[0].shape[1:])
    files = {"mean": (shape, np.float32), "std": (shape, np.float32)}
    if source.num_classes:
        files["label"] = ((n,), np.int32)
    facts |= {"n": n, "latent_shape": shape[1:], "mirrored": bool(config.data.random_flip)}
    directory = target / f"rounds-{facts['first']}-{facts['autoencoder_sha256'][:8]}-{n}-{size}"
    if is_main() and not directory.exists():  # not begun, or of other settings
        shutil.rmtree(target, ignore_errors=True)
        directory.mkdir(parents=True)
        for name, (dims, dtype) in files.items():
            np.lib.format.open_memmap(target / f"{name}.npy", "w+", dtype, dims).flush()
    barrier(f"latents {target}")

    def step(state, round_number):
        indices, mask = rounds(n, size, round_number)
        batch = gather(source, indices % n_images, batch_sharding(mesh))
        mean, std = moments(batch["image"], place(mesh, indices >= n_images))
        arrays = to_host({"mean": mean, "std": std} | ({"label": batch["label"]} if source.num_classes else {}))
        if is_main():
            for name, array in arrays.items():
                file = np.load(target / f"{name}.npy", mmap_mode="r+", allow_pickle=False)
                file[indices[mask]] = array[mask]
                file.flush()
        return state

    def finish(state):
        if is_main():
            write_json(target / FACTS, facts)
        return facts

    run_fold(Fold(-(-n // size), lambda: {"done": np.zeros(1)}, step, finish), directory, f"latents ({target.name})")
    if is_main():
        shutil.rmtree(directory)
    barrier(f"latents {target} done")
