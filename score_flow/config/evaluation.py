"""The sections of a config that sampling and evaluation read: part of the schema of options.py."""

# ruff: noqa: RUF009 - every default is immutable

import dataclasses

from score_flow.config import registries
from score_flow.config.components import Component
from score_flow.config.sections import SPLITS, WIDEST_EMA, Section, option, plug_in


@dataclasses.dataclass(frozen=True)
class GuidanceOptions(Section):
    """What samplers see of a model."""

    scale: float = option(1.0, "of classifier-free guidance, given + (scale - 1)(given - null); 1 = off", least=0)
    interval: tuple = option(
        (0.0, 1.0), "first and last time at which it acts", each=float, least=0, most=1, lengths=(2,)
    )
    rescale: float = option(
        0.0, "share of the guided x0 that gets the standard deviation of the unguided one", least=0, most=1
    )
    channels: int = option(0, "guide only the first so many channels; 0 = all", least=0)
    threshold: str = option(
        "none", "x0 stays in the data's range: none, static (clipped), dynamic (by its percentile)",
        among=("none", "static", "dynamic"),
    )  # fmt: skip
    percentile: float = option(0.995, "of |x0| over an image, for dynamic", least=0, most=1)
    temperature: float = option(
        1.0, "standard deviation of the noise that samples start from, relative to the prior's", least=0
    )
    classifier: str = option(
        "", "workdir of a classifier (training.objective) on the same path: guides to a label each"
    )
    classifier_scale: float = option(1.0, "... by score + classifier_scale grad log p(label | x_t); 0 = off", least=0)
    bad: str = option(
        "", "workdir of a worse model of the same data: `scale` extrapolates from it (autoguidance) instead"
    )


@dataclasses.dataclass(frozen=True)
class SolverOptions(Section):
    """How likelihoods and encodings integrate the probability flow."""

    method: str = option("bosh3", "the method of diffrax", among=registries.METHODS)
    rtol: float = option(7e-5, "relative tolerance of adaptive steps", above=0)
    atol: float = option(7e-5, "absolute tolerance of adaptive steps", above=0)
    n_steps: int = option(0, "0 = adaptive steps; else this many on `grid`, whatever their error is", least=0)
    grid: str = option("uniform", "uniform, quadratic, karras, log_snr, or the times: (1.0, ..., 1e-5)")
    per_example: bool = option(True, "adapt the steps of each image alone: results do not depend on the batch")
    max_steps: int = option(4096, "an image that takes more has not arrived", least=1)
    control: str = option(
        "pi", "of adaptive steps: pi, or integral (fewer calls, less exact)", among=registries.STEP_CONTROLS
    )


@dataclasses.dataclass(frozen=True)
class EvalOptions(Section):
    """What is evaluated, on what, and how."""

    enable_loss: bool = option(True, "the loss on the data set, by time")
    enable_sampling: bool = option(True, "draw num_samples samples and compare them with the data")
    enable_bpd: bool = option(True, "bits per dimension by the probability-flow ODE")
    dequantizer: str = option(
        "uniform", "of bits/dim: uniform, variational (of --mode=train_deq), decoder (of levels), truncated_normal",
        among=("uniform", "variational", "decoder", "truncated_normal"),
    )  # fmt: skip
    decoder_time: float = option(
        0.0, "t at which decoder and truncated_normal read levels off x; 0 = smallest_time", least=0, most=1
    )
    jobs: tuple = option((), "further jobs, by their file in evaluation/jobs/", each=str, among=registries.JOBS)
    only: tuple = option((), "these jobs alone, whatever else is asked for", each=str, among=registries.JOBS)
    batch_size: int = option(128, "global; changes speed, not results", least=1)
    num_samples: int = option(256, "how many samples are drawn", least=1, most=2**31 - 1)
    labels: tuple = option((), "classes of the samples, by number or name of the data set: (7, 'cat'); () = all")
    label_order: str = option(
        "in_turn", "... taken in_turn (balanced), or drawn: uniform (papers), frequencies (as in the training images)",
        among=("in_turn", "uniform", "frequencies"),
    )  # fmt: skip
    seeds: int = option(
        1, "of the job fid: its figures for seed, seed + 1, ..., so many, with mean and spread", least=1, most=100
    )
    sweep: tuple = option((), "scales of guidance that the job sweep compares: (1.0, 1.5, 2.0)", each=float, least=0)
    samples: str = option(
        "", "images that are there, to be judged in place of samples: a folder or zip of image files, an .npz"
    )
    save_png: bool = option(False, "write the samples as PNG files too, png/<number>_label<label>.png")
    low_res: str = option("", "what a super-resolution model refines: an .npz of images, as a base model's samples.npz")
    num_repeats: int = option(
        1, "passes over the data with new dequantisation noise and probes, for the loss and bpd", least=1
    )
    bpd_dataset: str = option("test", "split that the loss and bpd are computed on: train or test", among=SPLITS)
    num_images: int = option(
        0, "... on so many of its images, by a fixed permutation: no class or file comes first; 0 = all", least=0
    )
    begin_ckpt: int = option(0, "first and last milestone to evaluate, counted from 1;", least=0)
    end_ckpt: int = option(0, "0 = the newest", least=0)
    ema: int = option(0, "which average to evaluate, of model.ema_rate, then ema_std; -1 = the raw weights", least=-1)
    ema_std: float = option(
        0.0, "evaluate one of this width, made of all milestones' model.ema_std, instead; 0 = off",
        least=0, most=WIDEST_EMA,
    )  # fmt: skip
    smallest_time: float = option(1e-5, "the likelihood integrates from here to largest_time", least=0, most=1)
    largest_time: float = option(1.0, "the noisy end of it", least=0, most=1)
    probe: str = option(
        "rademacher", "of the divergence: rademacher, gaussian, exact", among=("rademacher", "gaussian", "exact")
    )
    n_probes: int = option(1, "random probes of the divergence for each image", least=1)
    vlb_steps: int = option(
        0, "of the job vlb: this many even times up to largest_time; 0 = the chain of training", least=0
    )
    vlb_variance: str = option(
        "small", "of a step, where training learned none for its bound: small or large", among=("small", "large")
    )
    vlb_clip: bool = option(True, "keep the estimate of x0 in the range of the data, as published")
    code_lanes: int = option(8, "of the job code: images coded side by side, each after others of its lane", least=1)
    code_cells: int = option(
        16, "cells of a latent in the smallest standard deviation that it is coded by: more cost initial bits",
        least=1, most=2**16,
    )  # fmt: skip
    code_file: str = option("", "a file of the job code, which decodes it instead")
    bound_form: str = option(
        "dsm", "of the job bound: dsm (denoising), or ssm (sliced, with the probes above)", among=("dsm", "ssm")
    )
    bound_importance: bool = option(True, "its times by the integrand's weight (even in log SNR) instead of even in t")
    bound_times: int = option(100, "draws of a time and noise for each image", least=1)
    extractor: Component = plug_in(
        registries.EXTRACTORS, "small",
        "of the features that samples are compared by: small; of a file of weights: inception, dinov2",
    )  # fmt: skip
    fid_dataset: str = option("train", "split that samples are compared with: train or test", among=SPLITS)
    stats: str = option("", "its statistics, an .npz file; default: workdir/stats/, where --mode=stats puts them")
    kept_features: int = option(10_000, "of each set at most, for KID, precision and recall", least=4)
    save_npz: bool = option(False, "the job fid writes its samples to samples.npz as ADM's evaluator reads them")
    autoencoder: str = option("", "folder of an AutoencoderKL whose latents the model makes: samples are decoded by it")
    encoder: str = option(
        "", "of --mode=encode: a file of DINOv2's weights, whose features are stored for training.alignment"
    )
    encoder_stride: int = option(16, "... pixels of an image for each of their patches, in both directions", least=1)
    solver: SolverOptions = dataclasses.field(default_factory=SolverOptions)
