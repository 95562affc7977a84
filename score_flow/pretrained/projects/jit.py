"""JiT checkpoints, checkpoint-*.pth of its training: {"model", "model_ema1", "model_ema2", "epoch", "args"}.

Their time runs from noise (0) to data (1): the network is told 1 - t. It predicts x0; its two averages have rates
ema_decay1, with which they sample, and ema_decay2, which is not imported.
"""

from collections.abc import Mapping
from typing import Any

from score_flow.errors import UserError, check_choice
from score_flow.model import Model
from score_flow.pretrained.base import Checkpoint, Layout, Project, Tensors
from score_flow.pretrained.layouts.dit import layout_of

PREFIX = "net."
SIZES = {"B": (768, 12, 12, 128, 4), "L": (1024, 24, 16, 128, 8), "H": (1280, 32, 16, 256, 10)}
MODELS = {
    f"JiT-{size}/{p}": {
        "hidden_size": width, "depth": depth, "num_heads": heads, "bottleneck_dim": bottleneck,
        "in_context_start": start, "patch_size": p,
    }
    for size, (width, depth, heads, bottleneck, start) in SIZES.items()
    for p in (16, 32)
}  # fmt: skip
CONSTRUCTOR = {
    "input_size": 256, "patch_size": 16, "in_channels": 3, "hidden_size": 1024, "depth": 24, "num_heads": 16,
    "mlp_ratio": 4.0, "attn_drop": 0.0, "proj_drop": 0.0, "num_classes": 1000, "bottleneck_dim": 128,
    "in_context_len": 32, "in_context_start": 8,
}  # fmt: skip
TRAINING = {
    "model": "JiT-B/16", "img_size": 256, "attn_dropout": 0.0, "proj_dropout": 0.0, "class_num": 1000,
    "epochs": 200, "warmup_epochs": 5, "batch_size": 128, "world_size": 1, "lr": None, "blr": 5e-5,
    "lr_schedule": "constant", "min_lr": 0.0, "weight_decay": 0.0, "ema_decay1": 0.9999, "ema_decay2": 0.9996,
    "P_mean": -0.8, "P_std": 0.8, "noise_scale": 1.0, "t_eps": 0.05, "label_drop_prob": 0.1, "seed": 0,
    "num_sampling_steps": 50, "cfg": 1.0, "interval_min": 0.0, "interval_max": 1.0, "log_freq": 100,
}  # fmt: skip
FIXED = {"attn_dropout": 0.0, "attn_drop": 0.0, "weight_decay": 0.0, "min_lr": 0.0}  # without a counterpart otherwise
IMAGES = 1_281_167  # of ImageNet, whose epochs they count


def read(tree: Any) -> Checkpoint | None:
    """The raw weights and the average that is sampled from."""
    if not isinstance(tree, dict) or not {"model", "model_ema1"} <= tree.keys():
        return None
    if f"{PREFIX}x_embedder.proj1.weight" not in tree["model"]:
        return None
    args, epoch = tree.get("args"), tree.get("epoch")
    step = None if args is None or epoch is None else (epoch + 1) * _epoch(TRAINING | args)
    return Checkpoint({"ema": _bare(tree["model_ema1"]), "raw": _bare(tree["model"])}, step, args)


def _bare(tensors: Tensors) -> Tensors:
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def layout(model: Model, image_shape: tuple[int, int, int]) -> Layout:
    return layout_of(model, image_shape, "JiT")


def translate(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides of our config from the flags of their main_jit.py, or from the arguments of their JiT class.

    Their other flags (folders, workers, devices, how often is saved) have no counterpart and are not looked at.
    """
    theirs = dict(settings)
    for key, value in FIXED.items():
        if theirs.get(key, value) != value:
            raise UserError(f"{key} of the reference config is {theirs[key]}; allowed: {value}.")
    if "hidden_size" in theirs:
        for key in theirs:
            check_choice("a setting of the reference config", key, CONSTRUCTOR)
        return _network(CONSTRUCTOR | theirs) | _process(TRAINING)
    training = TRAINING | theirs
    check_choice("model of the reference config", training["model"], MODELS)
    shape = MODELS[training["model"]] | {
        "input_size": training["img_size"], "num_classes": training["class_num"], "proj_drop": training["proj_dropout"]
    }  # fmt: skip
    return _network(CONSTRUCTOR | shape) | _process(training) | _schedule(training)


def _network(shape: Mapping[str, Any]) -> dict[str, Any]:
    side = shape["input_size"]
    return {
        "network.name": "dit",
        "network.patch_size": shape["patch_size"],
        "network.width": shape["hidden_size"],
        "network.depth": shape["depth"],
        "network.num_heads": shape["num_heads"],
        "network.mlp_ratio": shape["mlp_ratio"],
        "network.bottleneck": shape["bottleneck_dim"],
        "network.class_tokens": shape["in_context_len"],
        "network.context_start": shape["in_context_start"],
        "network.dropout": shape["proj_drop"],
        "network.dropout_blocks": "middle",
        "model.class_conditional": True,
        "data.image_shape": (side, side, shape["in_channels"]),
        "data.num_classes": shape["num_classes"],
        "data.uniform_dequantization": False,
        "data.random_flip": True,
    }


def _process(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """x0 on the straight path, trained on velocities whose times to the data count as t_eps at least."""
    return {
        "path.name": "linear",
        "path.noise_scale": theirs["noise_scale"],
        "model.prediction": "data",
        "model.time": "1-t",
        "model.time_scale": 1.0,
        "model.time_shift": 0.0,
        "training.weighting": "clipped_velocity",
        "training.velocity_clip": theirs["t_eps"],
        "training.label_dropout": theirs["label_drop_prob"],
        "training.time_sampler.name": "logit_normal",
        "training.time_sampler.mean": -theirs["P_mean"],
        "training.time_sampler.std": theirs["P_std"],
        "training.smallest_time": 0.0,
        "training.largest_time": 1.0,
    }


def _epoch(theirs: Mapping[str, Any]) -> int:
    """Steps of one, of all processes together."""
    return IMAGES // (theirs["batch_size"] * theirs["world_size"])


def _schedule(theirs: Mapping[str, Any]) -> dict[str, Any]:
    check_choice("lr_schedule of the reference config", theirs["lr_schedule"], ("constant", "cosine"))
    batch = theirs["batch_size"] * theirs["world_size"]
    return {
        "seed": theirs["seed"],
        "model.ema_rate": (theirs["ema_decay1"], theirs["ema_decay2"]),
        "model.ema_warmup": False,
        "optim.optimizer": "AdamW",
        "optim.lr": theirs["blr"] * batch / 256 if theirs["lr"] is None else theirs["lr"],
        "optim.beta2": 0.95,
        "optim.warmup": theirs["warmup_epochs"] * _epoch(theirs),
        "optim.schedule": theirs["lr_schedule"],
        "optim.grad_clip": 0.0,
        "optim.weight_decay": 0.0,
        "training.batch_size": batch,
        "training.n_iters": theirs["epochs"] * _epoch(theirs),
        "training.log_freq": theirs["log_freq"],
        "guidance.scale": theirs["cfg"],
        "guidance.interval": (1.0 - theirs["interval_max"], 1.0 - theirs["interval_min"]),
        "sampling.name": "heun",
        "sampling.n_steps": theirs["num_sampling_steps"],
        "sampling.grid": "uniform",
        "sampling.t_min": 0.0,
    }


def build() -> Project:
    return Project(read, layout, translate, "json.dump(vars(args), open(FILE, 'w')) in its main_jit.py")
