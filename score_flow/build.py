"""From a configuration to the objects of a run: with main.py, train.py and train_deq.py the only reader of configs."""

import dataclasses
import functools
import importlib
from collections.abc import Callable

import flax.errors
import flax.linen as nn
import jax
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from score_flow.components import Component, call, check, find, resolve
from score_flow.conditioning import Conditioning
from score_flow.config import values_of
from score_flow.data.base import Source
from score_flow.data.scaling import Scaling
from score_flow.grid import choose
from score_flow.hints import parameters_of
from score_flow.limits import available
from score_flow.model import Model, Preconditioning
from score_flow.networks.classifier import WideResNet
from score_flow.objective import Loss, Product
from score_flow.options import SCHEMA, Config, DataOptions, make
from score_flow.pixels import Pixels, by_key, pixels_of, to_model
from score_flow.prediction import PREDICTIONS, edm
from score_flow.preprocessing import Preprocessing
from score_flow.sharding import make_mesh
from score_flow.times import TIME_SAMPLERS, TimeSampler
from score_flow.training import make_optimiser
from score_flow.types import Batch, Condition, Images, Key, Keys, Params, UserError, check_choice

# What flax, jax and a network's own arithmetic raise where shapes do not fit.
SHAPE_ERRORS = (flax.errors.FlaxError, TypeError, ValueError, ArithmeticError, LookupError, AssertionError)
LOSSES, NETWORKS = "score_flow.losses", "score_flow.networks"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config decides, built: shared by training, sampling and evaluation."""

    model: Model
    loss: Loss
    optimiser: optax.GradientTransformation
    open_source: Callable[[str], Source]  # the data set's split; opened when first needed
    image_shape: tuple[int, int, int]
    scaling: Scaling
    conditioning: Conditioning
    dequantised: bool  # whether the model's data have noise inside their level
    mesh: Mesh
    seed: int
    latent: bool = False  # whether the model makes latents instead of pixels
    autoencoder: str = ""  # ... the folder of theirs

    @functools.cached_property
    def train_source(self) -> Source:
        return self.open_source("train")

    @functools.cached_property
    def test_source(self) -> Source:
        return self.open_source("test")

    @functools.cached_property
    def pixels(self) -> Pixels:
        """From samples to pixel levels; raises UserError without the autoencoder."""
        if self.latent and not self.autoencoder:
            raise UserError(
                "samples are latents: give --config.eval.autoencoder=FOLDER to decode them "
                "(training without it: --config.training.snapshot_sampling=False)."
            )
        return pixels_of(self.scaling, self.dequantised, self.autoencoder, self.mesh)

    @functools.cached_property
    def pixel_shape(self) -> tuple[int, int, int]:
        """Of a sample's pixels."""
        return self.pixels.shape(self.image_shape)

    def to_model(self, data: Array, keys: Keys) -> Images:
        """x0 of pixel levels or of moments of latents, the noise of each example by its own key."""
        return to_model(self.scaling, self.dequantised, data, by_key(keys))

    def init(self, key: Key) -> Params:
        """Parameters for one image."""
        return self.model.init(key, (1, *self.image_shape), self.example_condition(1))

    def condition(self, batch: Batch) -> Condition:
        """What the network is told about the examples of a batch."""
        return self.conditioning.of(batch, self.scaling)

    def example_condition(self, n: int) -> Condition:
        """A condition of the right shapes for n images."""
        return self.conditioning.example(n, self.image_shape[-1])


def experiment(config: Config) -> Experiment:
    """Everything that training, sampling and evaluation share."""
    data, training, optim = config.data, config.training, config.optim
    latent = is_latent(config)
    open_source = functools.cache(functools.partial(_open, data))
    declared = data if data.image_shape else open_source("train")
    image_shape = tuple(declared.image_shape)
    conditioning = build_conditioning(config, declared.num_classes)
    model = build_model(config, image_shape[-1], conditioning)
    check_shapes(model, image_shape, conditioning, config.network.name)
    dequantised = data.uniform_dequantization and not latent
    scaling = Scaling(-1.0 if data.centered else 0.0, 1.0, declared.levels)
    optimiser = make_optimiser(
        optim.optimizer,
        optim.lr,
        optim.beta1,
        optim.beta2,
        optim.eps,
        optim.warmup,
        optim.grad_clip,
        optim.weight_decay,
    )
    return Experiment(
        model=model,
        loss=build_loss(config, model, Preprocessing(scaling, conditioning, dequantised, data.random_flip)),
        optimiser=optimiser,
        open_source=open_source,
        image_shape=image_shape,
        scaling=scaling,
        conditioning=conditioning,
        dequantised=dequantised,
        mesh=make_mesh(training.fsdp),
        seed=config.seed,
        latent=latent,
        autoencoder=config.eval.autoencoder,
    )


def is_latent(config: Config) -> bool:
    """Whether the model makes latents; raises UserError for what they cannot have."""
    if config.data.source.name == "latents":
        for key, without in (
            ("data.random_flip", False), ("model.low_res", 0), ("training.objective", "simple"),
        ):  # fmt: skip
            section, name = key.split(".")
            if (value := getattr(getattr(config, section), name)) != without:
                raise UserError(
                    f"config.{key} is {value!r}; data.source.name = latents allows {without!r}"
                    + (" (--mode=encode mirrors the images)." if name == "random_flip" else ".")
                )
        return True
    return bool(config.eval.autoencoder)


def _open(data: DataOptions, split: str) -> Source:
    """A split of the data set, which must be what config.data declares, where it declares anything."""
    source = resolve("score_flow.data", data.source, "config.data.source", split=split)
    declared, got = (tuple(data.image_shape), data.levels), (tuple(source.image_shape), source.levels)
    if data.image_shape and declared != got:
        raise UserError(
            f"config.data declares images of shape {declared[0]} with {declared[1]} levels, "
            f"but {source.name} has {got[0]} with {got[1]}."
        )
    return source


def produced(objective: str) -> Product:
    """What training.objective makes: its file says so, unless that is a denoiser."""
    return getattr(importlib.import_module(f"{LOSSES}.{objective}"), "PRODUCES", "denoiser")


def build_conditioning(config: Config, num_classes: int) -> Conditioning:
    """What the network is told besides x and t, or a classifier learns; num_classes is the data set's."""
    options, classifies = config.model, produced(config.training.objective) == "classifier"
    if (options.class_conditional or classifies) and not num_classes:
        objective = f"training.objective is {config.training.objective}"
        what = objective if classifies else "model.class_conditional is True"
        raise UserError(f"config.{what}, but the data have no labels.")
    return Conditioning(num_classes if options.class_conditional or classifies else 0, options.low_res)


def build_model(config: Config, channels: int, conditioning: Conditioning) -> Model:
    """The static half: network, path, prediction and preconditioning, for images of so many channels."""
    options = config.model
    check_choice("config.model.prediction", options.prediction, PREDICTIONS)
    prediction = edm(options.data_std) if options.prediction == "edm" else PREDICTIONS[options.prediction]
    return Model(
        network=build_network(config, channels, conditioning),
        path=resolve("score_flow.paths", config.path, "config.path"),
        prediction=prediction,
        preconditioning=Preconditioning(
            options.time, options.time_scale, options.time_shift, options.input, options.data_std
        ),
    )


# What a network may be asked for: the argument of its `build`, and the option of config.model that asks.
ASKED = {"num_classes": "class_conditional", "super_resolution": "low_res", "out_channels": "learn_sigma"}


def build_network(config: Config, channels: int, conditioning: Conditioning) -> nn.Module:
    """The network that config.network names; a classifier is the one that a classifier may be.

    Raises UserError where the config asks for what the network has no argument for.
    """
    offered = {"num_classes": conditioning.num_classes, "super_resolution": conditioning.low_res > 0}
    if config.model.learn_sigma:
        offered["out_channels"] = 2 * channels
    section, objective = config.network, config.training.objective
    if produced(objective) == "classifier":
        check_choice(f"config.network.name (training.objective = {objective})", section.name, ["classifier"])
        build = WideResNet
    else:
        build = find(NETWORKS, section, "config.network")
    for argument in [argument for argument, value in offered.items() if value and argument not in parameters_of(build)]:
        builds = {name: find(NETWORKS, Component(name), "config.network") for name in available(NETWORKS)}
        able = ", ".join(name for name, other in builds.items() if argument in parameters_of(other))
        option = ASKED[argument]
        raise UserError(
            f"config.model.{option} is {getattr(config.model, option)}, which the network {section.name} cannot do: "
            f"it has no argument {argument}; networks that have: {able}."
        )
    network = call(build, section, "config.network", **offered)
    if getattr(network, "dtype", None) == "float64" and not jax.config.jax_enable_x64:
        raise UserError("config.network.dtype is 'float64': start with JAX_ENABLE_X64=1, or jax computes in float32.")
    return network


@functools.lru_cache(maxsize=64)
def check_shapes(model: Model, image_shape: tuple[int, ...], conditioning: Conditioning, name: str) -> None:
    """Raise UserError unless the network can be built for such images: traced once, nothing is computed."""
    condition = conditioning.example(1, image_shape[-1])
    try:
        jax.eval_shape(lambda key: model.init(key, (1, *image_shape), condition), jax.random.key(0))
    except SHAPE_ERRORS as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"config.network (name = {name}) does not fit images of {image_shape}: {reason}") from error


def build_loss(config: Config, model: Model, prepare: Preprocessing) -> Loss:
    """The training loss that config.training.objective names."""
    training = config.training
    loss = resolve(
        LOSSES, Component(training.objective), "config.training.objective",
        model=model, times=build_times(config, model), prepare=prepare, num_classes=prepare.conditioning.num_classes,
        scaling=prepare.scaling, dequantised=prepare.dequantised, learn_sigma=config.model.learn_sigma,
        class_conditional=config.model.class_conditional, options=training,
    )  # fmt: skip
    if training.snapshot_sampling and loss.produces != "denoiser":
        raise UserError(
            f"config.training.snapshot_sampling is True, but training.objective = {training.objective} makes a "
            f"{loss.produces}, which has no samples: set it False."
        )
    return loss


def build_times(config: Config, model: Model) -> TimeSampler:
    """Which times training looks at."""
    training, section = config.training, config.training.time_sampler
    if training.importance_weighting:
        if section.name not in ("uniform", "log_snr"):
            raise UserError(
                "config.training.importance_weighting is True, but config.training.time_sampler.name is "
                f"{section.name!r}: give one of them."
            )
        section = Component("log_snr")
    check_choice("config.training.time_sampler.name", section.name, TIME_SAMPLERS)
    return call(
        TIME_SAMPLERS[section.name], section, "config.training.time_sampler",
        path=model.path, t_min=training.smallest_time, t_max=training.largest_time,
    )  # fmt: skip


def check_components(config: Config) -> Config:
    """The config with the arguments of every plug-in as the types of its `build`; no file is read, no data opened.

    Raises UserError for a wrong name, type or value in any section, whether or not the mode at hand needs it.
    """
    sections = {key: field for key, field in SCHEMA.items() if isinstance(field.default, Component)}
    values = values_of(config)
    found = {
        key: check(field.metadata["limits"].among, values[key], f"config.{key}") for key, field in sections.items()
    }
    config = make(values | found)
    build_sampler(config)  # what depends on two arguments
    choose("config.eval.solver.grid", config.eval.solver.grid)
    return config


def build_sampler(config: Config) -> Callable:
    """The sampler that config.sampling names."""
    return resolve("sampling", config.sampling, "config.sampling")
