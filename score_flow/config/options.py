"""Every field of a config: its default, what it means, what it may be. The one schema of files, flags and --help."""

# ruff: noqa: RUF009 - every default is immutable

import dataclasses
from collections.abc import Iterator
from typing import Any, get_type_hints

from score_flow.config import registries
from score_flow.config.components import Component
from score_flow.config.evaluation import EvalOptions, GuidanceOptions
from score_flow.config.limits import DTYPES
from score_flow.config.sections import WIDEST_EMA, Section, option, plug_in


@dataclasses.dataclass(frozen=True)
class ModelOptions(Section):
    """What a network's output means, what it is told, and the averages of its weights."""

    prediction: str = option("velocity", "the network's output", among=registries.PREDICTIONS)
    time: str = option(
        "t", "what the network is told of the time", among=("t", "1-t", "log_t", "log_sigma", "sigma", "log_snr")
    )
    time_scale: float = option(999.0, "... times this")
    time_shift: float = option(0.0, "... plus this")
    input: str = option("none", "scaling of the network's input", among=("none", "2x-1", "unit_variance"))
    data_std: float = option(0.5, "standard deviation of the data, for unit_variance and edm", above=0)
    precision: str = option(
        "float32", "what the network computes in; parameters, norms, softmax, losses and integrals stay in float32",
        **DTYPES,
    )  # fmt: skip
    class_conditional: bool = option(False, "give the labels of the data to the network")
    low_res: int = option(
        0, "super-resolution: give the image at this many pixels a side to the network; 0 = no", least=0
    )
    learn_sigma: bool = option(
        False, "twice the output channels: the second half is a variance (unused by interpolants)"
    )
    span: bool = option(False, "tell the network of two times: what a flow map needs (training.objective = flow_map)")
    consistency: bool = option(
        False, "a consistency model: it knows of each (x, t) the jump to t = 0 alone (sampling.consistency)"
    )
    guidance: bool = option(
        False, "tell the network of the guidance scale, of those of training.flow_map_guidance: one call a step"
    )
    ema_rate: tuple = option(
        (0.9999,), "one average of the weights for each rate; evaluation uses the first",
        each=float, least=0, below=1, fewest=1,
    )  # fmt: skip
    ema_std: tuple = option(
        (), "after them, one by powers of the step for each width, a share of the run: 0.05, 0.1 (EDM2)",
        each=float, above=0, most=WIDEST_EMA,
    )  # fmt: skip
    ema_warmup: bool = option(True, "min(rate, (1 + n)/(10 + n)): short runs are not averaged with their start")


@dataclasses.dataclass(frozen=True)
class DataOptions(Section):
    """Where images come from, and how they become what a model sees."""

    source: Component = plug_in(registries.SOURCES, "digits", "the data set, a file of score_flow/data")
    image_shape: tuple = option(
        (), "(h, w, c) of its images; given, what reads none (sampling, importing, planning) needs no data set",
        each=int, least=1, lengths=(0, 3),
    )  # fmt: skip
    num_classes: int = option(0, "... and how many classes and", least=0)
    levels: int = option(
        256, "... pixel levels it has (0: none, real numbers); without image_shape the data set says so",
        least=0, most=256,
    )  # fmt: skip
    range: tuple = option((), "... the lowest and the highest of its real numbers", each=float, lengths=(0, 2))
    centered: bool = option(True, "pixels in [-1, 1] instead of [0, 1]")
    inset: bool = option(False, "levels in the middle of cells of that range, the first and last not at its ends (VDM)")
    random_flip: bool = option(False, "mirror images left to right at random")
    random_crop: int = option(0, "shift images at random by up to so many pixels, in training", least=0, most=1024)
    augment: float = option(
        0.0, "probability of each of EDM's augmentations, in training; the network is told of them (.12 on CIFAR-10)",
        least=0, most=1,
    )  # fmt: skip
    uniform_dequantization: bool = option(True, "train on pixels with uniform noise added inside their level")


@dataclasses.dataclass(frozen=True)
class TrainOptions(Section):
    """The loss, the batches and how often what is logged, saved and drawn."""

    batch_size: int = option(
        128, "global: it is divided among all devices of all processes", least=1, most=2**24
    )
    microbatches: int = option(
        1, "gradients by so many parts of the batch in turn: less memory, the same result but for dropout's masks",
        least=1, most=2**24,
    )  # fmt: skip
    n_iters: int = option(100_000, "optimiser steps in all", least=1, most=2**31 - 1)
    n_jitted_steps: int = option(1, "steps in one compiled program; changes speed, not results", least=1, most=10_000)
    log_freq: int = option(50, "steps between logged losses", least=1)
    eval_freq: int = option(1000, "steps between losses on a test batch; 0 = never", least=0)
    snapshot_freq: int = option(
        50_000, "steps between milestone checkpoints (checkpoints/), all kept; 0 = only at the end", least=0
    )
    snapshot_freq_for_preemption: int = option(
        5000, "steps between resumable checkpoints (checkpoints-meta/), newest two kept", least=0
    )
    save_minutes: float = option(
        15.0, "... and at the latest so many minutes after the last save; 0 = by steps alone", least=0, most=1e6
    )
    snapshot_sampling: bool = option(True, "draw a sheet of samples at each milestone")
    init: str = option("", "a new run begins with weights of WORKDIR[:STEP] (its first average) or a published file")
    accept: tuple = option((), "keys in which this command goes on otherwise than its state: ('batch_size',)", each=str)
    objective: str = option(
        "simple", "simple (weighted squared error), uncertainty or contrastive (made of it), vlb (bound of a chain), "
        "hybrid (simple and vlb), flow_map, classifier",
        among=registries.LOSSES,
    )  # fmt: skip
    vlb_weight: float = option(
        1e-3, "hybrid: weight of the bound, which trains only the variance, beside a mean square", least=0
    )
    contrast: float = option(
        0.05, "contrastive: weight of the squared distance from the velocity of another example", least=0, below=1
    )
    flow_map: str = option(
        "meanflow", "flow_map: what it is trained on: meanflow, improved (iMF), shortcut or consistency",
        among=("meanflow", "improved", "shortcut", "consistency"),
    )  # fmt: skip
    flow_map_equal: float = option(
        0.5, "flow_map: share of a batch at equal times, where it is the velocity", least=0, most=1
    )
    flow_map_whole: float = option(
        0.0, "flow_map: share of the others that are the ends of time, the jump of one call", least=0, most=1
    )
    flow_map_power: float = option(1.0, "flow_map: p of the weight 1/(|error|^2 + .01)^p of each example", least=0)
    flow_map_guidance: tuple = option(
        (1.0, 1.0), "flow_map: (least, largest) scale of classifier-free guidance whose flow it learns; 1 = none",
        each=float, least=1, lengths=(2,),
    )  # fmt: skip
    teacher: str = option("", "flow_map: workdir of a trained model, whose flow is learnt in the place of the data's")
    variance: str = option(
        "range", "of a step, for the bound: small, large, or learned (model.learn_sigma): range, log",
        among=("small", "large", "range", "log"),
    )  # fmt: skip
    decoder: str = option(
        "tanh", "normal distribution function of the bound's first step: tanh (as published) or exact",
        among=("tanh", "exact"),
    )  # fmt: skip
    weighting: str = option("simple", "of the squared error", among=registries.WEIGHTINGS)
    min_snr_gamma: float = option(5.0, "of weighting = min_snr", above=0)
    velocity_clip: float = option(0.05, "of weighting = clipped_velocity: least sigma/det", above=0)
    second_order: float = option(
        0.0, "simple: weight of how far the squared error is off what the divergence of the network says (i-DODE: .1)",
        least=0,
    )  # fmt: skip
    cosine: float = option(
        0.0, "simple: weight of 1 - cos(v', v) over channels beside the squared error, in training (LightningDiT: 1)",
        least=0,
    )  # fmt: skip
    alignment: float = option(
        0.0, "simple: weight of -cos(a projection of a block's patches, stored features), in training (REPA: .5)",
        least=0,
    )  # fmt: skip
    alignment_block: int = option(8, "... the block, counted from 1", least=1)
    alignment_width: int = option(2048, "... hidden width of the projection, which is trained beside", least=1)
    likelihood_weighting: bool = option(False, "same as weighting = likelihood")
    time_sampler: Component = plug_in(
        registries.TIME_SAMPLERS, "uniform", "law of the times that training looks at (score_flow/process/times.py)"
    )
    importance_weighting: bool = option(
        False, "same as time_sampler = log_snr: unbiased, less noise with likelihood weighting"
    )
    smallest_time: float = option(1e-5, "t is drawn from [smallest_time, largest_time]", least=0, most=1)
    largest_time: float = option(1.0, "the noisy end of it", least=0, most=1)
    reduce_mean: bool = option(True, "mean of the squared error over pixels instead of half its sum")
    coupling: str = option(
        "independent", "of images and noise; ot: optimal transport within a batch, for flows only",
        among=("independent", "ot"),
    )  # fmt: skip
    non_finite: str = option(
        "stop", "loss or gradient: stop; skip the step; rollback to the last state saved by steps, with other batches",
        among=("stop", "skip", "rollback"),
    )  # fmt: skip
    logger: Component = plug_in(registries.LOGGERS, "none", "what is told of losses and samples besides metrics.jsonl")
    label_dropout: float = option(0.0, "probability of hiding a label, for classifier-free guidance", least=0, most=1)
    fsdp: int = option(
        False, "shard parameters, EMA and optimiser state: True over all devices, n in groups of n (of a node)",
        also=int, least=0,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class OptimOptions(Section):
    """The optimiser."""

    optimizer: str = option(
        "Adam", "Adam, AdamW, or Muon: orthogonal updates of hidden matrices at AdamW's lr, AdamW for the others",
        among=("Adam", "AdamW", "Muon"),
    )  # fmt: skip
    lr: float = option(2e-4, "learning rate, the highest: after warm-up", least=0, most=1e6)
    beta1: float = option(0.9, "decay of the mean gradient (momentum: of Muon's)", least=0, below=1)
    beta2: float = option(0.999, "decay of the mean square", least=0, below=1)
    eps: float = option(1e-8, "added to the root of the mean square", above=0)
    momentum: float = option(0.95, "Muon: decay of the mean gradient of hidden matrices", least=0, below=1)
    warmup: int = option(5000, "steps over which lr grows linearly from 0", least=0)
    schedule: str = option(
        "constant", "of lr after warm-up: constant, cosine or linear to 0 at training.n_iters, inverse_sqrt",
        among=("constant", "cosine", "inverse_sqrt", "linear"),
    )  # fmt: skip
    decay_start: int = option(
        0, "inverse_sqrt: the step from which lr falls, as sqrt(decay_start/step); 0 = warmup", least=0
    )
    grad_clip: float = option(1.0, "largest global norm of the gradient; 0 or less = no limit")
    weight_decay: float = option(0.0, "L2 (Adam) or decoupled (AdamW, Muon)", least=0)
    decay_on: str = option(
        "all", "what decoupled decay is on: all, or matrices (no biases, norms, embeddings)", among=("all", "matrices")
    )


@dataclasses.dataclass(frozen=True)
class DeqOptions(Section):
    """The training of a dequantiser."""

    n_iters: int = option(0, "steps of --mode=train_deq; 0 = as many as training.n_iters", least=0)
    ema_rate: float = option(0.99, "of the dequantiser's weights", least=0, below=1)
    score_step: int = option(0, "step of the milestone whose model it is trained for; 0 = the newest", least=0)
    centred: bool = option(False, "cells around exact levels, as those of data.inset; else they fill the range")


@dataclasses.dataclass(frozen=True)
class Config(Section):
    """All of a run's settings, checked; `build` turns them into objects."""

    seed: int = option(0, "every random number of the run is folded from it", least=0, below=2**32)
    path: Component = plug_in(registries.PATHS, "linear", "the process, a file of score_flow/paths")
    network: Component = plug_in(
        (registries.NETWORKS, registries.CLASSIFIERS),
        "ncsnpp",
        "the network, a file of score_flow/networks",
    )
    model: ModelOptions = dataclasses.field(default_factory=ModelOptions)
    data: DataOptions = dataclasses.field(default_factory=DataOptions)
    training: TrainOptions = dataclasses.field(default_factory=TrainOptions)
    optim: OptimOptions = dataclasses.field(default_factory=OptimOptions)
    dequantizer: Component = plug_in(
        registries.DEQUANTISERS, "auto",
        "what --mode=train_deq trains: a Flow++ network by its name (auto: by the size of images), with its fields",
    )  # fmt: skip
    deq: DeqOptions = dataclasses.field(default_factory=DeqOptions)
    sampling: Component = plug_in(
        registries.SAMPLERS, "ode", "the sampler, a file of sampling/",
        t_min=1e-5, t_max=1.0, method="tsit5", rtol=1e-4, atol=1e-4,
    )  # fmt: skip
    guidance: GuidanceOptions = dataclasses.field(default_factory=GuidanceOptions)
    control: Component = plug_in(
        registries.CONTROLS, "inpaint",
        "of --mode=control, what is known of the samples: a file of sampling/control/ with its fields (input, ...)",
    )  # fmt: skip
    eval: EvalOptions = dataclasses.field(default_factory=EvalOptions)


def fields(section: type = Config, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """("training.batch_size", its field) of every field and plug-in of the schema, in order."""
    types = get_type_hints(section)
    for field in dataclasses.fields(section):
        kind = types[field.name]
        if issubclass(kind, Section):
            yield from fields(kind, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field


def make(values: dict[str, Any], section: type = Config, prefix: str = "") -> Any:
    """The section of the values of its fields by their dotted names; those that are missing have their defaults."""
    types, given = get_type_hints(section), {}
    for field in dataclasses.fields(section):
        name = f"{prefix}{field.name}"
        if issubclass(types[field.name], Section):
            given[field.name] = make(values, types[field.name], f"{name}.")
        elif name in values:
            given[field.name] = values[name]
    return section(**given)


SCHEMA = dict(fields())
