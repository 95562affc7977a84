"""Improved MeanFlow's checkpoints, flax's msgpack of its train state: {"step", "params", "ema_params", ...}.

Its network speaks of the average velocity from noise to data's side as ours does, time running from data (0) to noise
(1). The auxiliary head, which predicts velocities in training, is read where the file has it: those published for
inference may not. Files of its first releases call five of its parts otherwise.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from score_flow.errors import UserError, check_choice
from score_flow.model import Model
from score_flow.networks.mit import MiT
from score_flow.pretrained.base import Checkpoint, Layout, Leaf, Project, same

FORMER = {
    "k_embedder": "omega_embedder", "cfg_start_cond_tokens": "t_min_tokens", "cfg_end_cond_tokens": "t_max_tokens",
    "time_cond_tokens": "time_tokens", "class_cond_tokens": "class_tokens", "kappa_cond_tokens": "omega_tokens",
    "attn_gate": "attn_scale", "mlp_gate": "mlp_scale",
}  # fmt: skip
LINEAR = ("kernel", "bias")
SIZES = {"B_2": (768, 12, 12), "M_2": (768, 24, 12), "L_2": (1024, 32, 16), "XL_2": (1024, 48, 16)}
CONSTRUCTOR = {
    "input_size": 32, "patch_size": 2, "in_channels": 4, "hidden_size": 1152, "depth": 28, "num_heads": 16,
    "mlp_ratio": 8 / 3, "num_classes": 1000, "aux_head_depth": 8, "num_class_tokens": 8, "num_time_tokens": 4,
    "num_cfg_tokens": 4, "num_interval_tokens": 2,
}  # fmt: skip
MODEL = {
    "model_str": "imfDiT_B_2", "num_classes": 1000, "P_mean": -0.4, "P_std": 1.0, "data_proportion": 0.5,
    "cfg_beta": 1.0, "class_dropout_prob": 0.1, "norm_p": 1.0, "norm_eps": 0.01,
}  # fmt: skip
FIXED = {"cfg_beta": 1.0, "norm_eps": 0.01}  # without a counterpart otherwise
LARGEST_SCALE = 8.0


def read(tree: Any) -> Checkpoint | None:
    """The averaged weights, and the raw ones where they are there; names are joined by "/"."""
    if not isinstance(tree, dict) or not isinstance(tree.get("ema_params"), dict) or "net" not in tree["ema_params"]:
        return None
    kinds = {"ema": "ema_params", "raw": "params"}
    found = {kind: _names(tree[theirs]["net"]) for kind, theirs in kinds.items() if isinstance(tree.get(theirs), dict)}
    head = {name.split("/")[0] for name in found["ema"] if name.startswith("v_heads_")}
    return Checkpoint(
        found, int(tree["step"]) if "step" in tree else None, implied={"network.velocity_head": len(head)}
    )


def _names(net: dict[str, Any]) -> dict[str, np.ndarray]:
    paths = {tuple(FORMER.get(part, part) for part in path): leaf for path, leaf in flatten_dict(net).items()}
    return {"/".join(path): leaf for path, leaf in paths.items()}


def layout(model: Model, image_shape: tuple[int, int, int]) -> Layout:
    network = model.network
    if not isinstance(network, MiT) or not (network.span and network.guidance and network.num_classes):
        raise UserError(
            "the checkpoint is improved MeanFlow's; config.network is not a mit with model.span, model.guidance and "
            "classes."
        )
    leaves = {
        "patches/kernel": Leaf(("x_embedder/proj/kernel",), lambda w: w.reshape(-1, w.shape[-1])),
        "patches/bias": Leaf(("x_embedder/proj/bias",), same),
        "label/embedding": Leaf(("y_embedder/embedding_table/_flax_embedding/embedding",), same),
    }
    tokens = {"class": "class", "guidance": "omega", "first": "t_min", "last": "t_max", "time": "time"}
    leaves |= {f"{ours}_tokens": Leaf((f"{theirs}_tokens",), same) for ours, theirs in tokens.items()}
    numbers = {"span": "h", "guidance": "omega", "first": "cfg_t_start", "last": "cfg_t_end"}
    for ours, theirs in numbers.items():
        for i, layer in enumerate((0, 2)):
            for leaf in LINEAR:
                name = f"{theirs}_embedder/mlp/layers_{layer}/_flax_linear/{leaf}"
                leaves[f"{ours}_embedding/time_{i}/{leaf}"] = Leaf((name,), same)
    leaves |= _final("u") | (_final("v", "velocity_") if network.velocity_head else {})
    return Layout(leaves | _blocks(network), {} if network.velocity_head else _unread(network))


def _final(theirs: str, ours: str = "") -> dict[str, Leaf]:
    """What makes an image of a head's tokens."""
    names = {"norm_out/scale": "norm/kernel"} | {f"out/{part}": f"linear/_flax_linear/{part}" for part in LINEAR}
    return {f"{ours}{name}": Leaf((f"{theirs}_final_layer/{their}",), same) for name, their in names.items()}


def _head(depth: int) -> int:
    """How many of the blocks are the head's: the last 8, as in the published sizes, or of few all but the first."""
    return min(CONSTRUCTOR["aux_head_depth"], depth - 1)


def _blocks(network: MiT) -> dict[str, Leaf]:
    """The trunk's blocks and those of the heads; without a second head, how many are whose changes nothing here."""
    head = network.velocity_head or _head(network.depth)
    trunk = [f"shared_blocks_{i}" for i in range(network.depth - head)]
    heads = {kind: [f"{kind}_heads_{i}" for i in range(head)] for kind in "uv"}
    if not network.velocity_head:
        return _stacked("blocks", trunk + heads["u"])
    named = {"blocks": trunk, "average_blocks": heads["u"], "velocity_blocks": heads["v"]}
    return {name: leaf for ours, blocks in named.items() for name, leaf in _stacked(ours, blocks).items()}


def _unread(network: MiT) -> dict[str, None]:
    """Return the tensors of a head that is not wanted."""
    blocks = [f"v_heads_{i}" for i in range(_head(network.depth))]
    leaves = _final("v") | _stacked("blocks", blocks)
    return {name: None for leaf in leaves.values() for name in leaf.names}


def _stacked(stack: str, blocks: list[str]) -> dict[str, Leaf]:
    linear = {
        "qkv": ("attn/q_proj", "attn/k_proj", "attn/v_proj"), "attention_out": ("attn/out_proj",),
        "mlp_0": ("mlp/w1", "mlp/w3"), "mlp_1": ("mlp/w2",),
    }  # fmt: skip
    vectors = {
        "norm_0/scale": "norm1/kernel", "norm_1/scale": "norm2/kernel", "query_norm/scale": "attn/q_norm/kernel",
        "key_norm/scale": "attn/k_norm/kernel", "gate_0": "attn_scale", "gate_1": "mlp_scale",
    }  # fmt: skip
    parts = {f"{ours}/kernel": tuple(f"{name}/_flax_linear/kernel" for name in names) for ours, names in linear.items()}
    parts |= {ours: (theirs,) for ours, theirs in vectors.items()}
    named = {ours: tuple(f"{block}/{name}" for block in blocks for name in names) for ours, names in parts.items()}
    return {f"{stack}/{ours}": Leaf(names, _side_by_side(len(parts[ours]))) for ours, names in named.items()}


def _side_by_side(n: int):
    """Every n tensors next to each other, and these stacked."""
    return lambda *w: np.stack([np.concatenate(w[i : i + n], axis=-1) for i in range(0, len(w), n)])


def translate(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides of our config from the section `model` of theirs, or from the arguments of their imfDiT class."""
    theirs = dict(settings.get("model", settings))
    if "hidden_size" in theirs:
        for key in theirs:
            check_choice("a setting of the reference config", key, CONSTRUCTOR)
        return _network(CONSTRUCTOR | theirs) | _training(MODEL)
    for key, value in FIXED.items():
        if theirs.get(key, value) != value:
            raise UserError(f"{key} of the reference config is {theirs[key]}; allowed: {value}.")
    for key in theirs:
        check_choice("a setting of the reference config", key, MODEL)
    training = MODEL | theirs
    size = training["model_str"].removeprefix("imfDiT_").removeprefix("MiT_")
    check_choice("model_str of the reference config", size, SIZES)
    shape = dict(zip(("hidden_size", "depth", "num_heads"), SIZES[size], strict=True))
    return _network(CONSTRUCTOR | shape | {"num_classes": training["num_classes"]}) | _training(training)


def _network(shape: Mapping[str, Any]) -> dict[str, Any]:
    head = _head(shape["depth"])
    if shape["aux_head_depth"] != head:
        raise UserError(f"aux_head_depth of the reference config is {shape['aux_head_depth']}; allowed: {head}.")
    side = shape["input_size"]
    return {
        "network.name": "mit",
        "network.patch_size": shape["patch_size"],
        "network.width": shape["hidden_size"],
        "network.depth": shape["depth"],
        "network.num_heads": shape["num_heads"],
        "network.mlp_ratio": shape["mlp_ratio"],
        "network.see_time": False,
        "network.class_tokens": shape["num_class_tokens"],
        "network.guidance_tokens": shape["num_cfg_tokens"],
        "network.interval_tokens": shape["num_interval_tokens"],
        "network.time_tokens": shape["num_time_tokens"],
        "model.class_conditional": True,
        "model.span": True,
        "model.guidance": True,
        "data.image_shape": (side, side, shape["in_channels"]),
        "data.num_classes": shape["num_classes"],
        "data.uniform_dequantization": False,
    }


def _training(theirs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "path.name": "linear",
        "model.prediction": "velocity",
        "model.time": "t",
        "model.time_scale": 1.0,
        "model.time_shift": 0.0,
        "training.objective": "flow_map",
        "training.flow_map": "improved",
        "training.flow_map_equal": theirs["data_proportion"],
        "training.flow_map_power": theirs["norm_p"],
        "training.flow_map_guidance": (1.0, LARGEST_SCALE),
        "training.weighting": "velocity",
        "training.label_dropout": theirs["class_dropout_prob"],
        "training.time_sampler.name": "logit_normal",
        "training.time_sampler.mean": theirs["P_mean"],
        "training.time_sampler.std": theirs["P_std"],
        "sampling.name": "flow_map",
        "sampling.n_steps": 1,
    }


def build() -> Project:
    return Project(read, layout, translate, "json.dump(config.model.to_dict(), open(FILE, 'w')) in its main.py")
