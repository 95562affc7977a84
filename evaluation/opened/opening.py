"""Runs are opened: from a workdir, or from a published file."""

from typing import Any

import jax

from evaluation import weights as checkpoints
from evaluation.modes import importing
from evaluation.modes.checking import check_components
from evaluation.opened.run import Run
from score_flow.build import experiment
from score_flow.config.loading import flatten, load
from score_flow.config.options import Config
from score_flow.errors import UserError
from score_flow.experiment import Experiment
from score_flow.runs import places
from score_flow.runs import workdir as folders
from score_flow.runs.sharding import replicated
from score_flow.training.saver import remembered

Weights = str | int | float | None


def open(workdir: str | places.Place, step: int | None = None, weights: Weights = None, **settings: Any) -> Run:
    """Open a run that was trained or imported, by its config.json.

    step: of a checkpoint; None: the newest milestone that is whole, else the newest state. weights: "raw"; "ema", the
    first average; the number of one (of model.ema_rate, then model.ema_std); or a width, such as 0.1, to make one of;
    None: as config.eval says, "ema". settings: other values of the config, by section: eval={"autoencoder": FOLDER}.

    Raises UserError, in one line, for a folder that is no run, a checkpoint that is not there or damaged, and settings
    that the weights were not trained with.
    """
    folder = places.path_of(str(workdir))
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json: give the workdir of a run that was trained or imported.")
    config = check_components(load(str(places.local(folder / "config.json")), [], flatten(settings) | _which(weights)))
    run, wanted = _of_images(experiment(config, remembered(folder)), config), checkpoints.which_of(config)
    saved, step = checkpoints.state_at(folder, step)
    params = checkpoints.load_params(run, wanted, saved, step)
    return Run(config, run, params, step, checkpoints.weights_of(saved.meta(step), wanted), folder)


def open_published(
    file: str | places.Place,
    *,
    config: str | places.Place | None = None,
    reference_config: str | places.Place | None = None,
    workdir: str | places.Place | None = None,
    weights: str | None = None,
    **settings: Any,
) -> Run:
    """Open a published checkpoint: its EMA, or its raw weights where it holds only these or weights="raw".

    config: the recipe of its network; reference_config: the settings that its own project trained it with, as .json;
    neither: those that the file itself holds. workdir: a folder to import it into, as --mode=import does; None: nothing
    is written. settings: as of `open`. Raises UserError for a file of no known project, and weights of another network.
    """
    published = importing.open_published(str(file))
    reference = None if reference_config is None else str(reference_config)
    known = published.settings(reference, recipe=config is not None)
    found = check_components(load(None if config is None else str(config), [], known | flatten(settings)))
    run = _of_images(experiment(found), found)
    if workdir is not None:
        folder = places.path_of(str(workdir))
        with folders.hold(folder, "run"):
            importing.import_into(folder, published, run, found)
        return open(folder, weights=weights)
    kind = weights or ("ema" if "ema" in published.checkpoint.weights else "raw")
    shapes = jax.eval_shape(run.init, jax.random.key(0))
    params = jax.device_put(published.params(run.model, run.image_shape, shapes, kind), replicated(run.mesh))
    return Run(found, run, params, published.checkpoint.step or 0, kind)


def _of_images(run: Experiment, config: Config) -> Experiment:
    """The same; raises UserError for a classifier."""
    if run.loss.produces != "denoiser":
        raise UserError(
            f"a {run.loss.produces} (training.objective = {config.training.objective}) has no samples; open a model of "
            "images, which it can guide: guidance={'classifier': WORKDIR}."
        )
    return run


def _which(weights: Weights) -> dict[str, Any]:
    """The settings that ask for some weights."""
    if weights is None:
        return {}
    if isinstance(weights, float):
        return {"eval.ema_std": weights}
    number = {"raw": -1, "ema": 0}.get(weights, weights)
    if not isinstance(number, int) or isinstance(number, bool):
        raise UserError(f"weights are {weights!r}; give 'raw', 'ema', the number of an average, or a width (0.1).")
    return {"eval.ema": number, "eval.ema_std": 0.0}
