"""From a configuration to the objects of a run: with main.py, train.py and train_deq.py the only reader of configs."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from score_flow.classification import Classification
from score_flow.components import Component, call, resolve
from score_flow.conditioning import Conditioning
from score_flow.data.base import Source
from score_flow.data.scaling import Scaling, random_flip
from score_flow.model import Model, Preconditioning
from score_flow.networks.classifier import WideResNet
from score_flow.objective import WEIGHTINGS, Objective, min_snr
from score_flow.options import Config, DataOptions
from score_flow.pixels import Pixels, by_key, pixels_of, to_model
from score_flow.prediction import PREDICTIONS, edm
from score_flow.sharding import make_mesh
from score_flow.times import TIME_SAMPLERS, TimeSampler
from score_flow.training import Loss, Preprocess, make_optimiser
from score_flow.types import Batch, Condition, Images, Key, Keys, Params, UserError, check_choice
from score_flow.variational import VariationalBound


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config decides, built: shared by training, sampling and evaluation."""

    model: Model
    objective: Loss
    optimiser: optax.GradientTransformation
    open_source: Callable[[str], Source]  # the data set's split; opened when first needed
    image_shape: tuple[int, int, int]
    scaling: Scaling
    conditioning: Conditioning
    preprocess: Preprocess
    dequantised: bool  # whether the model's data have noise inside their level
    mesh: Mesh
    seed: int
    latent: bool = False  # whether the model makes latents instead of pixels
    autoencoder: str = ""  # ... the folder of theirs

    @property
    def trained(self) -> nn.Module:
        """The network whose parameters training finds."""
        return self.model.network

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
    open_source = functools.cache(functools.partial(_open, data))
    declared = data if data.image_shape else open_source("train")
    image_shape = tuple(declared.image_shape)
    conditioning = build_conditioning(config, declared.num_classes)
    model = build_model(config, image_shape[-1], conditioning)
    latent = is_latent(config)
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
        objective=build_objective(config, model, declared.levels),
        optimiser=optimiser,
        open_source=open_source,
        image_shape=image_shape,
        scaling=scaling,
        conditioning=conditioning,
        preprocess=make_preprocess(scaling, dequantised, data.random_flip, conditioning),
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


def build_conditioning(config: Config, num_classes: int) -> Conditioning:
    """What the network is told besides x and t; num_classes is the data set's."""
    options, classifies = config.model, config.training.objective == "classifier"
    if (options.class_conditional or classifies) and not num_classes:
        what = "training.objective is classifier" if classifies else "model.class_conditional is True"
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


def build_network(config: Config, channels: int, conditioning: Conditioning) -> nn.Module:
    """The network that config.network names; the classifier is the one that a classifier may be."""
    offered = {"num_classes": conditioning.num_classes, "super_resolution": conditioning.low_res > 0}
    if config.training.objective == "classifier":
        check_choice("config.network.name (training.objective = classifier)", config.network.name, ["classifier"])
        return call(WideResNet, config.network, "config.network", **offered)
    if config.model.learn_sigma:
        offered["out_channels"] = 2 * channels
    return resolve("score_flow.networks", config.network, "config.network", **offered)


def build_objective(config: Config, model: Model, levels: int = 256) -> Loss:
    """The training loss, for data of so many pixel levels."""
    training, times = config.training, build_times(config, model)
    if training.objective == "classifier":
        return build_classification(config, model, times)
    weighting = "likelihood" if training.likelihood_weighting else training.weighting
    classes = model.network.num_classes
    return Objective(
        model,
        times,
        min_snr(training.min_snr_gamma) if weighting == "min_snr" else WEIGHTINGS[weighting],
        "mean" if training.reduce_mean else "sum",
        training.label_dropout if classes else 0.0,
        classes,
        training.objective,
        None if training.objective == "simple" else build_bound(config, model, times.times, levels),
        training.vlb_weight,
        training.coupling,
    )


def build_times(config: Config, model: Model) -> TimeSampler:
    """Which times training looks at."""
    training = config.training
    name = "log_snr" if training.importance_weighting else training.time_sampler.name
    check_choice("config.training.time_sampler.name", name, TIME_SAMPLERS)
    section = Component(name) if training.importance_weighting else training.time_sampler
    return call(
        TIME_SAMPLERS[name], section, "config.training.time_sampler",
        path=model.path, t_min=training.smallest_time, t_max=training.largest_time,
    )  # fmt: skip


# What a classifier has no use for: it is told x and t alone, and makes no images.
NOT_FOR_CLASSIFIERS = ("model.class_conditional", "model.low_res", "model.learn_sigma", "training.snapshot_sampling")


def build_classification(config: Config, model: Model, times: TimeSampler) -> Classification:
    """The loss of a classifier; raises UserError for what only models of images have."""
    for key in NOT_FOR_CLASSIFIERS:
        section, name = key.split(".")
        if value := getattr(getattr(config, section), name):
            raise UserError(f"config.{key} is {value}; training.objective = classifier needs it off.")
    if config.training.coupling != "independent":
        raise UserError("config.training.coupling must be independent for training.objective = classifier.")
    return Classification(model, times)


def build_bound(config: Config, model: Model, times: tuple[float, ...], levels: int) -> VariationalBound:
    """The variational bound of the chain at the times that training draws from."""
    training, objective = config.training, f"config.training.objective = {config.training.objective}"
    if not times:
        raise UserError(
            f"{objective} needs a chain: set config.training.time_sampler.name to grid or loss_second_moment."
        )
    if config.data.uniform_dequantization:
        raise UserError(f"{objective} bounds the likelihood of levels: set config.data.uniform_dequantization=False.")
    if (training.variance in ("range", "log")) != config.model.learn_sigma:
        allowed = "range or log" if config.model.learn_sigma else "small or large"
        raise UserError(
            f"{objective} with config.model.learn_sigma = {config.model.learn_sigma} needs config.training.variance = "
            f"{allowed}, got {training.variance!r}."
        )
    low = -1.0 if config.data.centered else 0.0
    return VariationalBound(model.path, times, training.variance, training.decoder, low, 1.0, levels)


def build_sampler(config: Config) -> Callable:
    """The sampler that config.sampling names."""
    return resolve("sampling", config.sampling, "config.sampling")


def make_preprocess(scaling: Scaling, dequantise: bool, flip: bool, conditioning: Conditioning) -> Preprocess:
    """(key, batch of levels or moments of latents) -> (x0, condition), inside the compiled step."""

    of_levels = make_levels(scaling, flip, conditioning)

    def preprocess(key: Key, batch: Batch) -> tuple[Images, Condition]:
        noise_key, flip_key = jax.random.split(key)
        data, condition = of_levels(flip_key, batch)
        return to_model(scaling, dequantise, data, lambda law, shape: law(noise_key, shape)), condition

    return preprocess


def make_levels(
    scaling: Scaling, flip: bool, conditioning: Conditioning
) -> Callable[[Key, Batch], tuple[Array, Condition]]:
    """(key, uint8 batch) -> (the levels, mirrored at random; their condition)."""

    def levels(key: Key, batch: Batch) -> tuple[Array, Condition]:
        image = batch["image"]
        if flip:
            image = random_flip(jax.random.split(key, image.shape[0]), image)
        return image, conditioning.of(batch | {"image": image}, scaling)

    return levels
