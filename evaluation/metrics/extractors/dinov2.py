"""DINOv2's features, of which FD-DINOv2 is made: they need the published weights in a local file."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, UInt8

from evaluation.metrics.extractors.base import DINOV2, Extractor, Features, LevelsGiven, Names, colours
from score_flow.config.hints import Dtype, limited
from score_flow.networks.dinov2 import DINOv2
from score_flow.pretrained import dinov2
from score_flow.tree import static


class Dino(Extractor):
    """The class token of images scaled to 0 .. 255, grey repeated, resized to 224 x 224 (bicubic, antialiased)."""

    params: PyTree
    network: DINOv2 = static()
    levels: int = static()
    names: ClassVar[Names] = DINOV2

    def __call__(self, images: UInt8[Array, "b h w c"]) -> Features:
        return Features(self.network.apply({"params": self.params}, colours(images, self.levels, self.name)).token)


@limited("config.eval.extractor")
def build(weights: str = "", levels: LevelsGiven = 256, dtype: Dtype = "float32") -> Dino:
    """Build the extractor of a file of weights, the authors' .pth or transformers' safetensors, of any size.

    Published figures are of ViT-L/14 without registers. Images are resized as EDM2 does, in real numbers; dgm-eval
    rounds to levels in between. Raises UserError, first of all for a missing file.
    """
    network, params, name = dinov2.load(weights, dtype)
    return Dino(name, network.width, jax.tree.map(jnp.asarray, params), network, levels)
