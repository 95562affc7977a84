"""The CIFAR-10 checkpoints of consistency models' authors (Song et al. 2023, arXiv:2303.01469), flax's msgpack.

Their network is score_sde's NCSN++, under score_sde's names. EDM's weights are a denoiser; those of distillation and
training are consistency models, f(x, s) = x_least, which know the jump to the least noise level, t = 0 of our path,
alone.
"""

from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict

from score_flow.config.former import NCSNPP
from score_flow.config.loading import flatten
from score_flow.errors import UserError, check_choice
from score_flow.model import Model
from score_flow.networks.ncsnpp import NCSNpp
from score_flow.pretrained.base import Checkpoint, Layout, Project
from score_flow.pretrained.layouts import edm_config, ncsnpp

KINDS = {"ema": "params_ema", "raw": "params"}
# The settings that say what the weights mean, with what they are if not given; None: what a config must say
PROCESS = {
    "training.sde": None, "training.loss": None, "data.image_size": 32, "data.num_channels": 3,
    "data.random_flip": True, "data.uniform_dequantization": False, "model.t_min": 0.002, "model.t_max": 80.0,
    "model.data_std": 0.5, "model.num_scales": 18, "model.ema_rate": 0.9999,
}  # fmt: skip
ONLY = {  # where another value would have no counterpart
    "training.sde": "kvesde", "data.dataset": "CIFAR10", "model.name": "ncsnpp", "model.normalization": "GroupNorm",
    "model.attention_type": "ddpm", "model.conv_size": 3, "model.double_heads": False, "model.conditional": True,
    "model.rho": 7.0,
}  # fmt: skip
UNREAD = ("model.sigma_min", "model.sigma_max", "model.beta_min", "model.beta_max")  # of processes that are not theirs
LOSSES = {
    "dsm": False, "continuous": True, "consistency": True, "consistency_ema": True, "consistency_adaptive": True,
}  # fmt: skip


def read(tree: Any) -> Checkpoint | None:
    """{"params": parameters, "params_ema": parameters, "model_state": ..., "step": ...}, names joined by "/"."""
    if not isinstance(tree, dict) or not {"params", "params_ema", "model_state"} <= tree.keys():
        return None
    weights = {kind: flatten_dict(tree[theirs], sep="/") for kind, theirs in KINDS.items()}
    return Checkpoint(weights, int(tree.get("step", 0)))


def layout(model: Model, image_shape: tuple[int, int, int]) -> Layout:
    if not isinstance(model.network, NCSNpp):
        raise UserError(f"the checkpoint is of NCSN++ (ncsnpp); config.network is {type(model.network).__name__}.")
    return ncsnpp.flax_layout(model.network, image_shape)


def translate(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides of our config from one of theirs; raises UserError for what has no counterpart.

    How they trained, optimised and evaluated is left out.
    """
    said = {key: value for key, value in flatten(dict(settings)).items() if key.split(".")[0] in ("model", "data")}
    said |= {f"training.{key}": value for key, value in settings.get("training", {}).items() if key in ("sde", "loss")}
    network = {f"model.{theirs}": ours for theirs, ours in NCSNPP.items()}
    for key, value in said.items():
        check_choice("a setting of the reference config", key, {*PROCESS, *ONLY, *UNREAD, *network})
        if key in ONLY and value != ONLY[key]:
            raise UserError(f"{key} of the reference config is {value!r}; only {ONLY[key]!r} has a counterpart.")
    theirs = PROCESS | said
    for key in [key for key, value in theirs.items() if value is None]:
        raise UserError(f"the reference config does not give {key}.")
    check_choice("training.loss of the reference config", theirs["training.loss"], LOSSES)
    size, of_network = theirs["data.image_size"], {key: ours for key, ours in network.items() if key in theirs}
    common = {f"network.{ours}": theirs[key] for key, ours in of_network.items()} | {
        "network.name": "ncsnpp",
        **edm_config.preconditioned((theirs["model.t_min"], theirs["model.t_max"]), theirs["model.data_std"]),
        **edm_config.images((size, size, theirs["data.num_channels"]), num_classes=0),
        "model.ema_rate": (float(theirs["model.ema_rate"]),),
        "data.random_flip": theirs["data.random_flip"],
        "data.uniform_dequantization": theirs["data.uniform_dequantization"],
    }
    of_kind = _consistency() if LOSSES[theirs["training.loss"]] else edm_config.denoiser(theirs["model.num_scales"])
    return common | of_kind


def _consistency() -> dict[str, Any]:
    """On a path whose t is the noise level, where u(x_t, t, 0) = (x - f)/t is the readout times a constant."""
    return {
        "path.schedule": "linear",
        "model.prediction": "consistency",
        "model.consistency": True,
        "training.objective": "flow_map",
        "training.flow_map": "consistency",
        "training.flow_map_equal": 0.0,
        "training.weighting": "velocity",
        "training.smallest_time": 0.0,
        "training.time_sampler.name": "logit_normal",
        "training.time_sampler.mean": -5.6,  # log sigma of mean -1.2, as in EDM
        "training.time_sampler.std": 1.2,
        "sampling.name": "consistency",
        "sampling.n_steps": 1,
        "eval.only": ("samples",),  # most of what is asked for by default is of a velocity
    }


def build() -> Project:
    """Return the project as a source of weights."""
    written = "open(FILE, 'w').write(config.to_json_best_effort()), config its get_config()"
    return Project(read, layout, translate, written)
