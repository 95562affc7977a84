"""SiT checkpoints: {"model", "ema", "opt", "args"} of a training run, or the published bare EMA.

Their time runs from noise (0) to data (1). It is turned round here and nowhere else: the network is told 1 - t, and the
last layer of one that predicts velocities changes sign.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from score_flow.errors import UserError, check_choice
from score_flow.model import Model
from score_flow.networks.blocks.transformer import sincos_positions
from score_flow.networks.sit import SiT
from score_flow.pretrained.base import Checkpoint, Layout, Leaf, Project, Tensors, conv, dense, same, stacked
from score_flow.process.prediction import velocity

SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}  # width, depth, heads
MODELS = {f"SiT-{size}/{p}": (*shape, p) for size, shape in SIZES.items() for p in (2, 4, 8)}
PATHS = {"Linear": "linear", "GVP": "gvp", "VP": "vp"}
CONSTRUCTOR = {
    "input_size": 32, "patch_size": 2, "in_channels": 4, "hidden_size": 1152, "depth": 28, "num_heads": 16,
    "mlp_ratio": 4.0, "class_dropout_prob": 0.1, "num_classes": 1000, "learn_sigma": True,
}  # fmt: skip
TRAINING = {
    "path_type": "Linear", "prediction": "velocity", "loss_weight": None, "train_eps": None, "sample_eps": None,
    "global_batch_size": 256, "epochs": 1400, "global_seed": 0, "log_every": 100, "ckpt_every": 50_000,
    "sample_every": 10_000,
}  # fmt: skip
# Of their train.py, without a counterpart: folders, logging, workers, the autoencoder's name, guidance of their sheets.
DROPPED = ("data_path", "results_dir", "num_workers", "wandb", "ckpt", "vae", "cfg_scale")
IMAGES = 1_281_167  # of ImageNet, whose epochs they count
DOWNSAMPLING = 8  # of the autoencoder, whose latents the networks see


def read(tree: Any) -> Checkpoint | None:
    """Both sets of weights of a run, or the published one, which is the EMA."""
    if not isinstance(tree, dict):
        return None
    if "x_embedder.proj.weight" in tree:
        return Checkpoint({"ema": tree})
    if not {"model", "ema"} <= tree.keys() or "x_embedder.proj.weight" not in tree["model"]:
        return None
    reference = tree.get("args")
    return Checkpoint(
        {"ema": tree["ema"], "raw": tree["model"]}, reference=reference and reference | _head(tree["model"])
    )


def _head(tensors: Tensors) -> dict[str, bool]:
    """Say whether the last layer has twice the channels; their flags do not say."""
    patches, out = tensors["x_embedder.proj.weight"], tensors["final_layer.linear.weight"]
    return {"learn_sigma": out.shape[0] == 2 * patches[0].size}


def layout(model: Model, image_shape: tuple[int, int, int]) -> Layout:
    network = model.network
    if not isinstance(network, SiT):
        raise UserError(f"the checkpoint is a SiT; config.network is {type(network).__name__}.")
    p, depth = network.patch_size, network.depth
    sign = -1 if model.prediction is velocity else 1
    leaves = {}

    def layer(ours: str, theirs: str, kernel=dense, bias=same) -> None:
        leaves[f"{ours}/kernel"] = Leaf((f"{theirs}.weight",), kernel)
        leaves[f"{ours}/bias"] = Leaf((f"{theirs}.bias",), bias)

    layer("patches", "x_embedder.proj", lambda w: conv(w).reshape(-1, w.shape[0]))
    layer("embedding/time_0", "t_embedder.mlp.0")
    layer("embedding/time_1", "t_embedder.mlp.2")
    layer("modulation_out", "final_layer.adaLN_modulation.1")
    layer("out", "final_layer.linear", lambda w: sign * w.T, lambda b: sign * b)
    if network.num_classes:
        rows = network.num_classes + 1
        leaves["embedding/label/embedding"] = Leaf(("y_embedder.embedding_table.weight",), lambda w: with_null(w, rows))
    inner = {"qkv": "attn.qkv", "attention_out": "attn.proj", "mlp_0": "mlp.fc1", "mlp_1": "mlp.fc2"}
    for ours, theirs in (inner | {"modulation": "adaLN_modulation.1"}).items():
        for leaf, tensor, reading in (("kernel", "weight", dense), ("bias", "bias", same)):
            names = tuple(f"blocks.{i}.{theirs}.{tensor}" for i in range(depth))
            leaves[f"blocks/{ours}/{leaf}"] = Leaf(names, stacked(reading))
    positions = sincos_positions(image_shape[0] // p, image_shape[1] // p, network.width)
    return Layout(leaves, {"pos_embed": positions[None]})


def with_null(table: np.ndarray, rows: int) -> np.ndarray:
    """Return a label table with the null class last; trained without one, it gets zeros: no label is no embedding."""
    return np.concatenate([table, np.zeros_like(table[:1])]) if len(table) == rows - 1 else table


def translate(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides of our config from the flags of their train.py, or from the arguments of their SiT class."""
    theirs = dict(settings)
    for key in theirs:
        check_choice(
            "a setting of the reference config", key, {*CONSTRUCTOR, *TRAINING, *DROPPED, "model", "image_size"}
        )
    if "model" in theirs:
        theirs |= _named(theirs["model"], theirs.get("image_size", 256))
    shape, training = CONSTRUCTOR | theirs, TRAINING | theirs
    side = shape["input_size"]
    overrides = {
        "network.name": "sit",
        "network.patch_size": shape["patch_size"],
        "network.width": shape["hidden_size"],
        "network.depth": shape["depth"],
        "network.num_heads": shape["num_heads"],
        "network.mlp_ratio": shape["mlp_ratio"],
        "model.learn_sigma": shape["learn_sigma"],
        "model.class_conditional": True,
        "data.image_shape": (side, side, shape["in_channels"]),
        "data.num_classes": shape["num_classes"],
        "training.label_dropout": shape["class_dropout_prob"],
    }
    return overrides | _process(training) | _schedule(training)


def _named(name: str, image_size: int) -> dict[str, Any]:
    check_choice("model of the reference config", name, MODELS)
    width, depth, heads, patch = MODELS[name]
    if image_size % DOWNSAMPLING:
        raise UserError(f"image_size of the reference config is {image_size}; it must be a multiple of {DOWNSAMPLING}.")
    return {
        "hidden_size": width,
        "depth": depth,
        "num_heads": heads,
        "patch_size": patch,
        "input_size": image_size // DOWNSAMPLING,
    }


def _process(theirs: dict[str, Any]) -> dict[str, Any]:
    """The path and the prediction, with the ends of t at which theirs is defined (their transport/__init__.py)."""
    path, prediction, weight = theirs["path_type"], theirs["prediction"], theirs["loss_weight"]
    check_choice("path_type of the reference config", path, PATHS)
    check_choice("prediction of the reference config", prediction, ("velocity", "noise", "score"))
    check_choice("loss_weight of the reference config", str(weight), ("None", "velocity", "likelihood"))
    train = theirs["train_eps"]
    if train is None:
        train = 1e-5 if path == "VP" else 0.0 if prediction == "velocity" else 1e-3
    both_ends = path != "VP" and prediction != "velocity"
    weighting = "velocity" if prediction == "velocity" else weight or "simple"
    return {
        "path.name": PATHS[path],
        "model.prediction": prediction,
        "model.time": "1-t",
        "model.time_scale": 1.0,
        "model.time_shift": 0.0,
        "training.weighting": weighting,
        "training.time_sampler.name": "uniform",
        "training.smallest_time": train,
        "training.largest_time": 1.0 - train if both_ends else 1.0,
    }


def _schedule(theirs: dict[str, Any]) -> dict[str, Any]:
    batch = theirs["global_batch_size"]
    return {
        "seed": theirs["global_seed"],
        "model.ema_rate": (0.9999,),
        "model.ema_warmup": False,
        "optim.optimizer": "AdamW",
        "optim.lr": 1e-4,
        "optim.warmup": 0,
        "optim.grad_clip": 0.0,
        "optim.weight_decay": 0.0,
        "training.batch_size": batch,
        "training.n_iters": theirs["epochs"] * (IMAGES // batch),
        "training.log_freq": theirs["log_every"],
        "training.snapshot_freq": theirs["ckpt_every"],
        "data.uniform_dequantization": False,
    }


def build() -> Project:
    return Project(read, layout, translate, "json.dump(vars(args), open(FILE, 'w')) in its train.py")
