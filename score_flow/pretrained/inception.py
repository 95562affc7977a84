"""The weights of the FID's InceptionV3 from a local file: the published .pth, or the same in .npz or .safetensors."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import PyTree

from score_flow.networks.inception import SIZE, InceptionV3
from score_flow.pretrained.base import Layout, Leaf, Tensors, as_dtype, conv, dense, fill, same
from score_flow.pretrained.readers import tensors

FILE = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # its name carries the first eight digits
HOW = f"get the published weights by: curl -LO {URL}, and name the file by --config.eval.extractor.weights="

LAYERS = {  # the end of our names: that of the published ones, and what makes the tensor ours
    "conv/kernel": ("conv.weight", conv),
    "bn/scale": ("bn.weight", same),
    "bn/bias": ("bn.bias", same),
    "bn/mean": ("bn.running_mean", same),
    "bn/variance": ("bn.running_var", same),
    "fc/kernel": ("fc.weight", dense),
    "fc_bias": ("fc.bias", same),
}
COUNTER = "bn.num_batches_tracked"  # steps of a training that is over: a copy of the file may have dropped them
MAX_BYTES = 1 << 30  # of what an .npz unpacks to: ten times what the network takes


def load(path: str | Path, dtype: str = "float32") -> tuple[InceptionV3, PyTree, str]:
    """(network, parameters, SHA-256 of the file), every tensor of the file used once.

    `dtype` is that of the computation; the parameters are float64 for "float64", else float32. Raises UserError: first
    of all for a file that is not there, then for the published one when damaged, and for tensors that do not fit.
    """
    file, digest, params = tensors.load(path, "InceptionV3 of the FID", HOW, MAX_BYTES, params_of)
    known = "as published" if digest == SHA256 else f"not the published file, {SHA256[:8]}..."
    print(f"InceptionV3 of the FID: {file.name}, sha256 {digest}, {known}; every tensor used once", flush=True)
    return InceptionV3(dtype), as_dtype(params, "float64" if dtype == "float64" else "float32"), digest


def params_of(given: Tensors) -> PyTree:
    """Make our parameters from tensors under their published names; UserError, by name, for those that do not fit."""
    leaves, counters = {}, {}
    for path in flatten_dict(_shapes(), sep="/"):
        end = next(end for end in LAYERS if path.endswith(end))
        theirs, read = LAYERS[end]
        prefix = path.removesuffix(end).replace("/", ".")
        leaves[path] = Leaf((prefix + theirs,), read)
        if end.startswith("bn/"):
            counters[prefix + COUNTER] = None
    return fill(_shapes(), Layout(leaves, counters), given)


@functools.cache
def _shapes() -> PyTree:
    return jax.eval_shape(InceptionV3().init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))["params"]
