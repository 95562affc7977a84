"""What an evaluation job is given: a trained model with its parameters, data and settings."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer, PyTree

from evaluation.fold import Key, state_key
from evaluation.labels import Labels, labels_of
from evaluation.weights import checkpoints_of, identity, load_params, which_of
from sampling.base import Sampler
from sampling.control.base import Control
from sampling.guidance import guide
from score_flow.build import experiment
from score_flow.config import registries
from score_flow.config.components import Component, resolve
from score_flow.config.loading import load
from score_flow.config.options import Config, EvalOptions
from score_flow.data import arrays
from score_flow.data.base import Source, shuffled
from score_flow.data.conditioning import Conditioning
from score_flow.data.pipeline import gather
from score_flow.errors import UserError
from score_flow.experiment import Experiment
from score_flow.losses.base import OfNoisyImages
from score_flow.losses.classifier import Classification
from score_flow.losses.flow_map import Teacher
from score_flow.model import Denoiser, Model, NetworkDenoiser
from score_flow.runs import files, places
from score_flow.runs.sharding import batch_sharding, multiple
from score_flow.tree import static
from score_flow.types import Batch, Condition, Params


@flax.struct.dataclass
class Guidance:
    """What samplers see of a model's denoiser, and the condition of each sample.

    A tree whose leaves are the parameters of the other runs that guide it: hand it to a compiled function as an
    argument, and they are none of its constants.
    """

    wrap: Callable[..., Denoiser] = static()
    conditioning: Conditioning = static()
    classification: Classification | None = None
    classifier: PyTree = None  # its parameters
    bad_model: Model | None = static(default=None)
    bad: PyTree = None  # its parameters
    base: Batch | None = None  # the samples that a super-resolution model refines
    labels: Labels | None = None  # which those of samples are, where not all classes in turn
    wrap_at: Callable[[float], Callable[..., Denoiser]] | None = static(default=None)  # `wrap` of another scale

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        """Return the guided denoiser; free to build inside jit."""
        bad = self.bad_model and self.bad_model.bind(self.bad)
        log_prob = self.classification and functools.partial(self.classification.log_prob, self.classifier)
        return self.wrap(denoiser, bad, log_prob)

    def at(self, scale: float) -> "Guidance":
        """Return this guidance at another scale; raises UserError where the model has none."""
        return self.replace(wrap=self.wrap_at(scale))

    def in_turn(self, indices: Integer[Array, "b"]) -> Condition:
        """Return the condition of samples by global index; a classifier guides a model without classes to its own."""
        condition = self.conditioning.in_turn(indices, self.base)
        return condition if self.labels is None else condition | {"label": self.labels(indices)}


@dataclasses.dataclass(frozen=True)
class Context:
    """One checkpoint under evaluation; `options` is config.eval, `directory` the job's own folder, `workdir` the run's.

    `guide` makes the denoiser that samplers see of the model's, whose likelihood is another matter: an argument of what
    is compiled, as `params` are.
    `key`: what the job's result depends on; `job`: its name. `sampler_said`: the sampler in words.
    `judged`: whether results are compared with the data set, or samples are all that is wanted.
    `control`: what is known of the samples, wrapped around the guided denoiser.
    """

    run: Experiment
    params: Params
    step: int
    sampler: Sampler
    guide: Guidance
    options: EvalOptions
    directory: places.Place
    judged: bool = True
    control: Control | None = None
    workdir: places.Place = Path()
    job: str = ""
    key: Key = dataclasses.field(default_factory=dict)
    sampler_said: str = ""

    @property
    def n_samples(self) -> int:
        """How many samples are wanted: of controlled ones, which are to be looked at, at most eight an input."""
        n = self.options.num_samples
        return min(n, 8 * len(self.control.known)) if self.control else n

    @property
    def source(self) -> Source:
        """The split that losses and likelihoods are computed on."""
        return self.run.test_source if self.options.bpd_dataset == "test" else self.run.train_source

    @property
    def images(self) -> Integer[np.ndarray, "k"]:
        """The numbers of the images of the split that are looked at: all, or config.eval.num_images of them.

        A fixed permutation picks them: without regard to class or order, and fewer are among more.
        """
        n, k = len(self.source), self.options.num_images
        if k > n:
            raise UserError(f"config.eval.num_images is {k}, but {self.source.name} has {n} images.")
        return np.sort(shuffled(n)[:k]) if 0 < k < n else np.arange(n)

    @property
    def batch_size(self) -> int:
        """The global batch, rounded up to a multiple of the devices: it changes no result."""
        return multiple(self.run.mesh, self.options.batch_size)

    def examples(self, indices: Integer[np.ndarray, "b"]) -> Batch:
        """Read examples of the split, on the devices."""
        return gather(self.source, indices, batch_sharding(self.run.mesh))

    def denoiser(self, params: Params, batch: Batch) -> NetworkDenoiser:
        """Bind the denoiser for the examples of a batch; call it inside jit."""
        return self.run.model.bind(params, self.run.condition(batch))

    @property
    def begun(self) -> Key:
        """The key of the state that a broken job left in its folder; {} without one."""
        return state_key(self.directory) or {}

    def depending_on(self, of: Key) -> "Context":
        """Return the context of a job whose result depends on more."""
        return dataclasses.replace(self, key=self.key | of)

    @property
    def labels(self) -> dict[str, str]:
        """How the labels of samples come about, where they have any of their own."""
        given = self.guide.base is not None and "label" in self.guide.base
        chosen = self.guide.labels.said if self.guide.labels else "in turn"
        return {"labels": chosen} if self.guide.conditioning.num_classes and not given else {}

    def about(self, repeats: int | None = None) -> dict[str, Any]:
        """Say what stands beside figures of the split's images."""
        passes = {} if repeats is None else {"repeats": repeats}
        n, of = len(self.images), len(self.source)
        part = {"subset": f"{n} of {of}, by a fixed permutation"} if n < of else {}
        return {"n_images": n, **passes, "split": self.source.name, **part}

    def about_samples(self, calls: Integer[np.ndarray, "*n"]) -> dict[str, Any]:
        """Say what stands beside figures of samples of the sampler."""
        of = {"network_calls_per_sample": float(calls.mean()), "sampler": self.sampler_said}
        return {"n_samples": self.n_samples, **of, **self.labels}


def build_guide(run: Experiment, config: Config) -> Guidance:
    """Build what config.guidance asks of a model; raises UserError where it, or another run, cannot give it."""
    settings = config.guidance.to_dict()
    folders = {name: settings.pop(name) for name in ("classifier", "bad")}
    if folders["bad"] and settings["scale"] == 1:
        raise UserError("config.guidance.bad is given, but config.guidance.scale is 1: nothing would be guided.")
    # Trained without ever hiding a label, a network has a null class in name only.
    null = run.conditioning.num_classes if config.training.label_dropout > 0 else 0
    channels, range_of_data = run.image_shape[-1], (run.scaling.low, run.scaling.high)
    scales = config.training.flow_map_guidance if config.model.guidance else None
    known = settings | {"autoguided": bool(folders["bad"]), "scales": scales}
    wrap_at = lambda scale: guide(null, channels, range_of_data, **known | {"scale": scale})  # noqa: E731
    guidance = Guidance(wrap_at(settings["scale"]), run.conditioning, wrap_at=wrap_at)
    if folders["bad"]:
        other, params = _load(run, "bad", folders["bad"])
        guidance = guidance.replace(bad_model=other.model, bad=params)
    if folders["classifier"]:
        other, params = _load(run, "classifier", folders["classifier"])
        labels = dataclasses.replace(run.conditioning, num_classes=other.conditioning.num_classes)
        guidance = guidance.replace(conditioning=labels, classification=other.loss, classifier=params)
    base, classes = load_base(run, config.eval.low_res), guidance.conditioning.num_classes
    return guidance.replace(base=base, labels=labels_of(run, config.eval, classes, given="label" in (base or {})))


def load_base(run: Experiment, file: str) -> Batch | None:
    """Load the samples of a base model that config.eval.low_res gives to a super-resolution model, in its range.

    The .npz holds uint8 `image` and, for a model of classes, the `label` of each, as samples.npz does.
    """
    side = run.conditioning.low_res
    if not file:
        return None
    if not side:
        raise UserError("config.eval.low_res is given, but config.model.low_res is 0: the model refines no images.")
    source = arrays.read(files.regular_file(file, "config.eval.low_res"), arrays.Form(run.scaling.levels))
    shape = (side, side, run.image_shape[-1])
    if source.image_shape != shape:
        raise UserError(f"config.eval.low_res: {file} holds images of shape {source.image_shape}; allowed: {shape}")
    base = {"low_res": run.scaling.normalise(jnp.asarray(source.image))}
    classes = run.conditioning.num_classes
    if not classes or source.label is None:
        return base
    if source.num_classes > classes:
        raise UserError(f"config.eval.low_res: {file} has labels up to {source.num_classes - 1}; allowed: < {classes}")
    return base | {"label": jnp.asarray(source.label)}


def build_control(run: Experiment, section: Component) -> Control:
    """Build what config.control names; raises UserError for a model of latents, whose pixels it cannot know."""
    if run.latent:
        raise UserError("--mode=control needs a model of pixels: config.eval.autoencoder is given, this is of latents.")
    return resolve(
        registries.CONTROLS, section, "config.control",
        image_shape=run.image_shape, scaling=run.scaling, dequantised=run.dequantised,
        data_std=run.model.preconditioning.data_std,
    )  # fmt: skip


def taught(run: Experiment) -> Experiment:
    """Give a run's loss the teacher that it awaits, if it does: the newest weights of WORKDIR, or WORKDIR#DIGEST.

    What it awaits says from then on which weights it has. Raises UserError where they are others, or do not fit.
    """
    asked = getattr(run.loss, "awaited", "")
    if not asked:
        return run
    workdir, _, digest = asked.partition("#")
    other, params = _load(run, "teacher", workdir, "config.training")
    found = hashlib.sha256(identity_of_run(workdir).encode()).hexdigest()[:16]
    if digest not in ("", found):
        raise UserError(
            f"config.training.teacher is {asked}, but the newest weights there are {found} now: put the others back, "
            f"or go on with these: --config.training.teacher={workdir} --config.training.accept=('teacher',)."
        )
    # Trained without ever hiding a label it has a null class in name only, as in build_guide.
    hides = isinstance(other.loss, OfNoisyImages) and other.loss.noising.label_dropout
    if run.loss.guidance != (1.0, 1.0) and not hides:
        raise UserError(
            f"config.training.teacher = {workdir} cannot be guided: it must be trained with model.class_conditional "
            "and training.label_dropout above 0."
        )
    teacher = Teacher(other.model, params)
    return dataclasses.replace(run, loss=run.loss.replace(teacher=teacher, awaited=f"{workdir}#{found}"))


def _load(run: Experiment, field: str, workdir: str, section: str = "config.guidance") -> tuple[Experiment, Params]:
    """Load another run, with the weights of its newest checkpoint; raises UserError if it does not fit."""
    where, file = f"{section}.{field} = {workdir}", places.place_of(workdir) / "config.json"
    if not file.is_file():
        raise UserError(f"{where}: there is no {file}; give the --workdir of a trained run.")
    settings = load(str(places.local(file)), [])
    other = dataclasses.replace(experiment(settings), mesh=run.mesh)
    if other.loss.produces != ("classifier" if field == "classifier" else "denoiser"):
        needed = "a classifier (training.objective = classifier)" if field == "classifier" else "a model of images"
        raise UserError(f"{where} was trained with training.objective = {settings.training.objective}; give {needed}.")
    classes, theirs = run.conditioning.num_classes, other.conditioning.num_classes
    for what, ours, found in (
        ("path", run.model.path, other.model.path),
        ("shape of images", run.image_shape, other.image_shape),
        ("range of pixels", (run.scaling.low, run.scaling.high), (other.scaling.low, other.scaling.high)),
        ("side of low-resolution images", run.conditioning.low_res, other.conditioning.low_res),
        ("number of classes", classes or theirs, theirs or classes),
    ):
        if ours != found:
            raise UserError(f"{where} has another {what}: {found}, where this run has {ours}.")
    if field in ("bad", "teacher") and theirs > classes:
        raise UserError(f"{where} needs labels, which this run's samples have not.")
    checkpoints, step = checkpoints_of(places.place_of(workdir), 0, 0)[-1]
    return other, load_params(other, which_of(settings), checkpoints, step)


def identity_of_run(workdir: str) -> str:
    """Name the weights of another run that guide this one, by their content."""
    checkpoints, step = checkpoints_of(places.place_of(workdir), 0, 0)[-1]
    found = identity(which_of(load(str(places.local(places.place_of(workdir) / "config.json")), [])), checkpoints, step)
    return f"{found['weights']} of checkpoint {found['checkpoint']}"
