"""Flax checkpoints of score_sde and score_flow: msgpack of a State whose optimiser class is gone."""

from typing import Any

from flax.traverse_util import flatten_dict

from score_flow.model import Model
from score_flow.pretrained.base import Checkpoint, Layout, Project
from score_flow.pretrained.layouts.score_sde_config import translate
from score_flow.pretrained.projects.score_sde_pytorch import layouts


def read(tree: Any) -> Checkpoint | None:
    """{"optimizer": {"target": parameters}, "params_ema": parameters, "step": ...}, by paths joined with "/"."""
    if not isinstance(tree, dict) or not {"optimizer", "params_ema"} <= tree.keys():
        return None
    raw = tree["optimizer"]["target"]
    weights = {
        kind: {"/".join(path): leaf for path, leaf in flatten_dict(_params(params)).items()}
        for kind, params in (("raw", raw), ("ema", tree["params_ema"]))
    }
    return Checkpoint(weights, int(tree.get("step", 0)))


def _params(tree: dict[str, Any]) -> dict[str, Any]:
    return tree["params"] if set(tree) == {"params"} else tree


def layout(model: Model, image_shape: tuple[int, int, int]) -> Layout:
    return layouts(model).flax_layout(model.network, image_shape)


def build() -> Project:
    return Project(
        read, layout, translate, "open(FILE, 'w').write(config.to_json_best_effort()), config its get_config()"
    )
