"""The configs of score_sde, score_sde_pytorch and score_flow (one schema) in our terms."""

import math
from collections.abc import Mapping
from typing import Any

from score_flow.config.former import CORRECTORS, FOLDERS, NCSNPP, PREDICTORS, TFDS, WITHOUT
from score_flow.config.loading import flatten
from score_flow.errors import UserError, check_choice

# Settings that mean the same here, by their name there and here.
SAME = {
    "seed": "seed",
    **{f"data.{k}": f"data.{k}" for k in ("centered", "random_flip", "uniform_dequantization")},
    **{
        f"training.{k}": f"training.{k}"
        for k in (
            "batch_size", "n_iters", "n_jitted_steps", "log_freq", "eval_freq", "snapshot_freq",
            "snapshot_freq_for_preemption", "snapshot_sampling", "reduce_mean", "likelihood_weighting",
            "importance_weighting",
        )
    },
    **{f"optim.{k}": f"optim.{k}" for k in ("optimizer", "lr", "beta1", "eps", "warmup", "grad_clip", "weight_decay")},
    **{
        f"eval.{k}": f"eval.{k}"
        for k in (
            "batch_size", "begin_ckpt", "end_ckpt", "num_samples", "num_repeats", "bpd_dataset", "enable_loss",
            "enable_sampling", "enable_bpd",
        )
    },
}  # fmt: skip
DDPM = {k: NCSNPP[k] for k in (
    "nf", "ch_mult", "num_res_blocks", "dropout", "attn_resolutions", "nonlinearity", "conditional", "resamp_with_conv"
)}  # fmt: skip
NCSN = {"nf": "width", "nonlinearity": "nonlinearity", "normalization": "normalization"}
# Their name of a network -> ours, the settings that it has, and further arguments.
NETWORKS = {
    "ncsnpp": ("ncsnpp", NCSNPP, {}),
    "ddpm": ("ddpm", DDPM, {}),
    "ncsn": ("ncsn", {k: NCSN[k] for k in ("nf", "nonlinearity")}, {}),
    "ncsnv2_64": ("ncsnv2", NCSN, {"resolution": 64}),
    "ncsnv2_128": ("ncsnv2", NCSN, {"resolution": 128}),
    "ncsnv2_256": ("ncsnv2", NCSN, {"resolution": 256}),
}
TORCH_REFINENET = {"interpolation": "bilinear_align_corners", "unbiased": True, "narrow_refinement": True}
# What two of their files leave out of the ends of a process that is not theirs.
DEFAULTS = {"beta_min": 0.1, "beta_max": 20.0, "sigma_min": 0.01, "sigma_max": 50.0}

# Settings without a counterpart, and why nothing is lost; the value that they may have, where another would be.
DROPPED = WITHOUT | {
    "data.tfrecords_path": "a path of theirs",
    "eval.ckpt_id": "eval.begin_ckpt and eval.end_ckpt say it",
    "model.sigma_begin": "never read: model.sigma_max decides",
    "sampling.noise_removal": "the last step always returns its mean",
    "deq.dropout": "of the variational dequantiser, which is trained by itself",
    "deq.ema_rate": "of the variational dequantiser",
    "deq.n_iters": "of the variational dequantiser",
    "deq.offset": "of the variational dequantiser",
    "eval.bound": "of the variational bound",
    "eval.dsm": "of the variational bound",
    "eval.offset": "of the variational bound",
    "eval.dequantizer": "of the variational dequantiser",
}
ONLY = {
    "model.attention_type": "ddpm", "model.conv_size": 3, "model.data_init": False, "model.trainable_embedding": False,
    "sampling.noise_removal": True, "sampling.probability_flow": False, "optim.amsgrad": False,
    "eval.dequantizer": False,
}  # fmt: skip
MISSPELT = {"training.loss": "training.sde", "training.continuouse": "training.continuous"}  # in two of their recipes
READ = (
    "model.name", "model.num_scales", "model.ema_rate", "model.sigma_min", "model.sigma_max", "model.beta_min",
    "model.beta_max", "model.scale_by_sigma", "model.interpolation", "model.normalization", "model.trainable_embedding",
    "data.dataset", "data.image_size", "data.num_channels", "data.channels", "training.sde", "training.continuous",
    "training.smallest_time", "sampling.method", "sampling.predictor", "sampling.corrector", "sampling.snr",
    "sampling.n_steps_each", "sampling.probability_flow", "sampling.smallest_time",
)  # fmt: skip


def translate(settings: Mapping[str, Any], torch: bool = False) -> dict[str, Any]:
    """Overrides of our config from one of theirs, as nested mappings; raises UserError for what has no counterpart.

    `torch`: it is score_sde_pytorch's, where NCSNv2 differs in detail and EMA rates warm up.
    """
    theirs = flatten(dict(settings))
    theirs |= {right: theirs.pop(wrong) for wrong, right in MISSPELT.items() if wrong in theirs}
    for key, value in theirs.items():
        check_choice(
            "a setting of the reference config", key, {*SAME, *DROPPED, *READ, *(f"model.{k}" for k in NCSNPP)}
        )
        if key in ONLY and value != ONLY[key]:
            raise UserError(f"{key} of the reference config is {value!r}; only {ONLY[key]!r} has a counterpart.")
    ours = {SAME[key]: value for key, value in theirs.items() if key in SAME}
    name = theirs["model.name"]
    check_choice("model.name of the reference config", name, NETWORKS)
    ours |= _network(theirs, name, torch) | _process(theirs, name, torch) | _data(theirs) | _sampling(theirs)
    return ours | {"model.ema_rate": (float(theirs["model.ema_rate"]),), "model.ema_warmup": torch}


def _network(theirs: dict[str, Any], name: str, torch: bool) -> dict[str, Any]:
    ours, fields, fixed = NETWORKS[name]
    network = {"network.name": ours} | {f"network.{k}": v for k, v in fixed.items()}
    network |= {f"network.{fields[k]}": theirs[f"model.{k}"] for k in fields if f"model.{k}" in theirs}
    if ours in ("ncsnpp", "ddpm") and theirs.get("model.normalization", "GroupNorm") != "GroupNorm":
        raise UserError(f"model.normalization of the reference config is {theirs['model.normalization']!r} in a U-Net.")
    if ours == "ncsn":
        network["network.num_scales"] = theirs["model.num_scales"]
    if ours in ("ncsn", "ncsnv2"):
        flax = {"interpolation": theirs.get("model.interpolation", "bilinear")}
        network |= {f"network.{k}": v for k, v in (TORCH_REFINENET if torch else flax).items()}
    if ours == "ncsnv2" and torch and theirs["model.normalization"] == "InstanceNorm":
        network["network.norm_out_epsilon"] = float(theirs["model.num_scales"])
    return network


def _process(theirs: dict[str, Any], name: str, torch: bool) -> dict[str, Any]:
    """Return the path, what the network predicts and is told of the time, and the law of t in training."""
    sde, continuous, n = theirs["training.sde"], theirs["training.continuous"], theirs["model.num_scales"]
    check_choice("training.sde of the reference config", sde, ("vesde", "vpsde", "subvpsde"))
    divided = theirs.get("model.scale_by_sigma", False) or (torch and name.startswith("ncsnv2"))
    if divided and sde != "vesde":
        raise UserError(f"model.scale_by_sigma of the reference config is True with training.sde {sde!r}.")
    betas = {f"path.{end}": float(theirs.get(f"model.{end}", DEFAULTS[end])) for end in ("beta_min", "beta_max")}
    sigmas = {f"path.{end}": float(theirs.get(f"model.{end}", DEFAULTS[end])) for end in ("sigma_min", "sigma_max")}
    fourier = theirs.get("model.embedding_type") == "fourier" and name == "ncsnpp"
    smallest = theirs.get("training.smallest_time", 1e-5)
    uniform = {"training.time_sampler.name": "uniform", "training.smallest_time": smallest}
    levels = {"training.time_sampler.name": "grid", "training.time_sampler.n": n, "training.smallest_time": 0.0}
    if sde == "vesde":
        if fourier and not continuous:
            raise UserError("a discrete VE network with Fourier features embeds log 0: it has no counterpart.")
        kind = ("log_sigma" if fourier else "sigma", 1.0) if continuous else ("1-t", n - 1.0)
        law = uniform if continuous else levels | {"training.time_sampler.closed": True}
        process = {"path.name": "ve", "model.prediction": "scaled_score" if divided else "score"} | sigmas | law
        return process | {"model.time": kind[0], "model.time_scale": kind[1], "model.time_shift": 0.0}
    process = {"model.prediction": "noise", "model.time": "t"}
    if sde == "vpsde" and not continuous:
        # Step i of their chain is at t = (i + 1)/n of ours.
        chain = {"path.name": "ddpm", "path.schedule": "linear", "path.n": n}
        return process | chain | betas | levels | {"model.time_scale": float(n), "model.time_shift": -1.0}
    process |= {"path.name": sde.removesuffix("sde")} | betas | uniform
    if fourier:  # log(999 t)
        return process | {"model.time": "log_t", "model.time_scale": 1.0, "model.time_shift": math.log(999.0)}
    return process | {"model.time_scale": 999.0, "model.time_shift": 0.0}


def _data(theirs: dict[str, Any]) -> dict[str, Any]:
    """Return the data set: one that tfds prepared at one size, or a folder of images, cropped and resized when read."""
    dataset, size = theirs["data.dataset"], theirs["data.image_size"]
    channels = theirs.get("data.num_channels", theirs.get("data.channels", 3))
    check_choice("data.dataset of the reference config", dataset, (*TFDS, *FOLDERS))
    data = {"data.image_shape": (size, size, channels), "data.num_classes": 0, "data.levels": 256}
    data |= {"model.input": "none" if theirs["data.centered"] else "2x-1"}
    if dataset in TFDS:
        return data | {"data.source.name": "tfds", "data.source.dataset": TFDS[dataset]}
    return data | {"data.source.name": "folder", "data.source.image_size": size}


def _sampling(theirs: dict[str, Any]) -> dict[str, Any]:
    """Their two samplers: predictor-corrector, and the probability flow by Dormand-Prince at 1e-5."""
    discrete_vp = theirs["training.sde"] == "vpsde" and not theirs["training.continuous"]
    # Their 1e-3 is the first step of the chain, whose own last step goes to 0 here.
    default = 0.0 if discrete_vp else 1e-5 if theirs["training.sde"] == "vesde" else 1e-3
    t_min = theirs.get("sampling.smallest_time", default)
    method = theirs.get("sampling.method", "pc")
    check_choice("sampling.method of the reference config", method, ("pc", "ode"))
    if method == "ode":
        tolerances = {"sampling.rtol": 1e-5, "sampling.atol": 1e-5}
        return {"sampling.name": "ode", "sampling.method": "dopri5", "sampling.t_min": t_min or 1e-3} | tolerances
    predictor = theirs.get("sampling.predictor", "euler_maruyama")
    corrector = theirs.get("sampling.corrector", "none")
    check_choice("sampling.predictor of the reference config", predictor, PREDICTORS)
    check_choice("sampling.corrector of the reference config", corrector, CORRECTORS)
    return {
        "sampling.name": "predictor_corrector",
        "sampling.t_min": t_min,
        "sampling.n_steps": theirs["model.num_scales"],
        "sampling.predictor": PREDICTORS[predictor],
        "sampling.corrector": CORRECTORS[corrector],
        "sampling.snr": theirs["sampling.snr"],
        "sampling.n_corrector_steps": theirs["sampling.n_steps_each"],
    }
