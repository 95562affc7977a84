"""InceptionV3's features, of which the FID is made: they need the published weights in a local file."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, UInt8

from evaluation.metrics.extractors.base import DINOV2, INCEPTION, Extractor, Features, LevelsGiven, Names, colours
from score_flow.config.hints import Dtype, limited
from score_flow.networks.dinov2 import DINOv2
from score_flow.networks.inception import N_FEATURES, N_SPATIAL, InceptionV3
from score_flow.pretrained import dinov2 as dinov2_weights
from score_flow.pretrained import inception
from score_flow.tree import static

SFID = "sfid"


class Inception(Extractor):
    """Levels scaled to 0 .. 255, grey repeated to three channels, resized and mapped as in the graph of 2015.

    beside: DINOv2's parameters, network and name, whose features are of the same pass; None for none.
    """

    params: PyTree
    network: InceptionV3 = static()
    levels: int = static()
    biased_logits: bool = static()
    beside_params: PyTree = None
    beside: tuple[DINOv2, str] | None = static(default=None)
    names: ClassVar[Names] = INCEPTION

    @property
    def more(self) -> Mapping[str, tuple[str, int]]:
        spatial = {SFID: (self.name, N_SPATIAL)}
        return spatial | ({DINOV2.distance: (self.beside[1], self.beside[0].width)} if self.beside else {})

    def __call__(self, images: UInt8[Array, "b h w c"]) -> Features:
        x = colours(images, self.levels, self.name)
        outputs = self.network.apply({"params": self.params}, x)
        more = {SFID: outputs.spatial}
        if self.beside:
            more[DINOV2.distance] = self.beside[0].apply({"params": self.beside_params}, x).token
        return Features(outputs.pool, outputs.logits if self.biased_logits else outputs.unbiased_logits, more)


@limited("config.eval.extractor")
def build(
    weights: str = "",
    levels: LevelsGiven = 256,
    biased_logits: bool = False,
    dinov2: str = "",
    dtype: Dtype = "float32",
) -> Inception:
    """Build the extractor of a file of weights: .pth as published, or the same tensors in .npz or .safetensors.

    The Inception score of Salimans et al. 2016 (arXiv:1606.03498) and torch-fidelity takes logits without their bias,
    TF-GAN's with it. With a file of weights of dinov2, FD-DINOv2 is of the same pass as the FID. Raises UserError,
    first of all for a missing file.
    """
    network, params, digest = inception.load(weights, dtype)
    bias = ", logits with bias" if biased_logits else ""
    name = f"InceptionV3 of FID, sha256 {digest[:8]}{bias}" + ("" if dtype == "float32" else f", {dtype}")
    params, beside, beside_params = jax.tree.map(jnp.asarray, params), None, None
    if dinov2:
        other, beside_params, beside_name = dinov2_weights.load(dinov2, dtype)
        beside, beside_params = (other, beside_name), jax.tree.map(jnp.asarray, beside_params)
    return Inception(name, N_FEATURES, params, network, levels, biased_logits, beside_params, beside)
