"""From a configuration to the objects of a run."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import flax.errors
import flax.linen as nn
import jax
from jax.sharding import Mesh

from score_flow.config import registries
from score_flow.config.components import Component, call, resolve
from score_flow.config.hints import ValueRange, parameters_of
from score_flow.config.options import Config, DataOptions
from score_flow.data.augmentation import N_LABELS
from score_flow.data.base import Source
from score_flow.data.compare import DECODED_BEFORE, refuse_unfit
from score_flow.data.conditioning import Conditioning
from score_flow.data.kinds import with_hint
from score_flow.data.levels import LEVELS, Pixels
from score_flow.data.preprocessing import Preprocessing
from score_flow.data.scaling import Scaling
from score_flow.errors import UserError
from score_flow.experiment import Experiment
from score_flow.losses.alignment import aligned
from score_flow.losses.base import Loss, Product, unused
from score_flow.model import Model, Preconditioning
from score_flow.pretrained import autoencoder_kl
from score_flow.process import prediction
from score_flow.process.times import TimeSampler
from score_flow.runs.sharding import make_mesh, replicated
from score_flow.training.optimiser import optimiser_of

# What flax, jax and a network's own arithmetic raise where shapes do not fit.
SHAPE_ERRORS = (flax.errors.FlaxError, TypeError, ValueError, ArithmeticError, LookupError, AssertionError)


def experiment(config: Config, remembered: Mapping[str, Any] | None = None) -> Experiment:
    """Build everything that training, sampling and evaluation share.

    `remembered`: the facts of the training data in the newest checkpoint of the run, if it has one (none in it: {}).
    What they say of images and classes need not be asked of the data set, which is then opened by who reads it.
    """
    data = config.data
    latent, labelled = is_latent(config), uses_labels(config)
    split = functools.cache(functools.partial(_open, data.source, as_before(remembered)))
    declared, whose = _declared(config, remembered, split)
    image_shape, values = tuple(declared.image_shape), tuple(getattr(declared, "range", None) or ())
    refuse_levels(config, declared.levels, values)

    @functools.cache
    def open_source(name: str) -> Source:
        source = split(name)
        num_classes = declared.num_classes if labelled else 0
        refuse_unfit(source, image_shape, declared.levels, num_classes, whose, values)
        return source

    conditioning = build_conditioning(config, declared.num_classes, getattr(declared, "unlabelled", ""))
    model = build_model(config, image_shape[-1], conditioning)
    check_shapes(model, image_shape, conditioning, name=config.network.name)
    dequantised = data.uniform_dequantization and not latent and not values
    scaling = build_scaling(data, declared.levels or LEVELS, values, noisy=dequantised or latent)
    mesh = _mesh(config.training.fsdp)
    return Experiment(
        model=model,
        loss=build_loss(config, model, build_preprocessing(config, image_shape, scaling, conditioning, dequantised)),
        optimiser=optimiser_of(config.optim, config.training.n_iters),
        open_source=open_source,
        open_pixels=functools.partial(open_pixels, config, scaling, dequantised, mesh),
        image_shape=image_shape,
        scaling=scaling,
        conditioning=conditioning,
        dequantised=dequantised,
        mesh=mesh,
        seed=config.seed,
        latent=latent,
        autoencoder=config.eval.autoencoder,
        remembered=remembered,
    )


def _mesh(fsdp: bool | int) -> Mesh:
    """All devices, in training's groups where these divide them: training refuses others, evaluation needs none."""
    try:
        return make_mesh(fsdp)
    except UserError:
        return make_mesh()


def build_scaling(data: DataOptions, levels: int, values: ValueRange, *, noisy: bool) -> Scaling:
    """Return the map of levels that config.data asks for; raises UserError where there are none to be inset."""
    low, high = -1.0 if data.centered else 0.0, 1.0
    if data.inset and (noisy or values):
        raise UserError(
            "config.data.inset is of exact levels, which latents and real numbers have not: set "
            "config.data.uniform_dequantization=False."
        )
    margin = (high - low) / (2 * levels) if data.inset else 0.0
    return Scaling(low + margin, high - margin, levels, values, centred=data.inset)


def open_pixels(config: Config, scaling: Scaling, dequantised: bool, mesh: Mesh) -> Pixels:
    """Make the map from samples to pixel levels, of latents by their autoencoder; raises UserError without it."""
    folder = config.eval.autoencoder
    if not is_latent(config):
        return Pixels(scaling, dequantised)
    if not folder:
        raise UserError(
            "samples are latents: give --config.eval.autoencoder=FOLDER to decode them "
            "(training without it: --config.training.snapshot_sampling=False)."
        )
    if scaling.levels != LEVELS:
        raise UserError(f"config.eval.autoencoder makes {LEVELS} levels: config.data.levels is {scaling.levels}.")
    network, params, scale, shift = autoencoder_kl.load(folder)
    return Pixels(scaling, dequantised, network, jax.device_put(params, replicated(mesh)), scale, shift)


def is_latent(config: Config) -> bool:
    """Say whether the model makes latents; raises UserError for what they cannot have."""
    if config.data.source.name == "latents":
        for key, *allowed in (
            ("data.random_flip", False), ("data.random_crop", 0), ("data.augment", 0.0), ("model.low_res", 0),
            ("training.objective", "simple", "uncertainty"),
        ):  # fmt: skip
            section, name = key.split(".")
            if (value := getattr(getattr(config, section), name)) not in allowed:
                raise UserError(
                    f"config.{key} is {value!r}; data.source.name = latents allows {' or '.join(map(repr, allowed))}"
                    + (" (--mode=encode mirrors the images)." if name == "random_flip" else ".")
                )
        return True
    return bool(config.eval.autoencoder)


def refuse_levels(config: Config, levels: int, values: ValueRange) -> None:
    """Raise UserError for images that have neither levels nor a range, or for what real numbers cannot have."""
    if (levels == 0) != bool(values):
        raise UserError(f"config.data.levels is {levels}, config.data.range {values}: levels = 0 goes with a range.")
    if values and config.model.low_res:
        raise UserError(f"config.model.low_res is {config.model.low_res}: super-resolution needs pixel levels.")


def uses_labels(config: Config) -> bool:
    """Say whether the labels of the data are of any account."""
    return config.model.class_conditional or produced(config.training.objective) == "classifier"


def produced(objective: str) -> Product:
    """Return what training.objective makes: its file says so, unless that is a denoiser."""
    return registries.LOSSES.beside(objective, "PRODUCES", "config.training.objective") or "denoiser"


def contrasts(objective: str) -> bool:
    """Say whether what training.objective trains is shifted by training.contrast: its file says so."""
    return bool(registries.LOSSES.beside(objective, "CONTRASTS", "config.training.objective"))


def _declared(config: Config, remembered: Mapping[str, Any] | None, split: Callable[[str], Source]) -> Any:
    """(image_shape, levels and num_classes as attributes; who says so), the data set asked last."""
    if config.data.image_shape:
        return config.data, "config.data declares"
    if remembered and "image_shape" in remembered:
        return SimpleNamespace(**remembered), "the run was trained on"
    source = split("train")
    return source, f"{source.name} has"


def as_before(remembered: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a run does with its data where its config is silent: what it did, by the facts in its states.

    An older run, whose facts know nothing of it, held out no images, and dropped alpha and turns.
    """
    if remembered is None:
        return {}
    share = remembered.get("test_share") if remembered else 0.0
    return ({} if share is None else {"test_share": share}) | remembered.get("decoding", DECODED_BEFORE)


def _open(section: Component, before: dict[str, Any], split: str) -> Source:
    """Return a split of the data set."""
    silent = {name: value for name, value in before.items() if name not in section.arguments}
    try:
        return resolve(registries.SOURCES, section, "config.data.source", split=split, **silent)
    except UserError as error:
        raise with_hint(error, section.name, section.arguments.get("path")) from error


def build_preprocessing(
    config: Config, image_shape: tuple[int, ...], scaling: Scaling, conditioning: Conditioning, dequantised: bool
) -> Preprocessing:
    """Build what leads from a batch to what the model sees; raises UserError for augmentations that cannot be."""
    data, side = config.data, min(image_shape[:2])
    if data.random_crop >= side:
        raise UserError(f"config.data.random_crop is {data.random_crop}; it must be below the images' side, {side}.")
    if config.training.cosine and image_shape[-1] == 1:
        raise UserError(
            f"config.training.cosine is {config.training.cosine}, but images have one channel: it is of the angle "
            "between several; leave it at 0."
        )
    for name in ("random_flip", "random_crop", "augment") if config.training.alignment else ():
        if value := getattr(data, name):
            more = " (--mode=encode with data.random_flip stores those of mirrored images too)"
            raise UserError(
                f"config.data.{name} is {value}, but config.training.alignment compares with stored features, which "
                f"are of the images as they are{more if name == 'random_flip' else ''}: leave it out."
            )
    for key, without in (("model.low_res", 0), ("training.objective", "simple")):
        if data.augment and (value := operator.attrgetter(key)(config)) != without:
            raise UserError(f"config.data.augment is {data.augment}, but config.{key} {value!r}: allowed {without!r}.")
    return Preprocessing(scaling, conditioning, dequantised, data.random_flip, data.random_crop, data.augment)


def build_conditioning(config: Config, num_classes: int, why: str = "") -> Conditioning:
    """Build what the network is told besides x and t; num_classes: the data set's; why: why it has none."""
    options, classifies = config.model, produced(config.training.objective) == "classifier"
    if uses_labels(config) and not num_classes:
        objective = f"training.objective is {config.training.objective}"
        what = objective if classifies else "model.class_conditional is True"
        raise UserError(f"config.{what}, but the data have no labels{f' ({why})' if why else ''}.")
    return Conditioning(num_classes if uses_labels(config) else 0, options.low_res)


def build_model(config: Config, channels: int, conditioning: Conditioning) -> Model:
    """Build the static half: network, path, prediction and preconditioning, for images of so many channels."""
    options, path = config.model, resolve(registries.PATHS, config.path, "config.path")
    if options.span and options.consistency:
        raise UserError("config.model.consistency is of a network that is not told of a second time: set span=False.")
    return Model(
        network=build_network(config, channels, conditioning),
        path=path,
        prediction=prediction.choose(options.prediction, options.data_std, path),
        preconditioning=Preconditioning(
            options.time, options.time_scale, options.time_shift, options.input, options.data_std
        ),
        contrast=config.training.contrast if contrasts(config.training.objective) else 0.0,
        consistency=options.consistency,
    )


# What a network may be asked for: the argument of its `build`, and the option that asks.
ASKED = {
    "num_classes": "model.class_conditional", "super_resolution": "model.low_res", "out_channels": "model.learn_sigma",
    "augment_dim": "data.augment", "dtype": "model.precision", "span": "model.span",
    "guidance": "model.guidance", "tap": "training.alignment",
}  # fmt: skip


def build_network(config: Config, channels: int, conditioning: Conditioning) -> nn.Module:
    """Build the network that config.network names, of those that the objective trains.

    Raises UserError where the config asks for what the network has no argument for.
    """
    offered = {"num_classes": conditioning.num_classes, "super_resolution": conditioning.low_res > 0}
    if config.model.precision != "float32":  # what networks compute in unless they are told
        offered["dtype"] = config.model.precision
    if config.model.learn_sigma:
        offered["out_channels"] = 2 * channels
    if config.data.augment:
        offered["augment_dim"] = N_LABELS
    if config.training.alignment:
        offered["tap"] = config.training.alignment_block
    offered |= {name: True for name in ("span", "guidance") if getattr(config.model, name)}
    section, objective = config.network, config.training.objective
    if produced(objective) == "classifier":
        build = registries.CLASSIFIERS.entry(section.name, f"config.network.name (training.objective = {objective})")
    else:
        build = registries.NETWORKS.entry(section.name, "config.network.name")
    for argument in [argument for argument, value in offered.items() if value and argument not in parameters_of(build)]:
        builds = {name: registries.NETWORKS.entry(name, "config.network") for name in registries.NETWORKS.names()}
        able = ", ".join(name for name, other in builds.items() if argument in parameters_of(other))
        option = ASKED[argument]
        raise UserError(
            f"config.{option} is {operator.attrgetter(option)(config)}, which the network {section.name} cannot do: "
            f"it has no argument {argument}; networks that have: {able}."
        )
    network = call(build, section, "config.network", **offered)
    if getattr(network, "dtype", None) == "float64" and not jax.config.jax_enable_x64:
        raise UserError("config.model.precision is 'float64': start with JAX_ENABLE_X64=1, or jax computes in float32.")
    return network


@functools.lru_cache(maxsize=64)
def check_shapes(model: Model, image_shape: tuple[int, ...], conditioning: Conditioning, *, name: str) -> None:
    """Raise UserError unless the network can be built for such images: traced once, nothing is computed."""
    condition = conditioning.example(1, image_shape[-1])
    try:
        jax.eval_shape(lambda key: model.init(key, (1, *image_shape), condition), jax.random.key(0))
    except SHAPE_ERRORS as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"config.network (name = {name}) does not fit images of {image_shape}: {reason}") from error


def build_loss(config: Config, model: Model, prepare: Preprocessing) -> Loss:
    """Build the training loss that config.training.objective names."""
    training = config.training
    loss = resolve(
        registries.LOSSES, Component(training.objective), "config.training.objective",
        model=model, times=build_times(config, model), prepare=prepare, num_classes=prepare.conditioning.num_classes,
        scaling=prepare.scaling, dequantised=prepare.dequantised, learn_sigma=config.model.learn_sigma,
        class_conditional=config.model.class_conditional, options=training,
    )  # fmt: skip
    loss = aligned(loss, training)
    if not getattr(loss, "spans", False):
        unused(training, *(field.name for field in dataclasses.fields(training) if field.name.startswith("flow_map")))
        unused(training, "teacher")
    for name in ("span", "consistency"):
        if getattr(config.model, name) and not getattr(loss, "spans", False):
            raise UserError(
                f"config.model.{name} is True, but training.objective = {training.objective} knows of one time alone: "
                "leave it False, or train training.objective = flow_map."
            )
    if training.snapshot_sampling and loss.produces != "denoiser":
        raise UserError(
            f"config.training.snapshot_sampling is True, but training.objective = {training.objective} makes a "
            f"{loss.produces}, which has no samples: set it False."
        )
    return loss


def build_times(config: Config, model: Model) -> TimeSampler:
    """Say which times training looks at."""
    training, section = config.training, config.training.time_sampler
    if training.importance_weighting:
        if section.name not in ("uniform", "log_snr"):
            raise UserError(
                "config.training.importance_weighting is True, but config.training.time_sampler.name is "
                f"{section.name!r}: give one of them."
            )
        section = Component("log_snr")
    return resolve(
        registries.TIME_SAMPLERS, section, "config.training.time_sampler",
        path=model.path, t_min=training.smallest_time, t_max=training.largest_time,
    )  # fmt: skip
