"""What a result depends on: all of it, and nothing else (batches, devices, paths, other jobs)."""

import copy
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any

from evaluation.context import identity_of_run
from evaluation.fold import Key
from evaluation.jobs.base import BY_CONTENT, NO_FIGURES, Job
from evaluation.labels import numbers_of
from score_flow import FIGURES
from score_flow.config import registries
from score_flow.config.components import Component, with_defaults
from score_flow.config.options import Config, EvalOptions, GuidanceOptions
from score_flow.data.base import FIRST, checksum
from score_flow.experiment import Experiment
from score_flow.pretrained import autoencoder_kl
from score_flow.runs.files import sha256_of
from score_flow.runs.places import place_of
from score_flow.training.accepting import HARMLESS

# What training decides of a run's speed and logs, but not of its loss
NOT_OF_THE_LOSS = (
    "batch_size", "n_iters", "microbatches", "non_finite", *(key.removeprefix("training.") for key in HARMLESS)
)  # fmt: skip
OF_SPLIT = ("bpd_dataset", "num_images")  # what every job over the images of a split looks at


def seen_by(job: Job, options: EvalOptions) -> EvalOptions:
    """Show the options as a job sees them: those that it declares, with which its results are keyed, and no others."""
    visible = {*job.reads, "batch_size", *(OF_SPLIT if job.needing("split") else ())}
    view = copy.copy(options)
    object.__setattr__(view, "__class__", _view(type(options), frozenset(visible)))
    return view


@functools.cache
def _view(kind: type, visible: frozenset[str]) -> type:
    hidden = {field.name for field in dataclasses.fields(kind)} - visible

    def read(self: Any, name: str) -> Any:
        if name in hidden:
            raise AssertionError(f"a job reads config.eval.{name}, which it does not declare in Job.reads")
        return object.__getattribute__(self, name)

    return type(kind.__name__, (kind,), {"__getattribute__": read})


def settings_of(run: Experiment, config: Config, controlled: bool) -> Key:
    """Collect all settings that a result may depend on, under the names by which a person could change them."""
    training = config.training.to_dict()
    found = {
        "version": FIGURES,
        "seed": run.seed,
        "data": {
            "uniform_dequantization": run.dequantised, "centered": config.data.centered, "inset": config.data.inset,
        },
        "eval": {name: contents(value) for name, value in vars(config.eval).items() if name not in BY_CONTENT}
        | labels(run, config.eval),
        "guidance": guidance(config.guidance, config.training.label_dropout > 0),
        "sampling": component(with_defaults(registries.SAMPLERS, config.sampling, "config.sampling")),
        "autoencoder": contents(run.autoencoder),
        "training": {name: value for name, value in training.items() if name not in NOT_OF_THE_LOSS},
    }
    if controlled:
        found["control"] = component(with_defaults(registries.CONTROLS, config.control, "config.control"))
    return found


def key_of(job: Job, settings: Key) -> Key:
    """Pick, of all settings, those that the results of a job depend on."""
    names, fields = {"version", "seed", "data", "control"}, {*job.reads} - {*BY_CONTENT, *NO_FIGURES}
    if job.needing("split"):
        fields |= {*OF_SPLIT}
    if job.needing("sampler"):
        names |= {"sampling"}
    if job.needing("guidance"):
        names, fields = names | {"guidance", "autoencoder"}, fields | {"low_res", "labels", "label_order"}
    if job.needing("objective"):
        names |= {"training"}
    seen = {name: settings["eval"][name] for name in sorted(fields)}
    return {name: value for name, value in settings.items() if name in names} | {"eval": seen}


def images_of(job: Job, split: str, *, latent: bool, facts: Callable[[str], Key]) -> Key:
    """Name the data that a job works with, by split: config.eval's, if it looks at one, and those that it names."""
    splits = {split} if job.needing("split") else set()
    if not latent:
        names = {"train": "training images", "test": "test images"}
        splits |= {split for split, need in names.items() if job.needing(need)}
    return {f"{split} images": facts(split) for split in sorted(splits)}


def facts_of(run: Experiment, split: str) -> Key:
    """Say how many images there are, and a checksum of the first of them."""
    source = run.test_source if split == "test" else run.train_source
    return {"n": len(source), "checksum": checksum(source, FIRST)}


def labels(run: Experiment, options: EvalOptions) -> Key:
    """Return which labels samples have: by number, however they are named, and with how often they are drawn."""
    numbers, order = numbers_of(run, options.labels), options.label_order
    if order == "frequencies":
        order = f"{order} {hashlib.sha256(json.dumps(run.class_counts).encode()).hexdigest()[:16]}"
    return {"labels": numbers, "label_order": order}


def guidance(options: GuidanceOptions, null_class: bool) -> Key:
    """Return the guidance, with the weights of the runs that it names in the place of their folders.

    null_class: trained without ever hiding a label, a network has none.
    """
    folders = {"classifier": options.classifier, "bad": options.bad}
    runs = {name: identity_of_run(folder) if folder else "" for name, folder in folders.items()}
    return options.to_dict() | runs | {"null class": null_class}


def component(section: Component) -> Key:
    """Return a plug-in with its arguments, and the contents of the files among them."""
    return {"name": section.name} | {name: contents(value) for name, value in section.arguments.items()}


def contents(value: Any) -> Any:
    """Return a value; in the place of a file's name (or an autoencoder folder's) a hash of what is in it."""
    if isinstance(value, Component):
        return component(value)
    if hasattr(value, "to_dict"):
        return value.to_dict()
    file = place_of(value) if isinstance(value, str) and value else None
    if file and file.is_file():
        return f"sha256 {sha256_of(file)[:16]}"
    if file and (weights := autoencoder_kl.weights_of(file)).is_file():
        settings = autoencoder_kl.settings_of(file)
        return f"sha256 {sha256_of(weights)[:16]}" + (f" {json.dumps(settings, sort_keys=True)}" if settings else "")
    return value
