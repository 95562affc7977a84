"""What a result depends on: all of it, and nothing else (batches, devices, paths, other jobs)."""

import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evaluation.context import identity_of_run
from evaluation.drawing import arguments_of
from evaluation.fold import Key
from evaluation.jobs.base import Job
from score_flow import __version__
from score_flow.config import registries
from score_flow.config.components import Component, Registries
from score_flow.config.options import Config, EvalOptions
from score_flow.data.base import FIRST, checksum
from score_flow.experiment import Experiment
from score_flow.pretrained import autoencoder_kl
from score_flow.runs.files import sha256_of

# What training decides of a run's speed and logs, but not of its loss
NOT_OF_THE_LOSS = (
    "batch_size", "n_iters", "n_jitted_steps", "log_freq", "eval_freq", "snapshot_freq", "snapshot_freq_for_preemption",
    "snapshot_sampling", "fsdp",
)  # fmt: skip


def seen_by(job: Job, options: EvalOptions) -> EvalOptions:
    """The options as a job sees them: those that it declares, with which its results are keyed, and no others."""
    visible = {*job.reads, "batch_size", *(("bpd_dataset",) if job.needing("split") else ())}
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


def key_of(
    name: str, job: Job, run: Experiment, config: Config, weights: Key, images: Key, controlled: bool, opened: Key
) -> Key:
    """What the result of a job depends on, under the names by which a person could change it."""
    options = config.eval
    reads = {*job.reads, *(("bpd_dataset",) if job.needing("split") else ())}
    key = {
        "job": name,
        "version": __version__,
        **weights,
        "seed": config.seed,
        "data": {"uniform_dequantization": run.dequantised, "centered": config.data.centered},
        "eval": {field: contents(getattr(options, field)) for field in sorted(reads) if field != "stats"},
    }
    if job.needing("sampler"):
        key["sampling"] = component(config.sampling, registries.SAMPLERS)
    if job.needing("guidance"):
        key |= {"guidance": guidance(config), "autoencoder": contents(run.autoencoder)}
        key["eval"]["low_res"] = contents(options.low_res)
    if job.needing("objective"):
        training = config.training.to_dict()
        key["training"] = {field: value for field, value in training.items() if field not in NOT_OF_THE_LOSS}
    if controlled:
        key["control"] = component(config.control, registries.CONTROLS)
    return key | opened | images


def images_of(job: Job, run: Experiment, options: EvalOptions, facts: Callable[[str], Key]) -> Key:
    """The data that a job works with, by split."""
    splits = {options.bpd_dataset} if job.needing("split") else set()
    if not run.latent:
        names = {"train": "training images", "test": "test images"}
        splits |= {split for split, need in names.items() if job.needing(need)}
    return {f"{split} images": facts(split) for split in sorted(splits)}


def facts_of(run: Experiment, split: str) -> Key:
    """How many images there are, and a checksum of the first of them."""
    source = run.test_source if split == "test" else run.train_source
    return {"n": len(source), "checksum": checksum(source, FIRST)}


def guidance(config: Config) -> Key:
    """The guidance, with the weights of the runs that it names in the place of their folders."""
    found = config.guidance.to_dict()
    for name in ("classifier", "bad"):
        found[name] = identity_of_run(found[name]) if found[name] else ""
    # Trained without ever hiding a label, a network has no null class.
    return found | {"null class": config.training.label_dropout > 0}


def component(section: Component, registry: Registries = ()) -> Key:
    """A plug-in with its arguments (of a registry's all that it has), and the contents of the files among them."""
    arguments = arguments_of(registry, section) if registry else section.arguments
    return {"name": section.name} | {k: contents(v) for k, v in arguments.items()}


def contents(value: Any) -> Any:
    """A value; in the place of a file's name (or an autoencoder's folder's) a hash of what is in it."""
    if isinstance(value, Component):
        return component(value)
    if hasattr(value, "to_dict"):
        return value.to_dict()
    file = Path(value).expanduser() if isinstance(value, str) and value else None
    for found in (file, file / autoencoder_kl.WEIGHTS) if file else ():
        if found.is_file():
            return f"sha256 {sha256_of(found)[:16]}"
    return value
