"""LightningDiT checkpoints: {"model", "ema", "opt", "config"} of a training run, or bare weights, which are the EMA.

Their time runs from noise (0) to data (1): the network is told 1 - t, and the last layer changes sign.
"""

from collections.abc import Mapping
from typing import Any

from score_flow.errors import UserError, check_choice
from score_flow.model import Model
from score_flow.pretrained.base import Checkpoint, Layout, Project
from score_flow.pretrained.layouts.dit import layout_of

SIZES = {  # width, depth, heads
    "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16), "1p0B": (1536, 24, 24), "1p6B": (1792, 28, 28),
}  # fmt: skip
MODELS = {
    f"LightningDiT-{size}/{p}": {"hidden_size": width, "depth": depth, "num_heads": heads, "patch_size": p}
    for size, (width, depth, heads) in SIZES.items()
    for p in (1, 2)
}
CONSTRUCTOR = {
    "input_size": 32, "patch_size": 2, "in_channels": 32, "hidden_size": 1152, "depth": 28, "num_heads": 16,
    "mlp_ratio": 4.0, "class_dropout_prob": 0.1, "num_classes": 1000, "learn_sigma": False, "use_qknorm": False,
    "use_swiglu": False, "use_rope": False, "use_rmsnorm": False, "wo_shift": False, "use_checkpoint": False,
}  # fmt: skip
OPTIONS = ("use_qknorm", "use_swiglu", "use_rope", "use_rmsnorm", "wo_shift")  # what their train.py reads of "model"
# What tells such weights from SiT's: a tensor of one of these names, or modulation without shifts.
MARKS = ("feat_rope.freqs_cos", "blocks.0.norm1.weight", "blocks.0.mlp.w12.weight", "blocks.0.attn.q_norm.weight")


def read(tree: Any) -> Checkpoint | None:
    """Both sets of weights of a run, or a bare one."""
    if not isinstance(tree, dict):
        return None
    if _is_of(tree):
        return Checkpoint({"ema": tree})
    if not {"model", "ema"} <= tree.keys() or not (_is_of(tree["model"]) or _told(tree)):
        return None
    return Checkpoint({"ema": tree["ema"], "raw": tree["model"]}, reference=tree["config"] if _told(tree) else None)


def _is_of(tensors: Any) -> bool:
    if not isinstance(tensors, dict) or "x_embedder.proj.weight" not in tensors:
        return False
    moved = getattr(tensors.get("blocks.0.adaLN_modulation.1.weight"), "shape", (0, 1))
    return any(name in tensors for name in MARKS) or moved[0] == 4 * moved[-1]


def _told(tree: Mapping[str, Any]) -> bool:
    """Whether a file says by a config of theirs what it holds."""
    config = tree.get("config")
    return isinstance(config, dict) and "model_type" in (config.get("model") or {})


def layout(model: Model, image_shape: tuple[int, int, int]) -> Layout:
    return layout_of(model, image_shape, "LightningDiT")


def translate(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides of our config from their config's sections, or from the arguments of their LightningDiT class."""
    theirs = dict(settings)
    if "model" not in theirs:
        for key in theirs:
            check_choice("a setting of the reference config", key, CONSTRUCTOR)
        return _network(CONSTRUCTOR | theirs) | _process({})
    model, data = theirs["model"], theirs.get("data", {})
    check_choice("model.model_type of the reference config", model.get("model_type"), MODELS)
    factor = theirs.get("vae", {}).get("downsample_ratio", 16)
    if data.get("image_size", 256) % factor:
        raise UserError(f"data.image_size of the reference config is {data['image_size']}, no multiple of {factor}.")
    shape = {
        "input_size": data.get("image_size", 256) // factor,
        "in_channels": model.get("in_chans", 4),
        "num_classes": data.get("num_classes", 1000),
    } | {key: model[key] for key in OPTIONS if key in model}
    overrides = _network(CONSTRUCTOR | MODELS[model["model_type"]] | shape) | _process(theirs.get("transport", {}))
    return overrides | _schedule(theirs.get("train", {}), theirs.get("optimizer", {}))


def _network(shape: Mapping[str, Any]) -> dict[str, Any]:
    if shape["learn_sigma"]:
        raise UserError("learn_sigma of the reference config is True, which their code trains nothing of.")
    if shape["use_qknorm"] and not shape["use_rmsnorm"]:
        raise UserError("use_qknorm of the reference config is True without use_rmsnorm: allowed together alone.")
    side = shape["input_size"]
    return {
        "network.name": "dit",
        "network.patch_size": shape["patch_size"],
        "network.width": shape["hidden_size"],
        "network.depth": shape["depth"],
        "network.num_heads": shape["num_heads"],
        "network.mlp_ratio": shape["mlp_ratio"],
        "network.mlp": "swiglu" if shape["use_swiglu"] else "gelu",
        "network.norm": "rms" if shape["use_rmsnorm"] else "layer",
        "network.rope": shape["use_rope"],
        "network.qk_norm": shape["use_qknorm"],
        "network.shift": not shape["wo_shift"],
        "model.class_conditional": True,
        "data.image_shape": (side, side, shape["in_channels"]),
        "data.num_classes": shape["num_classes"],
        "data.uniform_dequantization": False,
        "training.label_dropout": shape["class_dropout_prob"],
    }


def _process(transport: Mapping[str, Any]) -> dict[str, Any]:
    """The straight path and velocities, and 1 - cos(v', v) in the loss where their config asks for it."""
    check_choice("transport.path_type of the reference config", transport.get("path_type", "Linear"), ("Linear",))
    prediction = transport.get("prediction", "velocity")
    check_choice("transport.prediction of the reference config", prediction, ("velocity",))
    return {
        "path.name": "linear",
        "model.prediction": "velocity",
        "model.time": "1-t",
        "model.time_scale": 1.0,
        "model.time_shift": 0.0,
        "training.weighting": "velocity",
        "training.cosine": float(bool(transport.get("use_cosine_loss"))),
        "training.time_sampler.name": "logit_normal" if transport.get("use_lognorm") else "uniform",
        "training.smallest_time": 0.0,
        "training.largest_time": 1.0,
    }


def _schedule(train: Mapping[str, Any], optimiser: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "seed": train.get("global_seed", 0),
        "model.ema_rate": (0.9999,),
        "model.ema_warmup": False,
        "optim.optimizer": "AdamW",
        "optim.lr": optimiser.get("lr", 2e-4),
        "optim.beta2": optimiser.get("beta2", 0.95),
        "optim.warmup": 0,
        "optim.grad_clip": optimiser.get("max_grad_norm", 0.0),
        "optim.weight_decay": 0.0,
        "training.batch_size": train.get("global_batch_size", 1024),
        "training.n_iters": train.get("max_steps", 80_000),
        "training.log_freq": train.get("log_every", 100),
        "training.snapshot_freq": train.get("ckpt_every", 20_000),
    }


def build() -> Project:
    return Project(read, layout, translate, "json.dump(yaml.safe_load(open(CONFIG)), open(FILE, 'w')) of its config")
