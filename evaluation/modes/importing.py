"""`--mode=import`: a published checkpoint becomes the first milestone of an ordinary workdir."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from score_flow.config import registries
from score_flow.config.loading import read_json
from score_flow.config.options import Config
from score_flow.errors import UserError, check_choice
from score_flow.experiment import Experiment
from score_flow.model import OWN, Model, count_parameters
from score_flow.pretrained.base import Checkpoint, Project, as_dtype, fill
from score_flow.pretrained.readers.files import read
from score_flow.runs.checkpoint import Checkpoints
from score_flow.runs.files import sha256_of
from score_flow.runs.places import Place, local, place_of
from score_flow.runs.sharding import replicated
from score_flow.runs.workdir import write_config
from score_flow.training.ema import n_averages

# An imported run has one milestone, and its settings are those of another program.
ONE_MILESTONE = {"eval.begin_ckpt": 0, "eval.end_ckpt": 0}


class Published(NamedTuple):
    """A published file: which project's it is, and what it holds."""

    file: Path
    project: str
    source: Project
    checkpoint: Checkpoint

    def settings(self, reference: str | None, recipe: bool) -> dict[str, Any]:
        """Return overrides of our config: the settings of a .json file, or without a recipe those of this file."""
        if reference:
            return self._translated(read_json(local(place_of(reference))))
        if recipe:
            return ONE_MILESTONE
        if self.checkpoint.reference is None:
            said = f"{self.file} does not say how its network was built"
            raise UserError(f"{said}: give --config, or {self._reference()}.")
        return self._translated(self.checkpoint.reference)

    def _translated(self, theirs: dict[str, Any]) -> dict[str, Any]:
        return self.source.translate(theirs) | self.checkpoint.implied | ONE_MILESTONE

    def params(self, model: Model, image_shape: tuple[int, int, int], shapes: PyTree, kind: str) -> PyTree:
        """Return one set of weights, "ema" or "raw", as float32 parameters of our network."""
        check_choice(f"weights of {self.file.name}", kind, self.checkpoint.weights)
        if OWN in shapes:
            raise UserError(
                f"config.training.objective learns {', '.join(shapes[OWN])} beside the network, which "
                f"{self.file.name} has not: import with training.objective = simple."
            )
        try:
            layout = self.source.layout(model, image_shape)
            return as_dtype(fill(shapes, layout, self.checkpoint.weights[kind]), "float32")
        except UserError as error:
            raise UserError(f"{error} If no recipe is of this network, give {self._reference()}.") from error

    def _reference(self) -> str:
        """How to give the settings of its own project."""
        return f"--reference_config=FILE, the settings that it was trained with: {self.source.written}"


def sources() -> dict[str, Project]:
    """List the projects whose checkpoints can be read: the files beside this one that export `build`."""
    return {name: registries.PROJECTS.entry(name, "project")() for name in registries.PROJECTS.names()}


def open_published(file: str) -> Published:
    """Read a file, whichever project it is of; raises UserError when it is of none."""
    path = local(place_of(file))
    tree = read(path)
    for project, source in sources().items():
        if (checkpoint := source.read(tree)) is not None:
            return Published(path, project, source, _named(path, checkpoint))
    held = ", ".join(map(str, list(tree)[:6])) if isinstance(tree, dict) else type(tree).__name__
    raise UserError(f"{path} is no checkpoint of {', '.join(sources())}: it holds {held}.")


def _named(path: Path, checkpoint: Checkpoint) -> Checkpoint:
    """Add what only the name of a bare state_dict says: ema_0.9999_500000.pt, model500000.pt, ..._500K.pt."""
    if checkpoint.step is not None or len(checkpoint.weights) > 1:
        return checkpoint
    raw, thousands = re.fullmatch(r"model(\d+)", path.stem), re.search(r"_(\d+)K", path.stem)
    ema = re.fullmatch(r"ema_[\d.]+_(\d+)", path.stem)
    step = int(thousands[1]) * 1000 if thousands else int(found[1]) if (found := raw or ema) else None
    tensors = next(iter(checkpoint.weights.values()))
    return checkpoint._replace(weights={"raw" if raw else "ema": tensors}, step=step)


def sha256(published: Published) -> str:
    """Hash the file, in a folder the weights'."""
    return sha256_of(published.file if published.file.is_file() else next(published.file.glob("*.safetensors")))


def import_into(workdir: Place, published: Published, run: Experiment, config: Config) -> str:
    """Write the weights as the one milestone of a workdir, what they are in its metadata; returns that in words.

    Where a file holds only one kind of weights, it stands for both; the metadata says so.
    """
    checkpoints = Checkpoints(workdir / "checkpoints")
    if checkpoints.steps():
        raise UserError(f"{workdir} holds checkpoints already: import into another --workdir.")
    shapes = jax.eval_shape(run.init, jax.random.key(0))
    kinds = list(published.checkpoint.weights)
    params = {kind: published.params(run.model, run.image_shape, shapes, kind) for kind in kinds}
    chosen = {kind: kind if kind in params else kinds[0] for kind in ("raw", "ema")}
    on_device = {kind: jax.device_put(tree, replicated(run.mesh)) for kind, tree in params.items()}
    step = published.checkpoint.step or 0
    digest = sha256(published)
    meta = {
        "config": json.loads(config.to_json()),
        "step": step,
        "weights": chosen,
        "imported": {"project": published.project, "file": published.file.name, "sha256": digest, "holds": kinds},
    }
    items = {"params": on_device[chosen["raw"]], "ema": [on_device[chosen["ema"]]] * n_averages(config.model)}
    write_config(workdir, config)
    checkpoints.save(step, items, meta, wait=True)
    checkpoints.close()
    return (
        f"{published.file.name}: {' and '.join(kinds)} weights of {published.project}, "
        f"{count_parameters(shapes):,} parameters of {type(run.model.network).__name__}, step {step}; "
        f"every tensor used once. sha256 {digest}\nnext: python main.py --workdir={workdir} --mode=sample"
    )
