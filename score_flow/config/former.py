"""Keys that are named otherwise now: of older programs, which are understood, and of score_sde and score_flow.

Of the latter it is said what to write in their place. The names of networks' arguments, kernels and data sets are those
by which their configs are imported, too (score_flow/pretrained/layouts/score_sde_config.py).
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from score_flow.config.options import SCHEMA
from score_flow.errors import UserError

NCSNPP = {
    "nf": "width", "ch_mult": "channel_mult", "num_res_blocks": "num_res_blocks", "dropout": "dropout",
    "attn_resolutions": "attention_resolutions", "nonlinearity": "nonlinearity", "conditional": "conditional",
    "embedding_type": "embedding", "fourier_scale": "fourier_scale", "resblock_type": "resblock",
    "resamp_with_conv": "resamp_with_conv", "skip_rescale": "skip_rescale", "init_scale": "init_scale", "fir": "fir",
    "fir_kernel": "fir_kernel", "progressive": "progressive", "progressive_input": "progressive_input",
    "progressive_combine": "progressive_combine",
}  # fmt: skip
NETWORKS = {"ncsnpp": "ncsnpp", "ddpm": "ddpm", "ncsn": "ncsn"} | {
    f"ncsnv2_{size}": f"ncsnv2 --config.network.resolution={size}" for size in (64, 128, 256)
}
PREDICTORS = {
    "euler_maruyama": "euler", "reverse_diffusion": "reverse_diffusion", "ancestral_sampling": "ancestral", "none": "",
}  # fmt: skip
CORRECTORS = {"langevin": "langevin", "ald": "annealed_langevin", "none": ""}
TFDS = {"CIFAR10": "cifar10", "SVHN": "svhn_cropped", "ImageNet": "downsampled_imagenet/32x32"}
FOLDERS = ("CELEBA", "CelebAHQ", "FFHQ", "LSUN")
# What tells nothing here, and why nothing is lost.
WITHOUT = {
    "data.category": "which LSUN folder: data.source.path says it",
    "model.attention_type": "there was one kind",
    "model.conv_size": "never read",
    "model.data_init": "never read",
    "model.trainable_embedding": "the features of time are fixed",
    "optim.amsgrad": "never read",
    "eval.offset": "the job bound gives both, with it and without",
    "deq.offset": "the loss of a dequantiser has one form",
}


def _same(key: str) -> Callable[[str], str]:
    """The same value under another key."""
    return lambda value: f"{key}={value}"


def _dataset(name: str) -> str | None:
    if name == "CIFAR10":
        return "data.source.name=cifar10 --config.data.source.path=FOLDER"
    if name in TFDS:
        return f"data.source.name=tfds --config.data.source.dataset={TFDS[name]}"
    return "data.source.name=folder --config.data.source.path=FOLDER" if name in FOLDERS else None


def _num_scales(n: str) -> str:
    return f"sampling.n_steps={n}; the levels of training are --config.path.n={n} (of path.name = ddpm)"


# Their key -> what to write after --config.: by the value, or a function of it. Other values are the field's, if any.
FORMER: dict[str, dict[str, str] | Callable[[str], str | None]] = {
    "training.sde": {"vpsde": "path.name=vp", "subvpsde": "path.name=subvp", "vesde": "path.name=ve"},
    "training.continuous": {
        "True": "training.time_sampler.name=uniform",
        "False": "training.time_sampler.name=grid --config.training.time_sampler.n=1000 "
        "(with path.name = ddpm in place of vp)",
    },
    "model.name": {theirs: f"network.name={ours}" for theirs, ours in NETWORKS.items()},
    "model.scale_by_sigma": {"True": "model.prediction=scaled_score", "False": "model.prediction=score"},
    "model.num_scales": _num_scales,
    "model.sigma_begin": _same("path.sigma_max"),
    **{f"model.{end}": _same(f"path.{end}") for end in ("sigma_min", "sigma_max", "beta_min", "beta_max")},
    **{f"model.{theirs}": _same(f"network.{ours}") for theirs, ours in NCSNPP.items()},
    **{f"model.{name}": _same(f"network.{name}") for name in ("normalization", "interpolation")},
    "data.dataset": _dataset,
    "data.image_size": lambda n: f"data.image_shape=({n},{n},3), of a folder --config.data.source.image_size={n}",
    **{f"data.{name}": lambda n: f"data.image_shape=(32,32,{n})" for name in ("num_channels", "channels")},
    "data.tfrecords_path": lambda path: f"data.source.name=tfrecord --config.data.source.path={path}",
    "sampling.method": {"ode": "sampling.name=ode", "pc": "sampling.name=predictor_corrector"},
    "sampling.n_steps_each": _same("sampling.n_corrector_steps"),
    "sampling.noise_removal": _same("sampling.denoise"),
    "sampling.smallest_time": _same("sampling.t_min"),
    "eval.dataset": _same("eval.bpd_dataset"),
    "eval.ckpt_id": lambda n: f"eval.begin_ckpt={n} --config.eval.end_ckpt={n}",
    "eval.dequantizer": {"True": "eval.dequantizer=variational", "False": "eval.dequantizer=uniform"},
    "eval.bound": {"True": "eval.jobs=('bound',)", "False": "eval.jobs=()"},
    "eval.dsm": {"True": "eval.bound_form=dsm", "False": "eval.bound_form=ssm"},
    "deq.dropout": _same("dequantizer.dropout"),
}  # fmt: skip


# Ours of older programs -> its name now.
RENAMED = {"network.dtype": "model.precision"}


def renamed(settings: Mapping[str, Any], network: str, unsaid: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under the names that their keys have now; raises UserError for one that is given by both names.

    network: the one that they are for, unless they name another; one of another package has arguments of its own.
    unsaid: what a recipe has of keys that it does not set, as it has all.
    """
    own = "." not in str(settings.get("network.name", network))
    old = {key: new for key, new in RENAMED.items() if own and key in settings}
    for key, new in old.items():
        if new in settings and settings[new] != unsaid.get(new):
            raise UserError(f"config.{key} is the older name of config.{new}: give one of them.")
    return {old.get(key, key): value for key, value in settings.items() if key not in old.values()}


def as_it_ran(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run, in which an older program overlooked some beside others: as it understood them."""
    settings = renamed(settings, "", {})
    if settings.get("network.remat") is True and "." not in settings.get("network.name", ""):
        settings["network.remat"] = "full"
    if settings.get("training.likelihood_weighting"):
        settings["training.weighting"] = "likelihood"
    if settings.get("training.importance_weighting"):
        drawn = {key for key in settings if key.startswith("training.time_sampler.")}
        settings = {key: value for key, value in settings.items() if key not in drawn}
        settings["training.time_sampler.name"] = "log_snr"
    without_use = {
        "training.min_snr_gamma": settings.get("training.weighting") != "min_snr",
        "training.vlb_weight": settings.get("training.objective") != "hybrid",
        "training.label_dropout": not settings.get("model.class_conditional"),
    }
    settings |= {key: SCHEMA[key].default for key, unused in without_use.items() if unused and key in settings}
    return settings


def answer(key: str, value: Any) -> str | None:
    """What to say of a key, "model.nf", of score_sde; None where it is none, or its value is one of ours."""
    if key in WITHOUT:
        return f"config.{key} is score_sde's, and has no counterpart: {WITHOUT[key]}."
    if (found := FORMER.get(key)) is None:
        return None
    text = "".join(str(value).split()) or "VALUE"
    write = found.get({"true": "True", "false": "False"}.get(text, text)) if isinstance(found, dict) else found(text)
    return f"config.{key} is score_sde's: write --config.{write}." if write else _of_another_value(key)


def _of_another_value(key: str) -> str | None:
    """What to say of a value that is none of theirs: their values, unless the key is ours too."""
    found = FORMER[key]
    if key in ("sampling.method", "eval.dequantizer"):
        return None
    if not isinstance(found, dict):
        return f"config.{key} is score_sde's: write --config.data.source.name=NAME (docs/guide/data.md says which)."
    return f"config.{key} is score_sde's: write {'; '.join(f'for {a} --config.{b}' for a, b in found.items())}."


def expanded(overrides: list[str]) -> str | None:
    """What to say of a path that a shell has made many of, "train-{0000..0127}.tar" without quotes; None of others."""
    given = [word.partition("=") for word in overrides if word.startswith("--config.data.source.path=")]
    numbers = [re.findall(r"\d+", path) for _, _, path in given]
    alike = {re.sub(r"\d+", "#", path) for _, _, path in given}
    if len(given) < 2 or len(alike) > 1 or len({path for _, _, path in given}) < len(given):
        return None
    differing = [i for i, column in enumerate(zip(*numbers, strict=True)) if len({*column}) > 1]
    if len(differing) != 1:
        return None
    (key, _, path), last = given[0], numbers[-1][differing[0]]
    parts = re.split(r"(\d+)", path)
    at = 2 * differing[0] + 1
    parts[at] = f"{{{parts[at]}..{last}}}"
    return (
        f"{key.removeprefix('--')} is given {len(given)} times: the shell has made many paths of one. "
        f"Put it in quotes: {key}='{''.join(parts)}'."
    )
