"""EDM2's networks from its pickles, snapshots and reconstructed averages alike (Karras et al. 2024, arXiv:2312.02696).

Their weights in our EDM2, with EDM's preconditioning as a prediction, and its noise levels as a path. What predicts the
logarithm of the loss is left out: samples need none, and a fresh training learns its own (objective = uncertainty).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from score_flow.errors import UserError, check_choice
from score_flow.model import Model
from score_flow.networks.edm2 import ATTENTION, EDM2, JOINED, LABEL, LARGEST, RESIDUAL
from score_flow.pretrained import base
from score_flow.pretrained.layouts import edm_config

CLASS = "Precond"
# The arguments of their network with what they are if not given; None: what a file must say
SIZES = {
    "img_resolution": None,
    "img_channels": None,
    "label_dim": None,
    "sigma_data": 0.5,
    "model_channels": 192,
    "channel_mult": (1, 2, 3, 4),
    "num_blocks": 3,
    "attn_resolutions": (16, 8),
    "channels_per_head": 64,
    "dropout": 0.0,
}
FIXED = {  # those that ours has one value of
    "channel_mult_noise": None,
    "channel_mult_emb": None,
    "label_balance": LABEL,
    "concat_balance": JOINED,
    "res_balance": RESIDUAL,
    "attn_balance": ATTENTION,
    "clip_act": LARGEST,
    "resample_filter": (1, 1),
}
UNUSED = ("use_fp16", "logvar_channels")
LOSS = ("logvar_fourier.freqs", "logvar_fourier.phases", "logvar_linear.weight")  # of the logarithm of the loss
PARTS = {
    "conv_0": "conv_res0", "conv_1": "conv_res1", "embedding": "emb_linear", "shortcut": "conv_skip",
    "qkv": "attn_qkv", "attention_out": "attn_proj",
}  # fmt: skip
SINGLE = {
    "embedding/waves/frequencies": "emb_fourier.freqs",
    "embedding/waves/phases": "emb_fourier.phases",
    "embedding/time/kernel": "emb_noise.weight",
    "embedding/label/kernel": "emb_label.weight",
    "conv_out/kernel": "out_conv.weight",
    "out_gain": "out_gain",
}
# Of train_edm2.py: channels, millions of images at 64 and at 512 (None: no such preset), learning rate, dropout
PRESETS = {
    "xs": (128, 1024, 2048, 0.0120, 0.0),
    "s": (192, 1024, 2048, 0.0100, 0.0),
    "m": (256, 2048, 2048, 0.0090, 0.1),
    "l": (320, 1024, 1792, 0.0080, 0.1),
    "xl": (384, 640, 1280, 0.0070, 0.1),
    "xxl": (448, None, 896, 0.0065, 0.1),
}
OPTIONS = ("preset", "batch", "cond")  # of train_edm2.py that are heeded
RAMP = 10_000_000  # images over which their learning rate grows


def read(tree: Any) -> base.Checkpoint | None:
    """Read the averaged network of a pickle."""
    networks = tree.get("networks") if isinstance(tree, Mapping) else None
    network = networks.get("ema") if isinstance(networks, Mapping) else None
    if not isinstance(network, Mapping) or network["class_name"] != CLASS:
        return None
    return base.Checkpoint({"ema": network["tensors"]}, reference=dict(network["arguments"]))


def layout(model: Model, image_shape: tuple[int, int, int]) -> base.Layout:
    """Return EDM2's name of every parameter; raises UserError for a network that is not of its kind."""
    network = model.network
    if not isinstance(network, EDM2):
        raise UserError(f"the checkpoint is EDM2's U-Net (edm2); config.network is {type(network).__name__}.")
    fields = {"augment_dim": 0, "span": False, "guidance": False}
    base.refuse_other(network, fields, "EDM2's")
    condition = {"label": jnp.zeros(1, jnp.int32)} if network.num_classes else None
    shapes = jax.eval_shape(lambda key: model.init(key, (1, *image_shape), condition), jax.random.key(0))
    blocks = _blocks(network, image_shape[0])
    leaves = {path: _leaf(path, len(leaf.shape), blocks) for path, leaf in flatten_dict(shapes, sep="/").items()}
    return base.Layout(leaves, dict.fromkeys(LOSS))


def _leaf(path: str, rank: int, blocks: Mapping[str, str]) -> base.Leaf:
    if path in SINGLE:
        reading = _labels if "label" in path else _kernel(rank) if path.endswith("kernel") else base.same
        return base.Leaf((f"unet.{SINGLE[path]}",), reading)
    block, part, *_ = path.split("/")
    if block == "conv_in":
        return base.Leaf((f"unet.{blocks[block]}.weight",), base.conv)
    if part == "gain":
        return base.Leaf((f"unet.{blocks[block]}.emb_gain",), base.same)
    return base.Leaf((f"unet.{blocks[block]}.{PARTS[part]}.weight",), _qkv if part == "qkv" else _kernel(rank))


def _kernel(rank: int) -> Callable[[np.ndarray], np.ndarray]:
    return base.conv if rank == 4 else base.pointwise


def _qkv(w: np.ndarray) -> np.ndarray:
    """The channels of q, k and v, which come in turn, one after the other."""
    return base.pointwise(np.concatenate([w[i::3] for i in range(3)]))


def _labels(w: np.ndarray) -> np.ndarray:
    """A row for each class, and one of zeros for none."""
    return np.concatenate([w.T, np.zeros_like(w.T[:1])])


def _blocks(network: EDM2, height: int) -> dict[str, str]:
    """Their name of each block of ours, and of the first layer."""
    side = lambda level: f"{height >> level}x{height >> level}"  # noqa: E731
    lowest = f"dec.{side(len(network.channel_mult) - 1)}"
    found = {"conv_in": f"enc.{side(0)}_conv", "middle_0": f"{lowest}_in0", "middle_1": f"{lowest}_in1"}
    for level in range(len(network.channel_mult)):
        down, up = f"enc.{side(level)}", f"dec.{side(level)}"
        found |= {f"down_{level}_resample": f"{down}_down", f"up_{level}_resample": f"{up}_up"}
        for i in range(network.num_res_blocks + 1):  # the last one on the way up only
            found |= {f"down_{level}_{i}": f"{down}_block{i}", f"up_{level}_{i}": f"{up}_block{i}"}
    return found


def translate(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides of our config from the arguments of their network, or from {"preset": a name of train_edm2.py's, ...}.

    Raises UserError for what our EDM2 cannot say.
    """
    if "preset" in settings:
        return _preset(settings)
    for name in settings:
        check_choice("an argument of EDM2's network", name, (*SIZES, *FIXED, *UNUSED))
    for name, value in FIXED.items():
        if (got := _plain(settings.get(name, value))) != value:
            raise UserError(f"EDM2: {name} is {got!r}; allowed: {value!r}.")
    given = SIZES | {name: value for name, value in settings.items() if name in SIZES}
    if missing := [name for name, value in given.items() if value is None]:
        raise UserError(f"EDM2: {missing[0]} is not given.")
    size, classes = given["img_resolution"], given["label_dim"]
    return {
        "network.name": "edm2",
        "network.width": given["model_channels"],
        "network.channel_mult": tuple(given["channel_mult"]),
        "network.num_res_blocks": given["num_blocks"],
        "network.attention_resolutions": tuple(given["attn_resolutions"]),
        "network.head_channels": given["channels_per_head"],
        "network.dropout": float(given["dropout"]),
        **edm_config.preconditioned(edm_config.LEVELS, float(given["sigma_data"])),
        **edm_config.denoiser(n_steps=32),
        **edm_config.images((size, size, given["img_channels"]), classes),
        "model.class_conditional": classes > 0,
        "data.uniform_dequantization": False,
    }


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _preset(options: Mapping[str, Any]) -> dict[str, Any]:
    """The network and the training of one of their presets."""
    for name in options:
        check_choice("an option of train_edm2.py", name, OPTIONS)
    presets = {f"edm2-img{size}-{name}": (size, *row) for size in (64, 512) for name, row in PRESETS.items()}
    check_choice("preset", options["preset"], [name for name, row in presets.items() if row[2 if row[0] == 64 else 3]])
    size, channels, short, long, lr, dropout = presets[options["preset"]]
    batch, pixels = options.get("batch", 2048), size == 64
    network = {
        "img_resolution": 64, "img_channels": 3 if pixels else 4, "model_channels": channels, "dropout": dropout,
        "label_dim": 1000 if options.get("cond", True) else 0,
    }  # fmt: skip
    return translate(network) | {
        "model.ema_std": (0.05, 0.1),
        "training.objective": "uncertainty",
        "training.weighting": "edm",
        "training.time_sampler.name": "lognormal",
        "training.time_sampler.mean": -0.8 if pixels else -0.4,
        "training.time_sampler.std": 1.6 if pixels else 1.0,
        "training.smallest_time": 0.0,
        "training.largest_time": 1.0,
        "training.batch_size": batch,
        "training.n_iters": ((short if pixels else long) << 20) // batch,
        "optim.optimizer": "Adam",
        "optim.lr": lr,
        "optim.beta2": 0.99,
        "optim.warmup": round(RAMP / batch),
        "optim.schedule": "inverse_sqrt",
        "optim.decay_start": 35_000 if pixels else 70_000,
        "optim.grad_clip": 0.0,
    }


def build() -> base.Project:
    """Return the project as a source of weights."""
    return base.Project(read, layout, translate, "the arguments of its network, which its pickles carry themselves")
