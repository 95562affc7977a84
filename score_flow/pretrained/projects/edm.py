"""EDM's CIFAR-10 networks, DDPM++ and NCSN++, from its pickles (Karras et al. 2022, arXiv:2206.00364).

Their weights in our NCSNpp, with EDM's preconditioning as a prediction, and its noise levels as a path. What maps the
labels of augmentation is left out: samples have none.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from score_flow.errors import UserError, check_choice
from score_flow.model import Model
from score_flow.networks.ncsnpp import NCSNpp
from score_flow.pretrained import base
from score_flow.pretrained.layouts import edm_config
from score_flow.pretrained.projects import edm2

RESIDUAL = {"norm_0": "norm0", "conv_0": "conv0", "embedding": "affine", "norm_1": "norm1", "conv_1": "conv1"}
SHORTCUT, QKV = "skip", ("query", "key", "value")
KINDS = {"kernel": "weight", "bias": "bias", "scale": "weight"}
FIELDS = {  # of NCSNpp, that all of these have one value of
    "conditional": True,
    "resblock": "biggan",
    "skip_rescale": True,
    "progressive": "none",
    "nonlinearity": "swish",
    "groups": None,
    "attention_up": "last",
}
CLASS, MODEL = "EDMPrecond", "SongUNet"
# The arguments of their network with what they are if not given; None: what a file must say
ARGUMENTS = {
    "img_resolution": None,
    "img_channels": None,
    "label_dim": 0,
    "use_fp16": False,
    "sigma_min": 0,
    "sigma_max": math.inf,
    "sigma_data": 0.5,
    "model_type": "DhariwalUNet",
    "augment_dim": 0,
    "model_channels": 128,
    "channel_mult": (1, 2, 2, 2),
    "channel_mult_emb": 4,
    "num_blocks": 4,
    "attn_resolutions": (16,),
    "dropout": 0.1,
    "label_dropout": 0,
    "embedding_type": "positional",
    "channel_mult_noise": 1,
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": (1, 1),
}
ENCODERS = {"standard": "none", "residual": "residual"}


def read(tree: Any) -> base.Checkpoint | None:
    """Read the averaged network of a pickle; raises UserError for one that is of another class."""
    networks = tree.get("networks") if isinstance(tree, Mapping) else None
    if not isinstance(networks, Mapping) or not isinstance(networks.get("ema"), Mapping):
        return None
    network = networks["ema"]
    kind, arguments = network["class_name"], network["arguments"]
    if kind == edm2.CLASS:
        return None
    model = arguments.get("model_type", ARGUMENTS["model_type"])
    if (kind, model) != (CLASS, MODEL):
        raise UserError(f"the pickle holds {kind} of {model}; allowed: {CLASS} of {MODEL}, EDM's CIFAR-10 networks.")
    return base.Checkpoint({"ema": _parted(network["tensors"])}, reference=dict(arguments))


def _parted(tensors: base.Tensors) -> base.Tensors:
    """Return the tensors with q, k and v, whose channels come in turn, as one each."""
    found = {}
    for name, w in tensors.items():
        joined = ".qkv." in name and w.ndim and len(w) % len(QKV) == 0
        found |= {f"{name}.{part}": w[i :: len(QKV)] for i, part in enumerate(QKV)} if joined else {name: w}
    return found


def layout(model: Model, image_shape: tuple[int, int, int]) -> base.Layout:
    """Return EDM's name of every parameter; raises UserError for a network that is not of its kind."""
    network = model.network
    if not isinstance(network, NCSNpp):
        raise UserError(f"the checkpoint is EDM's U-Net (ncsnpp); config.network is {type(network).__name__}.")
    base.refuse_other(network, FIELDS | ({"label_first": True} if network.num_classes else {}), "EDM's")
    condition = {"label": jnp.zeros(1, jnp.int32)} if network.num_classes else None
    shapes = jax.eval_shape(lambda key: model.init(key, (1, *image_shape), condition), jax.random.key(0))
    blocks = _blocks(network, image_shape[0])
    leaves = {}
    for path, leaf in flatten_dict(shapes, sep="/").items():
        leaves[path] = _leaf(path, len(leaf.shape), blocks, network.num_classes)
    return base.Layout(leaves, _constants(network, blocks))


def _leaf(path: str, rank: int, blocks: Mapping[str, str], classes: int) -> base.Leaf:
    module, _, kind = path.rpartition("/")
    block, _, part = module.partition("/")
    single = {
        "embedding/time_0": "model.map_layer0",
        "embedding/time_1": "model.map_layer1",
        "embedding/label": "model.map_label",
        "conv_in": blocks["conv_in"],
        "norm_out": blocks["norm_out"],
        "conv_out": blocks["conv_out"],
    }
    if path == "time_features/fourier/w":
        return base.Leaf(("model.map_noise.freqs",), base.same)
    if module == "embedding/label":
        return base.Leaf((f"{single[module]}.weight", f"{single[module]}.bias"), _labels(classes))
    if part in QKV:
        reading = base.pointwise if kind == "kernel" else base.same
        return base.Leaf((f"{blocks[block]}.qkv.{KINDS[kind]}.{part}",), reading)
    if block.endswith("_attention"):
        theirs = f"{blocks[block]}.{ {'norm': 'norm2', 'out': 'proj'}[part] }"
    elif part in RESIDUAL:
        theirs = f"{blocks[block]}.{RESIDUAL[part]}"
    elif part == "shortcut":
        theirs = f"{blocks[block]}.{SHORTCUT}"
    else:
        theirs = single.get(module) or blocks[block]
    reading = base.same if kind != "kernel" else base.conv if rank == 4 else base.pointwise
    return base.Leaf((f"{theirs}.{KINDS[kind]}",), reading)


def _labels(classes: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """W one_hot sqrt(n) + b of each class, and b, for no class, in a row each."""

    def table(weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        rows = weight.T * np.sqrt(np.asarray(classes, weight.dtype)) + bias
        return np.concatenate([rows, bias[None]])

    return table


def _blocks(network: NCSNpp, height: int) -> dict[str, str]:
    """Their name of each block of ours, and of the first and last layers."""
    n_levels, found = len(network.channel_mult), {}
    side = lambda level: f"{height >> level}x{height >> level}"  # noqa: E731
    found["conv_in"] = f"model.enc.{side(0)}_conv"
    found["norm_out"], found["conv_out"] = (f"model.dec.{side(0)}_aux_{name}" for name in ("norm", "conv"))
    lowest = f"model.dec.{side(n_levels - 1)}"
    found |= {"middle_0": f"{lowest}_in0", "middle_attention": f"{lowest}_in0", "middle_1": f"{lowest}_in1"}
    for level in range(n_levels):
        down, up = f"model.enc.{side(level)}", f"model.dec.{side(level)}"
        found |= {f"down_{level}_resample": f"{down}_down", f"up_{level + 1}_resample": f"{up}_up"}
        found[f"down_{level}_input"] = f"{down}_aux_residual"
        for i in range(network.num_res_blocks + 1):  # the last one on the way up only
            found |= {f"down_{level}_{i}": f"{down}_block{i}", f"up_{level}_{i}": f"{up}_block{i}"}
            found[f"down_{level}_{i}_attention"] = f"{down}_block{i}"
        found[f"up_{level}_attention"] = f"{up}_block{network.num_res_blocks}"
    return found


def _constants(network: NCSNpp, blocks: Mapping[str, str]) -> dict[str, np.ndarray | None]:
    """Return the filters of every layer that resamples, and what maps labels of augmentation, which is not kept."""
    taps = np.asarray(network.fir_kernel if network.fir else (1, 1), np.float32)
    kernel = np.outer(taps, taps)[None, None] / taps.sum() ** 2
    constants: dict[str, np.ndarray | None] = {"model.map_augment.weight": None}
    for level in range(1, len(network.channel_mult)):
        resampling = [
            f"{blocks[f'{way}_{level}_resample']}.{part}" for way in ("down", "up") for part in ("conv0", "skip")
        ]
        if network.progressive_input == "residual":
            resampling.append(blocks[f"down_{level}_input"])
        constants |= {f"{name}.resample_filter": kernel for name in resampling}
    return constants


def translate(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides of our config from the arguments of their network; raises UserError for what NCSNpp cannot say."""
    for name in settings:
        check_choice("an argument of EDM's network", name, ARGUMENTS)
    given = ARGUMENTS | dict(settings)
    if missing := [name for name, value in given.items() if value is None]:
        raise UserError(f"EDM: {missing[0]} is not given.")
    _refuse(given)
    taps, fourier = tuple(float(tap) for tap in given["resample_filter"]), given["embedding_type"] == "fourier"
    size, classes = given["img_resolution"], given["label_dim"]
    fir = {"fir": True, "fir_kernel": taps} if taps != (1.0, 1.0) else {"fir": False}
    network = FIELDS | fir | {
        "name": "ncsnpp",
        "width": given["model_channels"],
        "channel_mult": tuple(given["channel_mult"]),
        "num_res_blocks": given["num_blocks"],
        "attention_resolutions": tuple(given["attn_resolutions"]),
        "embedding": "fourier" if fourier else "positional",
        "progressive_input": ENCODERS[given["encoder_type"]],
        "label_first": classes > 0,
        "dropout": float(given["dropout"]),
    }  # fmt: skip
    return {f"network.{field}": value for field, value in network.items()} | {
        **edm_config.preconditioned(edm_config.LEVELS, float(given["sigma_data"])),
        **edm_config.denoiser(n_steps=18),
        **edm_config.images((size, size, given["img_channels"]), classes),
        "model.class_conditional": classes > 0,
    }


def _refuse(given: Mapping[str, Any]) -> None:
    """Raise UserError for arguments that are not those of the CIFAR-10 networks."""
    fourier = given["embedding_type"] == "fourier"
    fixed = {
        "model_type": (MODEL,),
        "channel_mult_emb": (4,),
        "channel_mult_noise": (2,) if fourier else (1,),  # Fourier features: sines and cosines of `width` frequencies
        "embedding_type": ("positional", "fourier"),
        "encoder_type": tuple(ENCODERS),
        "decoder_type": ("standard",),
    }
    for name, allowed in fixed.items():
        if given[name] not in allowed:
            raise UserError(f"EDM: {name} is {given[name]!r}; allowed: {', '.join(map(repr, allowed))}.")


def build() -> base.Project:
    """Return the project as a source of weights."""
    return base.Project(read, layout, translate, "the arguments of its network, which its pickles carry themselves")
