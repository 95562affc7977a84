"""VDM's and i-DODE's checkpoints: flax msgpack of their TrainState, {"step", "params", "ema_params", "opt_state"}.

Both projects have one network (arXiv:2107.00630, arXiv:2305.03935). VDM learns the ends of a linear log SNR, which its
files hold: such a file says all that its network needs. i-DODE fixes them, and its files do not say what it predicts.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from score_flow.config.loading import flatten
from score_flow.errors import UserError, check_choice
from score_flow.model import Model
from score_flow.networks.vdm import VDM
from score_flow.paths.log_snr import LogSNR
from score_flow.pretrained.base import Checkpoint, Layout, Leaf, Project, Tensors, same

NETWORK = "score_model"
# Ours -> theirs within a block.
RESIDUAL = {
    "norm_0": "GroupNorm_0", "conv_0": "conv1", "embedding": "cond_proj", "norm_1": "GroupNorm_1", "conv_1": "conv2",
    "shortcut": "nin_shortcut",
}  # fmt: skip
ATTENTION = {"norm": "GroupNorm_0", "query": "q", "key": "k", "value": "v", "out": "proj_out"}
OUTSIDE = {
    "conv_in": "conv_in", "embedding/time_0": "dense0", "embedding/time_1": "dense1", "norm_out": "GroupNorm_0",
    "conv_out": "conv_out",
}  # fmt: skip
# Settings that mean the same here.
SAME = {
    "model.vocab_size": "data.levels", "model.sm_n_embd": "network.width", "model.sm_n_layer": "network.num_res_blocks",
    "model.sm_pdrop": "network.dropout", "training.seed": "seed", "training.num_steps_lr_warmup": "optim.warmup",
    "training.num_steps_train": "training.n_iters", "training.batch_size_train": "training.batch_size",
    "training.batch_size_eval": "eval.batch_size", "training.steps_per_logging": "training.log_freq",
    "training.steps_per_eval": "training.eval_freq", "training.steps_per_save": "training.snapshot_freq_for_preemption",
    "optimizer.learning_rate": "optim.lr", "optimizer.args.b1": "optim.beta1", "optimizer.args.b2": "optim.beta2",
    "optimizer.args.eps": "optim.eps", "optimizer.args.weight_decay": "optim.weight_decay",
    "optimizer.gradient_accumulation": "training.microbatches", "model.num_importance": "eval.num_repeats",
}  # fmt: skip
# Those with one value here.
FIXED = {
    "model_type": "model_vdm", "model.with_attention": False, "model.sm_n_timesteps": 0, "optimizer.name": "adamw",
    "optimizer.lr_decay": False,
}  # fmt: skip
# Those of folders, samples and pace, or read below.
OTHER = (
    "exp_name", "ckpt_restore_dir", "data.dataset", "data.ignore_cache", "training.substeps", "training.profile",
    "training.num_steps_eval", "optimizer.ema_rate", "model.sample_softmax", "model.antithetic_time_sampling",
    "model.with_fourier_features", "model.gamma_type", "model.gamma_min", "model.gamma_max", "model.gamma",
    "model.schedule", "model.second_order", "model.velocity", "model.importance", "model.dequantization",
)  # fmt: skip
# Their variational one is the decoder's: levels are read off z_0 by its softmax over them.
DEQUANTISERS = {"u": "uniform", "v": "decoder", "tn": "truncated_normal"}
SCHEDULES = {"VP": "variance_preserving", "SP": "straight"}
SOURCES = {"cifar10": {"name": "cifar10"}, "imagenet32": {"name": "tfds", "dataset": "downsampled_imagenet/32x32"}}
ENDS = {"model.gamma_min": -13.3, "model.gamma_max": 5.0}  # of every config that they published


def read(tree: Any) -> Checkpoint | None:
    """Both sets of weights, by paths joined with "/"; with learned ends of the log SNR what their config says too."""
    if not isinstance(tree, dict) or not {"params", "ema_params"} <= tree.keys():
        return None
    if not all(isinstance(tree[name], dict) and NETWORK in tree[name] for name in ("params", "ema_params")):
        return None
    weights = {
        kind: {"/".join(path): leaf for path, leaf in flatten_dict(tree[name]).items()}
        for kind, name in (("raw", "params"), ("ema", "ema_params"))
    }
    return Checkpoint(weights, int(tree.get("step", 0)), _said(weights["ema"]))


def _said(tensors: Tensors) -> dict[str, Any] | None:
    """Return their settings of a network whose file holds the ends of its log SNR; their time is of ENDS."""
    if not {"gamma/w", "gamma/b"} <= tensors.keys():
        return None
    conv_in = np.asarray(tensors[f"{NETWORK}/conv_in/kernel"])
    channels = len(tensors[f"{NETWORK}/conv_out/bias"])
    blocks = [name.split("/")[1] for name in tensors if "/down." in name]
    first, length = (float(np.ravel(tensors[f"gamma/{name}"])[0]) for name in "bw")
    return {
        "model": {
            "sm_n_embd": conv_in.shape[-1],
            "sm_n_layer": len({block for block in blocks if block.startswith("down.block_")}),
            "with_attention": any(block.startswith("down.attn_") for block in blocks),
            "with_fourier_features": conv_in.shape[2] > channels,
            "gamma": (first, first + abs(length)),
        }
    }


def layout(model: Model, image_shape: tuple[int, int, int]) -> Layout:
    """Name every tensor of the network; learned ends must be those of the path.

    The embedding's maps have no bias there, and a row for a condition here 0.
    """
    network, path = model.network, model.path
    if not isinstance(network, VDM) or network.channel_mult != (1,) or network.attention_resolutions:
        raise UserError(f"the checkpoint is a VDM without downsampling; config.network is {type(network).__name__}.")
    if not isinstance(path, LogSNR):
        raise UserError(f"the checkpoint is of a linear log SNR; config.path is {type(path).__name__}.")
    leaves, width, depth = {}, network.width, network.num_res_blocks

    def module(ours: str, theirs: str, names: tuple[str, ...] = ("kernel", "bias")) -> None:
        leaves.update({f"{ours}/{name}": Leaf((f"{NETWORK}/{theirs}/{name}",), same) for name in names})

    def block(ours: str, theirs: str, parts: Mapping[str, str]) -> None:
        for part, name in parts.items():
            norm = part.startswith("norm")
            module(f"{ours}/{part}", f"{theirs}/{name}", ("scale", "bias") if norm else ("kernel", "bias"))

    for ours, theirs in OUTSIDE.items():
        module(ours, theirs, ("scale", "bias") if ours.startswith("norm") else ("kernel", "bias"))
    leaves["embedding/time_0/kernel"] = Leaf((f"{NETWORK}/dense0/kernel",), lambda w: w[:-1])
    same_width = {part: name for part, name in RESIDUAL.items() if part != "shortcut"}
    residual = {f"down_0_{i}": (f"down.block_{i}", same_width) for i in range(depth)}
    residual |= {f"middle_{i}": (f"mid.block_{i + 1}", same_width) for i in range(2)}
    residual |= {f"up_0_{i}": (f"up.block_{i}", RESIDUAL) for i in range(depth + 1)}
    for ours, (theirs, parts) in residual.items():
        block(ours, theirs, parts)
        leaves[f"{ours}/embedding/bias"] = Leaf((), lambda: np.zeros(width, np.float32))
    block("middle_attention", "mid.attn_1", ATTENTION)
    ends = np.float32([-path.log_snr_max]), np.float32([path.log_snr_max - path.log_snr_min])
    return Layout(leaves, dict(zip(("gamma/b", "gamma/w"), ends, strict=True)))


def translate(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides of our config from one of theirs; raises UserError for what has no counterpart."""
    theirs = ENDS | flatten(dict(settings))
    for name, value in theirs.items():
        check_choice("a setting of the reference config", name, {*SAME, *FIXED, *OTHER})
        if name in FIXED and value != FIXED[name]:
            raise UserError(f"{name} of the reference config is {value!r}; here it can only be {FIXED[name]!r}.")
    overrides = {ours: theirs[name] for name, ours in SAME.items() if name in theirs}
    overrides |= _process(theirs) | _training(theirs)
    if "data.dataset" in theirs:
        check_choice("data.dataset of the reference config", theirs["data.dataset"], SOURCES)
        overrides |= {f"data.source.{key}": value for key, value in SOURCES[theirs["data.dataset"]].items()}
    return overrides


def _process(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The path, the time that the network is told, and what it predicts."""
    low, high = theirs["model.gamma_min"], theirs["model.gamma_max"]
    if "model.gamma" not in theirs and theirs.get("model.gamma_type", "fixed") != "fixed":
        raise UserError(
            f"model.gamma_type of the reference config is {theirs['model.gamma_type']!r}: its ends are in the weights. "
            "A file of learned ends (learnable_scalar) is imported without a config; no path here is learnable_nnet."
        )
    first, last = theirs.get("model.gamma", (low, high))
    schedule = theirs.get("model.schedule", "VP")
    check_choice("model.schedule of the reference config", schedule, SCHEDULES)
    velocity = theirs.get("model.velocity", False)
    return {
        "network.name": "vdm",
        "network.fourier_powers": (6, 7) if theirs.get("model.with_fourier_features", True) else (),
        "path.name": "log_snr",
        "path.log_snr_max": -first,
        "path.log_snr_min": -last,
        "path.schedule": SCHEDULES[schedule],
        "model.prediction": "unit_velocity" if velocity else "noise",
        "model.time": "t",
        "model.time_scale": 1000.0 * (last - first) / (high - low),
        "model.time_shift": 1000.0 * (first - low) / (high - low),
        "data.image_shape": (32, 32, 3),
        "data.inset": True,
        "data.uniform_dequantization": False,
    }


def _training(theirs: Mapping[str, Any]) -> dict[str, Any]:
    even = "stratified" if theirs.get("model.antithetic_time_sampling", True) else "uniform"
    dequantiser = theirs.get("model.dequantization", "tn")
    check_choice("model.dequantization of the reference config", dequantiser, DEQUANTISERS)
    return {
        "training.weighting": "likelihood",
        "training.time_sampler.name": "log_variance" if theirs.get("model.importance", False) else even,
        "training.second_order": 0.1 if theirs.get("model.second_order", False) else 0.0,
        "training.smallest_time": 0.0,
        "optim.optimizer": "AdamW",
        "optim.grad_clip": 0.0,
        "model.ema_rate": (theirs.get("optimizer.ema_rate", 0.9999),),
        "model.ema_warmup": False,
        "eval.smallest_time": 0.0,
        "eval.dequantizer": DEQUANTISERS[dequantiser],
    }


def build() -> Project:
    written = "open(FILE, 'w').write(config.to_json_best_effort()), config its get_config()"
    return Project(read, layout, translate, written)
