"""InceptionV3's features, of which the FID is made: they need the published weights in a local file."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, UInt8

from evaluation.metrics.extractors.base import INCEPTION, Extractor, Features, Names
from score_flow.config.hints import Dtype, Given, limited
from score_flow.networks.inception import N_FEATURES, N_SPATIAL, InceptionV3
from score_flow.pretrained import inception
from score_flow.tree import static
from score_flow.types import UserError

SFID = "sfid"
LevelsGiven = Annotated[int, Given("the pixel levels of the data")]


class Inception(Extractor):
    """Levels scaled to 0 .. 255, grey repeated to three channels, resized and mapped as in the graph of 2015."""

    params: PyTree
    network: InceptionV3 = static()
    levels: int = static()
    biased_logits: bool = static()
    names: ClassVar[Names] = INCEPTION

    @property
    def more(self) -> Mapping[str, tuple[str, int]]:
        return {SFID: (self.name, N_SPATIAL)}

    def __call__(self, images: UInt8[Array, "b h w c"]) -> Features:
        if images.shape[-1] not in (1, 3):
            raise UserError(f"{self.name}: images have {images.shape[-1]} channels; allowed: 1 (grey), 3")
        x = images.astype(jnp.float32) * (255 / (self.levels - 1))
        outputs = self.network.apply({"params": self.params}, jnp.broadcast_to(x, (*x.shape[:-1], 3)))
        logits = outputs.logits if self.biased_logits else outputs.unbiased_logits
        return Features(outputs.pool, logits, {SFID: outputs.spatial})


@limited("config.eval.extractor")
def build(
    weights: str = "", levels: LevelsGiven = 256, biased_logits: bool = False, dtype: Dtype = "float32"
) -> Inception:
    """Build the extractor of a file of weights: .pth as published, or the same tensors in .npz or .safetensors.

    The Inception score of Salimans et al. 2016 (arXiv:1606.03498) and torch-fidelity takes logits without their bias,
    TF-GAN's with it. Raises UserError, first of all for a missing file.
    """
    network, params, digest = inception.load(weights, dtype)
    bias = ", logits with bias" if biased_logits else ""
    name = f"InceptionV3 of FID, sha256 {digest[:8]}{bias}" + ("" if dtype == "float32" else f", {dtype}")
    return Inception(name, N_FEATURES, jax.tree.map(jnp.asarray, params), network, levels, biased_logits)
