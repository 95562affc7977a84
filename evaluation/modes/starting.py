"""`training.init`: a new run begins with the weights of another run, or of a published file."""

import dataclasses
import functools
import re
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from evaluation.modes.importing import Published, open_published, sha256
from evaluation.weights import Which, state_at, weights_of, without_projector
from score_flow.build import build_model
from score_flow.config import registries
from score_flow.config.components import Component, with_defaults
from score_flow.config.loading import changes, read_json, with_settings, within
from score_flow.config.options import Config
from score_flow.data.conditioning import Conditioning
from score_flow.errors import NonFinite, UserError
from score_flow.experiment import Experiment
from score_flow.model import Model
from score_flow.runs import places
from score_flow.runs.checkpoint import differing, named, placed
from score_flow.runs.processes import is_main
from score_flow.runs.sharding import to_host
from score_flow.training.accepting import MEANING, Change, accepted, as_saved, short
from score_flow.training.starting import Beginning, Start, fitted
from score_flow.training.steps import all_finite


def beginning(run: Experiment, config: Config) -> Beginning | None:
    """Return what a new run begins with, by config.training.init; None where that names nothing.

    Nothing is opened before a run begins: one that goes on needs it no more.
    """
    asked = config.training.init
    return functools.partial(_start, run, config, asked) if asked else None


def _start(run: Experiment, config: Config, asked: str, wanted: PyTree) -> Start:
    """Load the weights that fit the parameters; raises UserError in a line for a source that does not."""
    folder, step = _read(asked)
    where = f"config.training.init = {asked}"
    start = _of_run(run, config, folder, step, where, wanted) if (folder / "config.json").is_file() else None
    start = start or _of_file(run, config, folder, where, wanted)
    return start._replace(facts={"asked": asked} | start.facts)


def _read(asked: str) -> tuple[places.Place, int | None]:
    """(the folder or file, the step) of WORKDIR[:STEP] or of a file; raises UserError where nothing is."""
    named = re.fullmatch(r"(.+):(\d+)", asked)
    for text, step in ((asked, None), *([(named[1], int(named[2]))] if named else [])):
        place = places.place_of(text)
        if (place / "config.json").is_file() or (step is None and place.exists()):
            return place, step
    raise UserError(f"config.training.init is {asked!r}: there is no run and no file; give WORKDIR[:STEP] or a FILE.")


# ---- another run


def _of_run(
    run: Experiment, config: Config, workdir: places.Place, step: int | None, where: str, wanted: PyTree
) -> Start:
    """Load the first average of a run's checkpoint."""
    checkpoints, step = state_at(workdir, step)
    meta = checkpoints.meta(step)
    theirs = meta.get("config") or read_json(places.local(workdir / "config.json"))
    _refuse_other_meaning(theirs, config, where)
    own, other = (tree["training"].get("objective", "simple") for tree in (as_saved(config), theirs))
    if (own == "classifier") != (other == "classifier"):
        raise UserError(f"{where} was trained with training.objective = {other}, this run is with {own}: give another.")
    _say_classes(run, meta.get("data") or {}, where)
    which = weights_of(meta, Which(0, 0.0, as_saved(config)))
    shapes = checkpoints.layout(step, "ema")
    of_classes = classes_of(run, config) | spans_of(run, config)
    fitted(shapes[0], wanted, of_classes, where)  # before anything is read
    differ = differing(named(shapes[0]), here := named(wanted))
    at = {name: leaf.sharding for name, leaf in here.items() if name not in differ}
    params = checkpoints.restore(step, {"ema": [placed(tree, at, run.mesh) for tree in shapes]})["ema"][0]
    if not to_host(all_finite(params)):
        raise NonFinite(f"the weights in {checkpoints.directory / str(step)} are not finite: train again.")
    found, drawn = fitted(params, wanted, of_classes, "")
    facts = {"source": str(workdir), "step": step, "weights": which, "checkpoint": checkpoints.digest(step)}
    return Start(found, facts | {"drawn": drawn})


def _say_classes(run: Experiment, theirs: dict[str, Any], where: str) -> None:
    """Say where as many classes are called otherwise: the embedding of a label goes to another class."""
    ours = run.data_facts
    names, other = ours.get("classes"), theirs.get("classes")
    if is_main() and ours["labelled"] and names and other and len(names) == len(other) and names != other:
        told = ", ".join(f"{a} for {b}" for a, b in list(zip(other, names, strict=True))[:3] if a != b)
        print(f"{where}: its classes have other names; label by label they stand for these ({told}, ...)", flush=True)


# ---- a published file


def _of_file(run: Experiment, config: Config, file: places.Place, where: str, wanted: PyTree) -> Start:
    """Load the averaged weights of a published file, or the only ones that it has."""
    published = open_published(str(file))
    kinds = published.checkpoint.weights
    kind = "ema" if "ema" in kinds else next(iter(kinds))
    if (theirs := _settings_in(published)) is not None:
        _refuse_other_meaning(theirs, config, where)
    elif is_main():
        model = config.model
        print(
            f"{where} does not say what its output means: taken for what this config says, {model.prediction} on the "
            f"path {config.path.name}, with {model.time} x {model.time_scale:g} for the time",
            flush=True,
        )
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), without_projector(wanted))
    weights, of_classes = _read_out(run, config, published, kind, shapes)
    params, drawn = fitted(weights, wanted, of_classes, where)
    facts = {
        "source": str(file), "project": published.project, "step": published.checkpoint.step or 0, "weights": kind,
        "sha256": sha256(published), "drawn": drawn,
    }  # fmt: skip
    return Start(params, facts)


def _settings_in(published: Published) -> dict[str, Any] | None:
    """Return our settings of a file that carries its own, as far as they can be told."""
    if published.checkpoint.reference is None:
        return None
    try:
        return as_saved(with_settings(Config(), published.settings(None, recipe=False)))
    except UserError:  # a network that has no name there
        return None


def _read_out(
    run: Experiment, config: Config, published: Published, kind: str, shapes: PyTree
) -> tuple[PyTree, frozenset[str]]:
    """(the file's parameters, the names of those that are of classes), whatever its number of classes is."""
    of_classes, tensors, shape = classes_of(run, config), published.checkpoint.weights[kind], run.image_shape

    def tables(model: Model) -> dict[str, jax.ShapeDtypeStruct] | None:
        """Return what a model of some number of classes reads of them; None where the file has no classes."""
        layout, found = published.source.layout(model, shape), {}
        for name in of_classes & set(layout.leaves):
            leaf = layout.leaves[name]
            if any(tensor not in tensors for tensor in leaf.names):
                return None
            made = leaf.read(*(tensors[tensor] for tensor in leaf.names))
            found[name] = jax.ShapeDtypeStruct(made.shape, "float32")
        return found

    own = tables(run.model)
    if own is None:
        model, plain = _of_classes(run, config, 0)
        return published.params(model, shape, plain, kind), of_classes
    if config.training.label_dropout and own:
        model, fewer = _of_classes(run, config, run.conditioning.num_classes - 1)
        rows = flatten_dict(fewer, sep="/")
        if all(rows[name].shape == table.shape for name, table in tables(model).items()):
            return published.params(model, shape, fewer, kind), of_classes  # its last row is the null class
    found = unflatten_dict(flatten_dict(shapes, sep="/") | own, sep="/")
    return published.params(run.model, shape, found, kind), of_classes


# ---- what both may differ in


def classes_of(run: Experiment, config: Config) -> frozenset[str]:
    """Return the names of the parameters whose shapes are those of the classes: they are others for one class more."""
    n = run.conditioning.num_classes
    if not n:
        return frozenset()
    one, other = (flatten_dict(_of_classes(run, config, k)[1], sep="/") for k in (n, n + 1))
    return frozenset(name for name in one if name not in other or one[name].shape != other[name].shape)


def spans_of(run: Experiment, config: Config) -> frozenset[str]:
    """Return the names of the parameters by which the network is told of a second time, in vain at first."""
    if not config.model.span:
        return frozenset()
    without = build_model(with_settings(config, {"model.span": False}), run.image_shape[-1], run.conditioning)
    here, plain = (flatten_dict(_shapes(run, model, run.conditioning), sep="/") for model in (run.model, without))
    return frozenset(here) - frozenset(plain)


def _of_classes(run: Experiment, config: Config, n: int) -> tuple[Model, PyTree]:
    """(the run's model for n classes, the shapes of its parameters)."""
    conditioning = dataclasses.replace(run.conditioning, num_classes=n)
    model = build_model(config, run.image_shape[-1], conditioning)
    return model, _shapes(run, model, conditioning)


def _shapes(run: Experiment, model: Model, conditioning: Conditioning) -> PyTree:
    """Return the shapes of a model's parameters."""
    shape, condition = (1, *run.image_shape), conditioning.example(1, run.image_shape[-1])
    return jax.eval_shape(lambda key: model.init(key, shape, condition), jax.random.key(0))


def _refuse_other_meaning(theirs: dict[str, Any], config: Config, where: str) -> None:
    """Raise UserError where weights were trained to mean something else, unless that is accepted, which is said."""
    accept, found = accepted(config), changes(_entire(theirs), _entire(as_saved(config)), MEANING)
    differ = [Change(*change) for change in found]
    refused = [change for change in differ if not within(change.key, accept)]
    if refused:
        names = ", ".join(dict.fromkeys(repr(_least(change.key)) for change in refused))
        raise UserError(
            f"{where}: its weights mean something else ({'; '.join(map(str, refused))}): set this as there, or take "
            f"them all the same by --config.training.accept=({names},)."
        )
    if differ and is_main():
        print(f"{where}: taken all the same, though of another meaning: {'; '.join(map(str, differ))}", flush=True)


def _entire(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings with every argument of the path, given or by default."""
    path = with_defaults(registries.PATHS, Component.of(settings["path"]), "config.path")
    return settings | {"path": path.to_dict()}


def _least(key: str) -> str:
    return "path" if within(key, ("path",)) else short(key)
