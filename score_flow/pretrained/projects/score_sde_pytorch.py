"""Checkpoints of score_sde_pytorch: {"model": state_dict, "ema": {"shadow_params": [...]}, "step", "optimizer"}."""

import functools
from typing import Any

import numpy as np

from score_flow.errors import UserError
from score_flow.model import Model
from score_flow.pretrained.base import Checkpoint, Layout, Project
from score_flow.pretrained.layouts import ncsn as ncsn_layout
from score_flow.pretrained.layouts import ncsnpp as ncsnpp_layout
from score_flow.pretrained.layouts.score_sde_config import translate

PREFIX = "module."  # of torch's DataParallel


def read(tree: Any) -> Checkpoint | None:
    """Both sets of weights. The EMA is an ordered list of the trainable parameters only; what is frozen (the Fourier
    frequencies, the noise levels) is in `model` alone and joins both."""
    if not isinstance(tree, dict) or not {"model", "ema"} <= tree.keys() or not isinstance(tree["ema"], dict):
        return None
    raw = {name.removeprefix(PREFIX): value for name, value in tree["model"].items()}
    shadows = tree["ema"].get("shadow_params")
    if not isinstance(shadows, list):
        return None
    trainable = [name for name, value in raw.items() if name != "sigmas" and not _fourier(name, value)]
    if [raw[name].shape for name in trainable] != [np.shape(shadow) for shadow in shadows]:
        raise UserError(
            f"the EMA's {len(shadows)} tensors are not the model's {len(trainable)} trainable ones in number or shape."
        )
    ema = raw | dict(zip(trainable, shadows, strict=True))
    return Checkpoint({"ema": ema, "raw": raw}, int(tree.get("step", 0)))


def _fourier(name: str, value: np.ndarray) -> bool:
    # The frequencies are the one vector named W; a pointwise layer's W is a matrix.
    return name.endswith(".W") and value.ndim == 1


def layout(model: Model, image_shape: tuple[int, int, int]) -> Layout:
    return layouts(model).torch_layout(model.network, image_shape)


def layouts(model: Model) -> Any:
    """Return the module that knows the names of a network's tensors."""
    kinds = {"NCSNpp": ncsnpp_layout, "DDPM": ncsnpp_layout, "NCSN": ncsn_layout, "NCSNv2": ncsn_layout}
    kind = type(model.network).__name__
    if kind not in kinds:
        raise UserError(f"score_sde has no network like config.network = {kind}; it has {', '.join(kinds)}.")
    return kinds[kind]


def build() -> Project:
    return Project(
        read, layout, functools.partial(translate, torch=True),
        "open(FILE, 'w').write(config.to_json_best_effort()), config its get_config() without device",
    )
