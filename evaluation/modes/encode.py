"""`--mode=encode`: the latents of a data set's images, for a model of latents to be trained on."""

import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt8

from evaluation import fold as folds
from score_flow import FIGURES
from score_flow.config.options import Config
from score_flow.data.base import FIRST, Source, checksum
from score_flow.data.latents import FACTS
from score_flow.data.pipeline import gather
from score_flow.experiment import Experiment
from score_flow.pretrained import autoencoder_kl
from score_flow.runs import files, places
from score_flow.runs.processes import barrier, decided, is_main
from score_flow.runs.sharding import batch_sharding, multiple, place, replicated, to_host
from score_flow.runs.workdir import held
from score_flow.types import UserError


def encode(run: Experiment, config: Config, workdir: places.Place) -> None:
    """Write moments of (latent - shift) scale of every image, in workdir/{train,test}/; resumable, what is done stays.

    With config.data.random_flip the mirrored images follow the others: mirrored latents would not be theirs. Raises
    UserError without an autoencoder or for data that are latents already, and Preempted after SIGTERM.
    """
    if places.on_store(workdir):
        raise UserError(f"--mode=encode writes its files in place: give a --workdir of a disk, got {workdir}.")
    if not config.eval.autoencoder:
        raise UserError("--mode=encode needs an autoencoder: give --config.eval.autoencoder=FOLDER.")
    if config.data.source.name == "latents":
        raise UserError("--mode=encode takes images, and config.data.source.name is latents; give their data set.")
    folder = places.local(places.place_of(config.eval.autoencoder))
    network, params, scale, shift = autoencoder_kl.load(folder)
    params = jax.device_put(params, replicated(run.mesh))
    digest = files.sha256_of(folder / autoencoder_kl.WEIGHTS)

    @jax.jit
    def moments(params, image: UInt8[Array, "b h w c"], mirrored: Bool[Array, "b"]) -> tuple[Array, Array]:
        x = 2 * (image.astype(jnp.float32) / (run.scaling.levels - 1)) - 1
        x = jnp.where(mirrored[:, None, None, None], x[:, :, ::-1], x)
        with jax.default_matmul_precision("highest"):
            law = network.apply({"params": params}, x, method="encode")
        return (law.mean - shift) * scale, law.std * scale

    with held(workdir, "making of latents"):
        for split in ("train", "test"):
            source, target = run.open_source(split), workdir / split
            facts = {"name": f"latents of {source.name}", "num_classes": source.num_classes, "data": source.name}
            facts |= {"first": checksum(source, FIRST), "autoencoder_sha256": digest, "scale": scale, "shift": shift}
            facts |= {"n": len(source) * (1 + config.data.random_flip), "mirrored": bool(config.data.random_flip)}
            if not made_of(facts, target):
                encode_split(run, config, source, target, facts, lambda *args: moments(params, *args))
            if is_main():
                print(f"latents: {target}", flush=True)


def made_of(facts: dict[str, Any], target: places.Place) -> bool:
    """Say whether a split is done; raises UserError where it is done of other images, or otherwise."""
    found = decided(f"latents in {target}", lambda: files.json_at(target / FACTS))
    for name in ("first", "n", "autoencoder_sha256", "mirrored") if found else ():
        if name in found and found[name] != facts[name]:
            raise UserError(
                f"{target} holds latents of other data or another autoencoder ({name} is {found[name]} there and "
                f"{facts[name]} here): give another --workdir."
            )
    return found is not None


def encode_split(
    run: Experiment, config: Config, source: Source, target: places.Place, facts: dict[str, Any], moments: Any
) -> None:
    """Encode one split: a round writes the moments of the next images to their place in the files."""
    mesh, n_images, n = run.mesh, len(source), facts["n"]
    size, directory, rows = multiple(mesh, config.eval.batch_size), target / "rounds", folds.Rows(target)
    given = jax.ShapeDtypeStruct((1, *source.image_shape), jnp.uint8), jax.ShapeDtypeStruct((1,), bool)
    facts |= {"latent_shape": jax.eval_shape(moments, *given)[0].shape[1:]}
    if is_main() and not directory.exists():  # not begun, or by an older program
        shutil.rmtree(target, ignore_errors=True)
    barrier(f"latents {target}")

    def step(state):
        _, indices, mask = folds.next_round(~state["done"], size)
        batch = gather(source, indices % n_images, batch_sharding(mesh))
        mean, std = moments(batch["image"], place(mesh, indices >= n_images))
        arrays = to_host({"mean": mean, "std": std} | ({"label": batch["label"]} if source.num_classes else {}))
        arrays = {name: array[mask] for name, array in arrays.items()}
        rows.write(arrays, (n,), indices[mask], begun=bool(state["done"].any()))
        done = state["done"].copy()
        done[0, indices[mask]] = True
        return {"done": done}

    def finish(state):
        if is_main():
            files.write_json(target / FACTS, facts)
        return facts

    key = {name: facts[name] for name in ("first", "n", "autoencoder_sha256", "mirrored")} | {"version": FIGURES}
    begin = lambda: {"done": np.zeros((1, n), bool)}  # noqa: E731
    fold = folds.Fold(key, lambda state: folds.rounds_left(~state["done"], size), begin, step, finish)
    folds.run(fold, directory, f"latents ({target.name})", restart=True)
    if is_main():
        shutil.rmtree(directory)
    barrier(f"latents {target} done")
